"""Group robustness: the worst group, its gap to the average and every group's interval, zero-shot and for a probe.

The probe learns from the training split's classes, not its groups; its strength is the one with the best worst group (or
average) on the validation split, whose groups are looked at for that, or on a fifth of the training split.

Details: "groups" {cell: [accuracy, samples, low, high]} of the zero-shot classifier, "probe_groups" of the probe, "worst",
"probe_worst", "by_chance" and "probe_by_chance" (see `group_robustness`), "small" {cell: samples}, "absent" [cell], "curve"
[[strength, score]], "strength", "select".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ostension.config import require, to_tree
from ostension.data.task import Task
from ostension.evals.group_robustness import GroupResult, by_group
from ostension.evals.heads import Head, Search, head_of_labels, one_label, split_off
from ostension.evals.inputs import Inputs
from ostension.evals.protocol import Outcome
from ostension.evals.records import Metric, Record
from ostension.evals.scores import cells_of, scores
from ostension.evals.zero_shot import classify
from ostension.store import Features
from ostension.store.key import Level

SPLITS = ("test",)
OF_PREDICTORS = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What is compared.

    Attributes:
        split: the split that is measured.
        minimum: groups with fewer samples count in the average only.
        probe: whether a probe is fitted beside, where there is a training split.
        select: by what the probe's strength is chosen.
        level: the rows of the probe: before ("pre") or after ("post") the projection.
        search: for the strength: at most 15 fits as the paper searches, or the whole grid of 97.
    """

    split: str = "test"
    minimum: int = 1
    probe: bool = True
    select: Literal["worst-group", "average"] = "worst-group"
    level: Level = "pre"
    search: Search = "paper"

    def __post_init__(self):
        require(self.minimum >= 1, "minimum", self.minimum, "1 or more")


def reason_not(task: Task) -> str | None:
    """Why it cannot be run on this task."""
    if task.kind == "retrieval":
        return "a retrieval task has no classes"
    if task.takes_several:
        return "samples have several labels"
    if not task.groups:
        return "its record names no groups"
    measured = [split for name, split in task.splits.items() if name not in ("train", "val")]
    if measured and all(set(split.select) & set(task.groups) and _one_value(split.select) for split in measured):
        return "each of its splits is one group; `domains` and `robustness` compare them"
    return None


def _one_value(select: Mapping[str, Sequence[str]]) -> bool:
    return all(len(values) == 1 for values in select.values())


def run(inputs: Inputs, config: Config, *, seed: int) -> Outcome:
    """Accuracy by group.

    Raises:
        DataError: for samples without one label each, or without a value of a group.
    """
    task, features = inputs.task, inputs.features(config.split)
    targets, groups = one_label(features), dict(features.groups)
    logits = classify(inputs, config.split)
    predicted = logits.argmax(axis=1)
    found = by_group(task, predicted, targets, groups, minimum=config.minimum)
    chance = 1 / task.num_classes
    measured = found.metrics(chance=chance)
    if task.metric != "worst_group":
        own: dict[str, Metric] = scores(task, logits, targets, groups, seed=seed)
        measured = own | measured
    details: dict[str, Any] = {"groups": table(found), "worst": found.worst, "by_chance": found.by_chance}
    details |= {"small": dict(found.small), "absent": list(found.absent)}
    samples = {"id": np.array(features.ids), "group": cells_of(task, targets, groups), "correct": predicted == targets}
    if config.probe and inputs.has("train"):
        head = _probe(inputs, config, seed)
        assert head.choice is not None
        guessed = head.logits(inputs.features(config.split, config.level)).argmax(axis=1)
        probed = by_group(task, guessed, targets, groups, minimum=config.minimum)
        measured |= probed.metrics("probe_", chance)
        details |= {"probe_groups": table(probed), "probe_worst": probed.worst, "probe_by_chance": probed.by_chance,
                    "curve": [list(point) for point in head.choice.curve], "strength": head.choice.strength,
                    "select": config.select}  # fmt: skip
        samples["probe_correct"] = guessed == targets
    record = Record(
        protocol="groups", subject=f"{inputs.model_name} on the groups of {task.title}", metrics=measured,
        config={**to_tree(config), "scale": inputs.scale}, hashes=inputs.hashes(),
        counts={"samples": len(features), "classes": task.num_classes, "groups": len(found.cells)},
        seeds=(seed,), task=task.name, model=inputs.model_name, split=inputs.name_of(config.split), details=details,
    )  # fmt: skip
    return Outcome(record=record, samples=samples)


def table(found: GroupResult) -> dict[str, list[float | int]]:
    """{cell: [accuracy, samples, low, high]}, the lowest first."""
    rows: dict[str, list[float | int]] = {}
    for name, cell in sorted(found.cells.items(), key=lambda entry: entry[1].value):
        assert cell.interval is not None
        rows[name] = [cell.value, cell.count, cell.interval.low, cell.interval.high]
    return rows


def _probe(inputs: Inputs, config: Config, seed: int) -> Head:
    train = inputs.features("train", config.level)
    if inputs.has("val"):
        validation = inputs.features("val", config.level)
    else:
        train, validation = split_off(train, seed=seed)
    return head_of_labels(
        train, validation, level=config.level, search=config.search, judge=_judge(inputs.task, validation, config)
    )


def _judge(task: Task, validation: Features, config: Config):
    """How predictions on the validation part are scored."""
    targets, groups = one_label(validation), dict(validation.groups)

    def judge(predicted: np.ndarray) -> float:
        if config.select == "average":
            return float((predicted == targets).mean())
        found = by_group(task, predicted, targets, groups, minimum=config.minimum)
        return found.cells[found.worst].value

    return judge
