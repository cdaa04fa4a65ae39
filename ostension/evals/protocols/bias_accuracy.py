"""Bias: accuracy by group and intersection, zero-shot beside a logistic regression on features.

Details: {"zero_shot": {split: rates}, "probe": {split: rates}, "strength", "validation"}, rates as in `evals.bias.groups` with
"p_corrected". The probe is there if the task has a split `train`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ostension.config import require, to_tree
from ostension.data.task import Task
from ostension.errors import ConfigError
from ostension.evals.bias.accuracy import accuracy_by_group, accuracy_tree, probe
from ostension.evals.bias.groups import CONFIDENCE, group_columns, known_groups, rate
from ostension.evals.inputs import Inputs
from ostension.evals.protocol import Outcome
from ostension.evals.records import Metric, Record
from ostension.store.key import Level

SPLITS = ("test",)
OF_PREDICTORS = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """How samples are split, and which features the probe sees.

    Attributes:
        by: "race", "race+gender", "race=White"; every field of the task if empty.
        probe: whether a logistic regression is fitted where there is a split `train`.
        level: its features: before the projection ("pre", as in CLIP) or unit rows of the joint space ("post").
        confidence: of the intervals.
    """

    by: tuple[str, ...] = ()
    probe: bool = True
    level: Level = "pre"
    confidence: float = CONFIDENCE

    def __post_init__(self):
        require(0 < self.confidence < 1, "confidence", self.confidence, "above 0, below 1")


def reason_not(task: Task) -> str | None:
    """Why the probe cannot be run on this task."""
    if not task.num_classes:
        return "a retrieval task has no classes"
    if task.takes_several:
        return "samples have several labels"
    return None if task.groups else "the task has no groups to compare"


def run(inputs: Inputs, config: Config, *, seed: int) -> Outcome:
    """Accuracy by group on the split `test`.

    Raises:
        ConfigError: for samples without labels, or a field that is not there.
    """
    features = inputs.features("test")
    if features.targets is None:
        raise ConfigError("the samples have no labels", expected="labels, to tell who is recognised")
    columns = group_columns(known_groups(inputs.task, features), config.by)
    guesses = {"zero_shot": inputs.logits("test").argmax(axis=1)}
    details: dict[str, Any] = {}
    if config.probe and inputs.has("train"):
        train, test = inputs.features("train", config.level), inputs.features("test", config.level)
        val = inputs.features("val", config.level) if inputs.has("val") else None
        if train.targets is None or (val is not None and val.targets is None):
            raise ConfigError("the training samples have no labels", expected="labels, for the logistic regression")
        held = None if val is None or val.targets is None else (val.array(), val.targets)
        fit = probe(train.array(), train.targets, test.array(), val=held, seed=seed)
        guesses["probe"] = fit.predicted
        details = {"strength": fit.strength, "validation": fit.validation}
    classes, count = tuple(inputs.names()), len(features)
    metrics: dict[str, Metric] = {}
    samples: dict[str, np.ndarray] = {"id": np.array(features.ids), "target": features.targets}
    for name, predicted in guesses.items():
        correct = predicted == features.targets
        rates, corrected = accuracy_by_group(correct, columns, confidence=config.confidence, seed=seed)
        details[name] = accuracy_tree(rates, corrected)
        whole = rate("all", int(correct.sum()), count, config.confidence)
        prefix = "" if name == "zero_shot" else "probe_"
        metrics[f"{prefix}accuracy"] = Metric(
            value=whole.share, count=count, chance=1 / len(classes), interval=whole.interval
        )
        for split, found in rates.items():
            metrics[f"{prefix}gap_{split}"] = Metric(value=found.gap, count=count, direction="lower")
        samples[f"predicted_{name}"] = predicted
        samples[f"correct_{name}"] = correct
    record = Record(
        protocol="bias-accuracy", subject=f"{inputs.model_name} on {inputs.task.title}: accuracy by group", metrics=metrics,
        config=to_tree(config), hashes=inputs.hashes(),
        counts={"samples": count, "classes": len(classes), "splits": len(columns)}, seeds=(seed,), task=inputs.task.name,
        model=inputs.model_name, split=inputs.name_of("test"), details=details,
    )  # fmt: skip
    return Outcome(record=record, samples={**samples, **columns})
