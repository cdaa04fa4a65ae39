"""Zero-shot on planted rows: prompts are pooled, label permutations change nothing, details and columns add up."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from ostension.data.task import Folds, Task, read_task
from ostension.errors import ConfigError, DataError
from ostension.evals.inputs import ArrayInputs, unit
from ostension.evals.protocol import load_protocol
from ostension.evals.zero_shot import classify, top_classes, words
from ostension.runtime import numpy_generator
from ostension.store import Features
from ostension.text.prompts import fill

NAMES = {"a": ("ape",), "b": ("bear", "grizzly"), "c": ("cat",), "d": ("dog",), "e": ("emu",), "f": ("fox",), "g": ("gnu",)}
TEMPLATES = ("a {}.", "the {}.", "one {} only")
ZEROSHOT = load_protocol("zeroshot")


def a_task(**changes):
    given = {"title": "animals", "name": "animals", "version": 1, "classes": NAMES, "templates": TEMPLATES}
    return Task(**{**given, "licence": "-", "citation": "-", **changes})


def planted(task=None, n=210, e=24, noise=0.9, seed=0, order=None):
    """Pictures around one direction a class, prompts around the same ones; `order` shuffles the classes of the record."""
    generator = numpy_generator(seed, "planted")
    centres = dict(zip(NAMES, generator.normal(size=(len(NAMES), e)), strict=True))
    labels = generator.choice(list(NAMES), size=n)
    rows = unit(np.stack([centres[label] for label in labels]) + noise * 2 * generator.normal(size=(n, e)), [""] * n)
    prompts = {}
    for key, names in NAMES.items():
        for name in names:
            for template in (*TEMPLATES, "{}", "a photo of a {}."):
                prompts[fill(template, name)] = centres[key] + noise * generator.normal(size=e)
    task = a_task() if task is None else task
    if order is not None:
        task = dataclasses.replace(task, classes={key: NAMES[key] for key in order})
    keys = tuple(task.display_names())
    targets = np.array([keys.index(label) for label in labels])
    features = Features(rows=rows, targets=targets, classes=keys, ids=tuple(f"i{k}" for k in range(n)))
    return ArrayInputs(task, {"test": features}, prompt_rows=prompts, scale=30.0)


def run(inputs, **settings):
    return ZEROSHOT.run(inputs, ZEROSHOT.Config(**settings), seed=0)


def test_logits_are_scaled_cosines_with_the_mean_of_all_prompts_of_a_class():
    inputs = planted()
    rows = inputs.features("test").rows
    of_b = inputs.texts([fill(template, name) for name in NAMES["b"] for template in TEMPLATES]).mean(axis=0)
    expected = 30 * rows @ (of_b / np.linalg.norm(of_b))
    assert classify(inputs)[:, 1] == pytest.approx(expected, abs=1e-4)


def test_the_score_is_the_accuracy_and_columns_and_details_add_up_to_it():
    outcome = run(planted())
    record, samples = outcome.record, outcome.samples
    assert next(iter(record.metrics)) == "accuracy" and 0.4 < record.headline.value < 0.95
    assert record.metrics["top1"].value == record.headline.value == samples["correct"].mean()
    assert record.metrics["top5"].value >= record.headline.value and record.headline.chance == pytest.approx(1 / 7)
    counts, shares = record.details["class_counts"], record.details["per_class"]
    assert sum(shares[key] * counts[key] for key in counts) / 210 == pytest.approx(record.headline.value)
    assert record.metrics["mean_per_class"].value == pytest.approx(np.mean(list(shares.values())))
    assert sum(number for *_, number in record.details["confusion"]) == (~samples["correct"]).sum()
    numbers = [number for *_, number in record.details["confusion"]]
    assert numbers == sorted(numbers, reverse=True)
    assert sum(row["count"] for row in record.details["reliability"]) == 210
    assert record.counts == {"samples": 210, "classes": 7, "templates": 3, "prompts": 24}
    assert record.task == "animals" and record.split == "test" and len(record.hashes["prompts"]) == 64


def test_columns_hold_the_five_most_probable_classes_in_order():
    samples = run(planted()).samples
    assert samples["id"][:2].tolist() == ["i0", "i1"]
    falling = [samples["probability"], *(samples[f"probability_{place}"] for place in range(2, 6))]
    assert all((a >= b).all() for a, b in itertools.pairwise(falling))
    top5 = np.stack([samples["predicted"], *(samples[f"predicted_{place}"] for place in range(2, 6))])
    assert (top5 == samples["target"]).any(axis=0).mean() == run(planted()).record.metrics["top5"].value


def test_the_order_of_the_classes_in_a_record_changes_nothing():
    first, moved = run(planted()), run(planted(order="gacebfd"))
    assert moved.record.metrics["mean_per_class"].value == pytest.approx(first.record.metrics["mean_per_class"].value)
    for name in ("accuracy", "top1", "top5"):
        assert moved.record.metrics[name] == first.record.metrics[name]
    assert moved.record.metrics["ece"].value == pytest.approx(first.record.metrics["ece"].value, abs=1e-6)
    assert moved.record.details["per_class"] == first.record.details["per_class"]
    key = lambda row: (row[0], row[1])
    assert sorted(moved.record.details["confusion"], key=key) == sorted(first.record.details["confusion"], key=key)
    for name in ("predicted", "predicted_2", "correct", "target"):
        assert moved.samples[name].tolist() == first.samples[name].tolist()


def test_other_templates_and_the_first_name_alone_are_settings():
    inputs = planted()
    assert run(inputs, templates="bare").record.details["templates"] == ["{}"]
    assert run(inputs, templates="photo").record.counts["prompts"] == 8
    assert run(inputs, templates="the {}.").record.details["templates"] == ["the {}."]
    first = run(inputs, names="first").record
    assert first.counts["prompts"] == 21 and first.hashes["prompts"] != run(inputs).record.hashes["prompts"]
    with pytest.raises(ConfigError, match="openai_imagenet_best7"):
        run(inputs, templates="openai_imagenet_best")
    assert len(words(read_task("imagenet"), "openai_imagenet_best7").templates) == 7


def test_a_task_of_pools_is_asked_for_imagenets_classes():
    asked = words(read_task("objectnet"))
    assert len(asked.names) == 1000 and len(asked.templates) == 80
    task = read_task("objectnet")
    generator = numpy_generator(0, "pools")
    photo = words(task, "photo")
    prompts = {fill("a photo of a {}.", name): generator.normal(size=16) for names in photo.names.values() for name in names}
    keys = tuple(task.display_names())
    # Each picture is the prompt of one of its class's ImageNet classes.
    pools = [task.superclass_map[key] for key in keys]
    rows = np.stack([prompts[fill("a photo of a {}.", photo.names[pool[-1]][0])] for pool in pools]).astype(np.float32)
    features = Features(rows=rows, targets=np.arange(len(keys)), classes=keys)
    inputs = ArrayInputs(task, {"test": features}, prompt_rows=prompts)
    outcome = run(inputs, templates="photo")
    assert outcome.record.headline.value > 0.98  # two classes may share a prompt
    assert outcome.record.config["pooled_from"] == "imagenet"


def test_folds_of_the_test_samples_are_averaged_if_the_samples_say_theirs():
    inputs = planted(a_task(folds=Folds(count=2, split="both")))
    assert "folds" not in run(inputs).record.details
    features = inputs.features("test")
    member = np.array(["1" if k % 3 else "1,2" for k in range(210)])
    folded = ArrayInputs(inputs.task, {"test": dataclasses.replace(features, groups={"fold": member})},
                         prompt_rows=inputs._prompts, scale=30.0)  # fmt: skip
    outcome = run(folded)
    correct = outcome.samples["correct"]
    expected = [correct.mean(), correct[np.arange(210) % 3 == 0].mean()]
    assert list(outcome.record.details["folds"].values()) == pytest.approx(expected)
    assert outcome.record.headline.value == pytest.approx(np.mean(expected))


def test_several_labels_are_scored_by_average_precision_for_each():
    task = a_task(kind="multilabel", metric="map_11_point")
    inputs = planted()
    features = inputs.features("test")
    labels = np.eye(7, dtype=np.int64)[features.targets]
    several = ArrayInputs(task, {"test": dataclasses.replace(features, targets=labels)}, prompt_rows=inputs._prompts)
    outcome = run(several)
    assert list(outcome.record.metrics) == ["map_11_point"]
    assert np.mean(list(outcome.record.details["per_class"].values())) == pytest.approx(outcome.record.headline.value)
    assert "target" not in outcome.samples


def test_samples_without_labels_and_retrieval_tasks_are_refused():
    inputs = planted()
    bare = ArrayInputs(inputs.task, {"test": Features(rows=inputs.features("test").rows)}, prompt_rows=inputs._prompts)
    with pytest.raises(DataError, match="no labels"):
        run(bare)
    assert ZEROSHOT.reason_not(read_task("coco")) is not None and ZEROSHOT.reason_not(inputs.task) is None


def test_top_classes_equal_a_stable_sort_also_with_ties_and_classes_at_minus_infinity():
    logits = np.round(2 * numpy_generator(0, "ties").normal(size=(50, 9)))
    logits[:, [2, 5, 7, 8]] = -np.inf
    logits[:25, [0, 1]] = -np.inf
    order, probabilities = top_classes(logits, 6)
    assert np.array_equal(order, np.argsort(-logits, axis=1, kind="stable")[:, :6])
    assert (probabilities[:25, 3:] == 0).all()
