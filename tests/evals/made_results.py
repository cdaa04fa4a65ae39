"""Results made by hand, as protocols write them: published scores of models, and curves and confusions that follow rules."""

from __future__ import annotations

import dataclasses

from ostension.data.suite import read_suite
from ostension.data.task import Task, read_task
from ostension.evals.metrics import wilson_interval
from ostension.evals.protocol import summarise
from ostension.evals.records import Metric, Record
from ostension.evals.results import Result
from ostension.evals.testbed import SEVEN_SHIFTS, read_testbed
from ostension.runtime import numpy_generator


def metric_of(task: Task, value: float, *, count: int | None = None) -> Metric:
    count = count or task.split("test").count
    return Metric(value=value, count=count, chance=task.chance, interval=wilson_interval(round(value * count), count))


def record_of(protocol, task, model, metrics, details=None, **rest) -> Record:
    return Record(
        protocol=protocol, subject=f"{model} on {task.title}", metrics=metrics, config={"templates": "own"},
        hashes={"weights": f"{len(model):064x}", "test": f"{len(task.name):064x}"},
        counts={"samples": task.split("test").count, "fitted": 40 * task.num_classes, "classes": task.num_classes}, seeds=(0,),
        task=task.name, model=model, details=details or {}, **{"split": "test", **rest},
    )  # fmt: skip


def published_value(task, protocol, model):
    model = model.removesuffix("-openai")
    oracles = [o for o in task.oracles if o.protocol == protocol and o.weights == "openai" and model in o.values]
    return round(oracles[0].values[model] / 100, 6) if oracles else None


def reliability_of(shift: float):
    return [
        {"low": b / 10, "high": (b + 1) / 10, "count": 20 + 40 * b, "confidence": b / 10 + 0.05,
         "accuracy": min(1.0, max(0.0, b / 10 + 0.05 - shift * (b / 10)))}
        for b in range(1, 10)
    ]  # fmt: skip


def zero_shot_details(task, value, seed=0):
    generator = numpy_generator(seed, task.name)
    keys = list(task.display_names())
    drawn = generator.beta(8 * value + 0.5, 8 * (1 - value) + 0.5, len(keys))
    per_class = {key: float(share) for key, share in zip(keys, drawn, strict=True)}
    pairs = []
    for key in keys:
        wrong = round(100 * (1 - per_class[key]))
        for other in generator.permutation(keys)[:3]:
            if other != key and wrong:
                take = max(1, wrong // 2)
                pairs.append([key, str(other), take])
                wrong -= take
    pairs.sort(key=lambda pair: -pair[2])
    return {"per_class": per_class, "class_counts": dict.fromkeys(keys, 100), "confusion": pairs[:200],
            "reliability": reliability_of(0.3)}  # fmt: skip


def results_of(suite="clip27", names=("ViT-B-32",), *, few=True, limit=None, leave_out=()) -> list[Result]:
    """Zero-shot, probe and few-shot results of a suite for models whose scores were published."""
    found = []
    for model in names:
        for task in read_suite(suite).read():
            zero_shot, probe = published_value(task, "zero-shot", model), published_value(task, "linear-probe", model)
            if zero_shot is None or probe is None:
                continue
            name = task.metric
            records = [
                record_of("zeroshot", task, model, {
                    name: metric_of(task, zero_shot),
                    "ece": Metric(value=0.1 + 0.05 * zero_shot, count=100, direction="lower"),
                }, zero_shot_details(task, zero_shot) if task.metric == "accuracy" else {}),
                record_of("probe", task, model, {name: metric_of(task, probe)},
                          {"curve": [[0.1, probe - 0.1], [1.0, probe], [10.0, probe - 0.02]], "strength": 1.0}),
            ]  # fmt: skip
            if few:
                curve = [[k, probe * (1 - 0.6 * 0.75**place), 0.03 * 0.8**place] for place, k in enumerate((1, 2, 4, 8, 16))]
                records.append(record_of("fewshot", task, model, {name: metric_of(task, curve[-1][1])},
                                         {"curve": curve, "regime": "few"}))  # fmt: skip
            found += [Result(record=record, identity={}, limit=limit) for record in records
                      if (task.name, record.protocol) not in leave_out]  # fmt: skip
    return found


def shifts_of(model: str, published: str, *, probe: bool = True) -> Record:
    """A record of the protocol `robustness`, with what the published test bed says of one of its models."""
    bed, rows = read_testbed(), []
    place = bed.place(published)
    for shift in SEVEN_SHIFTS:
        x, y = (float(values[place]) for values in bed.accuracies(shift))
        for kind, gain in (("zero-shot", 0.0), *((("probe", -0.06),) if probe else ())):
            rows.append({"shift": shift.task, "kind": kind, "x": [x, 50_000], "y": [y + gain, 10_000]})
    metrics = {"accuracy": Metric(value=rows[0]["y"][0], count=10_000)}
    return record_of("robustness", read_task("imagenet"), model, metrics, {"rows": rows, "testbed": ""})


def suite_with_everything() -> tuple[list[Result], list[Record]]:
    """Results of two models by most protocols, and what summaries make of them."""
    found = results_of("kornblith12", ("ViT-B-32-openai", "RN50-openai"))
    found.append(Result(record=shifts_of("RN50-openai", "resnet50_clip_zeroshot"), identity={}))
    captions = read_task("flickr8k_1000")
    for model, shift in (("ViT-B-32-openai", 0.05), ("RN50-openai", 0.0)):
        recalls = {
            f"{way}_r{k}": Metric(value=value + shift, count=1000, chance=k / 1000)
            for way in ("image_to_text", "text_to_image") for k, value in ((1, 0.55), (5, 0.8), (10, 0.9))
        }  # fmt: skip
        prefixed = {f"prefixed_{name}": metric for name, metric in recalls.items()}
        curves = {way: [[1, 0.55 + shift], [5, 0.8 + shift], [10, 0.9 + shift]] for way in ("image_to_text", "text_to_image")}
        record = record_of("retrieval", captions, model, {"mean_recall": recalls["image_to_text_r5"], **recalls, **prefixed},
                           {"curves": curves})  # fmt: skip
        found.append(Result(record=dataclasses.replace(record, counts={"images": 1000, "texts": 5000}), identity={}))
        flowers, dtd = read_task("flowers102"), read_task("dtd")
        groups = {"land": [0.9, 400, 0.87, 0.93], "water": [0.4 + shift, 60, 0.29, 0.55], "sky": [0.7, 100, 0.6, 0.79]}
        details = {"groups": groups, "worst": "water", "by_chance": 1e-9, "small": {}}
        metrics = {"accuracy": Metric(value=0.8, count=560), "gap": Metric(value=0.4, count=560, direction="lower")}
        grouped = record_of("groups", flowers, model, metrics, details)
        found.append(Result(record=grouped, identity={}))
        told = {"value": 1.7, "low": 1.6, "high": 1.8, "verdict": "too sure"}
        details = {"temperature": told, "reliability": reliability_of(0.3), "reliability_after": reliability_of(0.02)}
        ece = {"ece": Metric(value=0.2, count=1880, direction="lower")}
        found.append(Result(record=record_of("calibration", dtd, model, ece, details), identity={}))
        gains = {"gain": Metric(value=0.05, count=1880, chance=0.0), "engineering": Metric(value=0.03, count=1880, chance=0.0),
                 "ensembling": Metric(value=0.02, count=1880, chance=0.0), "bare": metric_of(dtd, 0.39),
                 "single": metric_of(dtd, 0.42), "ensemble": metric_of(dtd, 0.44)}  # fmt: skip
        found.append(Result(record=record_of("prompts", dtd, model, gains), identity={}))
    return found, summarise([result.record for result in found])
