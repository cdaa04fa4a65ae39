"""Records picked for a page: which models and tasks there are, who has measured what, and what to call them."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from ostension.data.task import TASKS, shipped
from ostension.errors import OstensionError
from ostension.evals.chart_marks import Style, style_of
from ostension.evals.oracles import Comparison, check_oracles
from ostension.evals.records import Metric, Record

# What a metric is called on a page; others are written as they are.
METRIC_WORDS = {
    "accuracy": "accuracy",
    "mean_per_class": "mean per-class accuracy",
    "map_11_point": "11-point mAP",
    "roc_auc": "ROC AUC",
    "mean_top1_top5": "mean of top-1 and top-5",
    "macro_f1_present": "macro F1",
    "worst_group": "worst group",
    "pm_0": "pm-0 accuracy",
    "pm_10": "pm-10 accuracy",
}

# Likewise for protocols whose file names are no words.
PROTOCOL_WORDS = {"zeroshot": "zero-shot", "probe": "linear probe", "fewshot": "few-shot"}


def models(records: Sequence[Record]) -> list[str]:
    """The models, as they first occur."""
    return list(dict.fromkeys(record.model for record in records if record.model))


def kind(protocol: str) -> str:
    """A protocol's name without dashes and underscores, which a command line and a file name write differently."""
    return protocol.replace("-", "").replace("_", "")


def target(record: Record) -> str:
    """The task that a record is of, with its split where that is not "test": "pacs@sketch"."""
    return record.task if record.split in ("", "test") else f"{record.task}@{record.split}"


def tasks(records: Sequence[Record], protocol: str) -> list[str]:
    """The tasks that were measured with a protocol, as they first occur, named as by `target`."""
    return list(dict.fromkeys(target(record) for record in records if record.task and kind(record.protocol) == kind(protocol)))


def find(records: Sequence[Record], protocol: str, *, model: str | None = None, task: str | None = None) -> list[Record]:
    """The records of a protocol, perhaps of one model and one task."""
    return [
        record
        for record in records
        if kind(record.protocol) == kind(protocol) and model in (None, record.model) and task in (None, target(record))
    ]


def one(records: Sequence[Record], protocol: str, model: str, task: str) -> Record | None:
    """The record of a protocol for a model and a task; None if there is none."""
    return next(iter(find(records, protocol, model=model, task=task)), None)


def style(records: Sequence[Record], model: str) -> Style:
    """The look of a model, the same in every figure of a page."""
    return style_of(models(records).index(model))


def protocol_words(name: str) -> str:
    """A protocol's name for a reader."""
    return PROTOCOL_WORDS.get(kind(name), name.replace("_", " ").replace("-", " "))


def metric_words(name: str) -> str:
    """A metric's name for a reader."""
    return METRIC_WORDS.get(name, name.replace("_", " "))


@functools.cache
def task_title(name: str) -> str:
    """What the authors of a data set call it, with the split that is not "test"; for a task that does not ship, its name."""
    task, at, split = name.partition("@")
    try:
        return shipped(task).title + (f" ({split.replace('_', ' ')})" if at else "") if task in TASKS.names() else name
    except OstensionError:  # a record that cannot be read is the business of `task validate`, not of a heading
        return name


def published(record: Record) -> Comparison | None:
    """What was published of the record's first metric for the same model and weights, if its name says which it was."""
    if record.task not in TASKS.names():
        return None
    found = check_oracles(record, shipped(record.task))
    return next((one for one in found if one.metric == headline_name(record)), None)


# Words in the names of metrics that are differences of shares, to be told in points, and of those that are no shares at all.
DIFFERENCES = ("gain", "gap", "engineering", "ensembling", "difference", "effective", "relative", "delta")
NUMBERS = ("temperature", "nll", "brier", "rank", "needed", "slope", "parameters", "shots", "distance")


def words_of(name: str, metric: Metric) -> tuple[str, str]:
    """A value and its interval for a reader: ("41.2 %", "38.7 to 43.8"), points for differences, digits for other numbers."""
    values = [metric.value] if metric.interval is None else [metric.value, metric.interval.low, metric.interval.high]
    parts = name.split("_")
    if any(word in parts for word in DIFFERENCES):
        said, unit = [f"{100 * value:+.1f}".replace("-", "−") for value in values], " points"
    elif any(word in parts for word in NUMBERS) or not all(0 <= value <= 1 for value in values):
        said, unit = [f"{value:.4g}".replace("-", "−") for value in values], ""
    else:
        said, unit = [f"{100 * value:.1f}" for value in values], " %"
    return said[0] + unit, " to ".join(said[1:])


def headline_name(record: Record) -> str:
    """The name of the first metric."""
    return next(iter(record.metrics))


def slug(*parts: str) -> str:
    """Letters, digits and dashes: a part of a file's name."""
    plain = ("".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in part.lower()) for part in parts)
    return "-".join(filter(None, (part.strip("-") for part in plain)))
