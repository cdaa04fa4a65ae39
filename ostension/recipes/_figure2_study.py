"""CLIP's Figure 2 from start to end: four runs, the record, the page. A rerun goes on where the last one stopped."""

from __future__ import annotations

import dataclasses
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ostension import files, runtime
from ostension.config import require
from ostension.evals import metrics, report
from ostension.evals.charts import Line, line_chart
from ostension.evals.data_efficiency import ratio
from ostension.evals.records import Metric, Record, save_records
from ostension.recipes import figure2
from ostension.recipes._emoji_batches import emoji_set
from ostension.recipes._figure2_evaluation import SPLIT
from ostension.runlog import Tracker, read_records
from ostension.train.pretraining import Pretraining
from ostension.train.step import backward

RECORD, PAGE = "figure2.json", "figure2.html"
SUBJECTS = {
    "figure2-language-model": "transformer language model",
    "figure2-bag-prediction": "bag of words, predicted",
    "figure2-bag-contrastive": "bag of words, contrastive",
    "figure2-clip": "CLIP",
}
# (slower, faster, how many times fewer images the faster needed in the paper, where it says so)
STEPS_OF_THE_PAPER = (
    ("figure2-language-model", "figure2-bag-prediction", 3.0),
    ("figure2-bag-prediction", "figure2-bag-contrastive", 4.0),
    ("figure2-bag-contrastive", "figure2-clip", None),
)
TRIALS = (2, 6)  # steps of two runs, whose difference is what a step costs without the start and the end


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What is asked for: steps of each run, the seed, or the smoke form, which only shows that everything runs."""

    steps: int = figure2.STEPS
    seed: int = 0
    smoke: bool = False

    def __post_init__(self):
        require(self.steps >= 2, "--steps", self.steps, "2 or more")

    def run_of(self, name: str) -> Pretraining:
        """One curve's run."""
        return figure2.smoke(name) if self.smoke else figure2.recipe(name, self.steps, seed=self.seed)


def run_study(config: StudyConfig, folder: Path, trackers: Sequence[Tracker] = ()) -> Path | None:
    """Do what is left in `folder`; the page, or None if a signal asked for a stop.

    Raises:
        ConfigError: if `folder` holds runs of another configuration.
    """
    records: dict[str, Record] = {}
    for name in figure2.OFFERS:
        print(f"figure2: {SUBJECTS[name]}", file=sys.stderr, flush=True)
        pretraining = config.run_of(name)
        if pretraining.run(folder / name, trackers=trackers).status == "stopped":
            print("figure2: stopped; the same command goes on from there", file=sys.stderr)
            return None
        records[f"curve/{name}"] = curve_record(name, pretraining, folder / name, config.seed)
    for slow, fast, told in STEPS_OF_THE_PAPER:
        records[f"ratio/{fast}"] = ratio_record(records[f"curve/{slow}"], records[f"curve/{fast}"], told)
    save_records(folder / RECORD, records)
    files.write_text(folder / PAGE, page(records))
    return folder / PAGE


def curve_record(name: str, pretraining: Pretraining, folder: Path, seed: int) -> Record:
    """Accuracy after each number of images, and what an image cost."""
    batch_size = pretraining.batches.build(pretraining.initial_model()).batch_size
    measured, count, classes = {}, 0, 0
    for row in read_records(folder, ["evaluation"]):
        count, classes = int(row["samples"]), int(row["classes"])
        right = round(row["top1"] * count)
        measured[f"images_{row['step'] * batch_size}"] = Metric(
            value=row["top1"], count=count, chance=1 / classes, interval=metrics.wilson_interval(right, count)
        )
    emoji = emoji_set(pretraining.batches.every)  # type: ignore[attr-defined]
    return Record(
        protocol="figure2", subject=SUBJECTS[name], metrics=measured, seeds=(seed,),
        config={
            "recipe": name, "steps": pretraining.train.steps, "batch_size": batch_size, "split": SPLIT,
            "processor": runtime.cpu_name(), **cost(pretraining, batch_size),
        },
        hashes={"data": emoji.fingerprint}, counts={"samples": count, "classes": classes},
    )  # fmt: skip


def cost(pretraining: Pretraining, batch_size: int) -> dict[str, Any]:
    """Weights that are trained, GFLOP and processor seconds of training for an image.

    The operations are those of products and convolutions, counted while one step of float32 weights ran. The seconds are
    of all threads, from the difference of two short runs.
    """
    from torch.utils.flop_counter import FlopCounterMode

    model = pretraining.initial_model()
    batch = pretraining.batches.build(model).batch(0)
    objective = pretraining.objective.build(model)
    objective.module.train()
    with FlopCounterMode(display=False) as counter:
        backward(objective, batch)
    trained = sum(weight.numel() for weight in objective.module.parameters() if weight.grad is not None)
    seconds = []
    for steps in TRIALS:
        changes = {"steps": steps, "evaluate_at": [], "schedule.warmup_steps": 1, "checkpoint.every": TRIALS[1]}
        changed = pretraining.changed({f"train.{key}": value for key, value in changes.items()})
        trial = dataclasses.replace(changed, evaluation=None)
        with tempfile.TemporaryDirectory() as folder:
            started = time.process_time()
            trial.run(folder)
            seconds.append(time.process_time() - started)
    per_step = max(0.0, seconds[1] - seconds[0]) / (TRIALS[1] - TRIALS[0])
    return {
        "trained_weights": trained,
        "gflop_per_image": round(counter.get_total_flops() / len(batch) / 1e9, 4),
        "processor_s_per_image": round(per_step / batch_size, 6),
    }


def ratio_record(slow: Record, fast: Record, told: float | None) -> Record:
    """How many times the faster's images the slower needs, for the best that each of the two reached."""
    curves = [points(record) for record in (slow, fast)]
    measured, config = {}, {"slower": slow.subject, "faster": fast.subject, "paper": told}
    for whose, curve in zip(("slower", "faster"), curves, strict=True):
        accuracy = max(y for _, y in curve)
        value, how = ratio(curves[0], curves[1], accuracy)
        config[whose + "_accuracy"], config[whose + "_reading"] = accuracy, how
        if math.isfinite(value):
            measured[f"images_ratio_at_{whose}s_best"] = Metric(value=value, count=fast.counts["samples"], chance=1.0)
    return Record(
        protocol="figure2-ratio", subject=f"{fast.subject} against {slow.subject}", metrics=measured, config=config,
        hashes=fast.hashes, counts=fast.counts, seeds=fast.seeds,
    )  # fmt: skip


def points(record: Record) -> list[tuple[float, float]]:
    """A curve's record as (images, accuracy)."""
    return [(float(name.removeprefix("images_")), metric.value) for name, metric in record.metrics.items()]


def page(records: Mapping[str, Record]) -> str:
    """The plot and its tables as one HTML file."""
    curves = {name: record for name, record in records.items() if name.startswith("curve/")}
    first = next(iter(curves.values()))
    chance = next(iter(first.metrics.values())).chance
    told = "; ".join(
        f"{record.subject}: {100 * points(record)[-1][1]:.1f} percent after {points(record)[-1][0]:.0f} images"
        for record in curves.values()
    )
    chart = line_chart(
        [
            Line(name=record.subject, points=points(record), colour=number, marks=True)
            for number, record in enumerate(reversed(curves.values()), 1)
        ],
        title="Zero-shot accuracy against images seen", description=told, x_label="images seen", x_log2=True, y_from_zero=True,
        y_format=lambda value: f"{100 * value:g} %", width=660, height=320,
    )  # fmt: skip
    images = [f"{x:,.0f}" for x, _ in points(first)]
    accuracies = [[record.subject, *map(report.share, record.metrics.values())] for record in curves.values()]
    ratios = [ratio_row(record) for name, record in records.items() if name.startswith("ratio/")]
    costs = [cost_row(record) for record in curves.values()]
    return report.page(
        title="What a picture is asked of the words", eyebrow="Ostension, Figure 2",
        lead="Four ways to learn from the same captioned pictures, on one image tower: to say the caption, to predict its "
        "words, to pick its bag of words from the batch, and to pick the caption itself.",
        opening="",
        sections=[
            report.section(
                "results", "Accuracy against images seen",
                report.paragraph(
                    f"{first.counts['samples']} pictures in a drawing style that no run saw, each to be named among "
                    f"{first.counts['classes']} names. A guesser gets {report.percent(chance)}."
                ),
                report.figure("First guess right", chart, "card wide"),
                report.table(["images seen", *images], accuracies, caption="Accuracy with 95 % intervals"),
            ),
            report.section(
                "ratios", "Images for the same accuracy",
                report.paragraph(
                    "Read between the points on a log scale of images, at the best accuracy of the slower of the two, and at "
                    "that of the faster. What is drawn on past a curve's end says so."
                ),
                report.table(RATIO_HEAD, ratios, caption="Images for the same accuracy"),
            ),
            report.section("cost", "What an image costs in training", report.table(COST_HEAD, costs, caption="Cost")),
        ],
        footer=report.paragraph(f"Seed {first.seeds[0]}; record {RECORD}; made by ostension figure2."),
    )  # fmt: skip


RATIO_HEAD = ("", "at the slower's best", "at the faster's best", "in the paper, on ImageNet")
COST_HEAD = ("", "trained weights", "GFLOP an image", "processor seconds for 1,000 images")


def ratio_row(record: Record) -> list[str]:
    """A ratio's row: both readings, and what the paper found."""
    cells = []
    for whose in ("slower", "faster"):
        metric, how = record.metrics.get(f"images_ratio_at_{whose}s_best"), record.config[f"{whose}_reading"]
        value = "never" if metric is None else f"{'at least ' if how == 'at most' else ''}{metric.value:.1f} times"
        note = " (extrapolated)" if how == "extrapolated" else ""
        cells.append(f"{value}{note}, at {100 * record.config[whose + '_accuracy']:.1f} %")
    paper = record.config["paper"]
    return [record.subject, *cells, "" if paper is None else f"{paper:g} times"]


def cost_row(record: Record) -> list[str]:
    """A curve's cost row."""
    config = record.config
    return [
        record.subject, f"{config['trained_weights'] / 1e6:.1f} M", f"{config['gflop_per_image']:.3f}",
        f"{1000 * config['processor_s_per_image']:.2f}",
    ]  # fmt: skip
