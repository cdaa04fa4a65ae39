"""Bias: which labels pass a threshold of probability for which group, and the labels whose frequency differs most.

Details: {"labels": [...], "by": {split: [{"threshold", "significant", "used", "labels_each", "only", "skewed"}, ...]}}, each
entry the tree of `evals.bias.labels.LabelSkew`, thresholds in the order of the settings and "top" last.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ostension.config import require, to_tree
from ostension.data.task import Task
from ostension.evals.bias.groups import CONFIDENCE, group_columns, known_groups
from ostension.evals.bias.label_sets import read_label_set
from ostension.evals.bias.labels import TOP, Threshold, label_skew
from ostension.evals.inputs import Inputs
from ostension.evals.protocol import Outcome
from ostension.evals.protocols.bias_harms import text_rows
from ostension.evals.records import Metric, Record
from ostension.evals.zero_shot import softmax
from ostension.files import sha256_json

SPLITS = ("test",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Which labels, and when a sample has one.

    Attributes:
        label_set: a shipped label set's name, or a TOML file; the task's own classes if empty.
        thresholds: of probability, each measured by itself; the best label alone ("top") always is too.
        by: "race", "race+gender", "race=White"; every field of the task if empty.
        top: how many of the most skewed labels to report.
        confidence: of the intervals.
    """

    label_set: str = ""
    thresholds: tuple[float, ...] = (0.005, 0.04)
    by: tuple[str, ...] = ()
    top: int = 20
    confidence: float = CONFIDENCE

    def __post_init__(self):
        require(all(0 < value < 1 for value in self.thresholds), "thresholds", self.thresholds, "above 0, below 1")
        require(self.top >= 1, "top", self.top, "1 or more")
        require(0 < self.confidence < 1, "confidence", self.confidence, "above 0, below 1")


def reason_not(task: Task) -> str | None:
    """Why the probe cannot be run on this task."""
    return None if task.groups else "the task has no groups to compare"


def run(inputs: Inputs, config: Config, *, seed: int) -> Outcome:
    """Labels by group at each threshold, on the split `test`.

    Raises:
        ConfigError: for an unknown label set or field.
    """
    features = inputs.features("test")
    thresholds: tuple[Threshold, ...] = (*config.thresholds, TOP)
    columns = group_columns(known_groups(inputs.task, features), config.by)
    hashes = inputs.hashes()
    if config.label_set:
        labels = read_label_set(config.label_set)
        rows, names = text_rows(inputs, labels)[0], labels.texts
        hashes = {**hashes, "label_set": sha256_json(to_tree(labels))}
    else:
        rows, names = inputs.classifier(), tuple(inputs.names())
    probabilities = softmax(inputs.scale * (features.unit() @ rows.T))
    found = {
        split: [
            label_skew(probabilities, names, groups, threshold, top=config.top, confidence=config.confidence, seed=seed)
            for threshold in thresholds
        ]
        for split, groups in columns.items()
    }
    count = len(features)
    metrics = {}
    for split, several in found.items():
        for skew in several:
            at = skew.threshold if isinstance(skew.threshold, str) else f"{skew.threshold:g}"
            share = skew.significant / len(names)
            metrics[f"labels_apart_{split}_at_{at}"] = Metric(value=share, count=len(names), direction="lower")
    record = Record(
        protocol="bias-labels", subject=f"{inputs.model_name} on {inputs.task.title}: labels by group", metrics=metrics,
        config=to_tree(config), hashes=hashes, counts={"samples": count, "labels": len(names), "splits": len(columns)},
        seeds=(seed,), task=inputs.task.name, model=inputs.model_name, split=inputs.name_of("test"),
        details={"labels": list(names), "by": {split: [skew.tree() for skew in several] for split, several in found.items()}},
    )  # fmt: skip
    best = probabilities.argmax(axis=1)
    samples = {
        "id": np.array(features.ids), "label": np.array(names, dtype=object)[best].astype(str),
        "probability": probabilities[np.arange(count), best], **columns,
    }  # fmt: skip
    return Outcome(record=record, samples=samples)
