"""A linear probe on frozen features, exactly as the paper's: 97 strengths, chosen on validation, refitted on train and val.

Multinomial logistic regression on the tower's output before the projection, not normalised, without augmentation, to a
certified optimum (`train.logistic`). The strength is scikit-learn's C, the inverse of the penalty beside the *sum* of the
losses; the one that is chosen is kept when the probe is fitted again on train and val together. Where a task has no split
"val", a part of each class of "train", drawn by the seed, takes its place in the choice. Samples with several labels get a
sigmoid for each label. A class without a training sample is never predicted. Official folds are run one by one.

Details: "curve" [[strength, validation score], ...], "strength", "validation" (the score there), "chosen_on" (which samples),
"at_end", "gradient_norm" of the last fit and "passes" over the data of all; "clopper_pearson" [low, high] at 99.5 % of the
top-1 accuracy, the paper's interval; "notes"; and for one label a sample those of `zero_shot.measure`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np

from ostension.config import require, to_tree
from ostension.data.task import Task
from ostension.errors import DataError
from ostension.evals.few_shots import held_out, joined, score_of
from ostension.evals.inputs import Inputs
from ostension.evals.protocol import Outcome
from ostension.evals.records import Metric, Record
from ostension.evals.scores import per_sample, scores
from ostension.evals.statistics import CLIP_CONFIDENCE, clopper_pearson
from ostension.evals.zero_shot import measure
from ostension.store import Features
from ostension.store.key import Level
from ostension.train.logistic import TOLERANCE
from ostension.train.strength_search import GRID, Choice, PathProbe, paper_search, whole_grid

SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What is probed, and how the strength is chosen.

    Attributes:
        level: rows before the projection ("pre", as in the paper) or unit rows of the joint space ("post").
        normalise: make rows unit first; the paper does not.
        mode: try all 97 strengths ("grid"), or at most 15 of them as the paper searches ("paper").
        strength: this one and no other, instead of a choice.
        held_out: the share of train that is held out to choose on where there is no split "val".
        tolerance: of the solver's stop rule.
    """

    level: Level = "pre"
    normalise: bool = False
    mode: Literal["grid", "paper"] = "grid"
    strength: float | None = None
    held_out: float = 0.2
    tolerance: float = TOLERANCE

    def __post_init__(self):
        require(self.strength is None or 0 < self.strength < float("inf"), "strength", self.strength, "a number above 0")
        require(0 < self.held_out < 1, "held_out", self.held_out, "a share between 0 and 1")
        require(self.tolerance > 0, "tolerance", self.tolerance, "a number above 0")
        require(self.strength is None or self.mode == "grid", "mode", self.mode, "nothing with a strength that is given")


def reason_not(task: Task) -> str | None:
    """Why it cannot be run on this task."""
    if task.kind == "retrieval":
        return "a retrieval task has no classes"
    return "no split 'train'" if "train" not in task.splits else None


def run(inputs: Inputs, config: Config, *, seed: int) -> Outcome:
    """The probe's score on the test split.

    Raises:
        DataError: for splits without labels, or nothing to choose the strength on.
    """
    task = inputs.task
    train, test = labelled(inputs, "train", config.level), labelled(inputs, "test", config.level)
    val = labelled(inputs, "val", config.level) if inputs.has("val") else None
    notes: list[str] = []
    passes = 0
    choice: Choice | None = None
    whole = train if val is None else joined(train, val)
    if config.strength is not None:
        strength = config.strength
    else:
        fitted, judged = (train, val) if val is not None else _parted(train, config.held_out, seed)
        probe = _probe(task, fitted, config)
        score = score_of(task, probe, rows_of(judged, config.normalise), _targets(judged), judged.groups)
        choice = whole_grid(score) if config.mode == "grid" else paper_search(score)
        strength, passes = choice.strength, probe.path.passes
        notes += _notes(choice, probe)
    probe = _probe(task, whole, config)
    probe.approach(strength)
    logits = probe.logits(strength, rows_of(test, config.normalise))
    passes += probe.path.passes
    if strength in probe.unconverged:
        notes.append(f"the last fit stopped at a gradient of {probe.gradient_norms[strength]:.1e}")
    if absent := sum(1 for count in class_counts(whole, task.num_classes) if count == 0):
        notes.append(f"{absent} of {task.num_classes} classes have no training sample and are never predicted")
    measured, details = judge(task, logits, test, seed=seed)
    details |= {
        "strength": strength, "chosen_on": "given" if choice is None else "val" if val is not None else "a part of train",
        "curve": [] if choice is None else [list(point) for point in choice.curve],
        "validation": None if choice is None else choice.score, "at_end": None if choice is None else choice.at_end,
        "gradient_norm": probe.gradient_norms[strength], "passes": passes, "notes": notes,
    }  # fmt: skip
    record = Record(
        protocol="probe", subject=f"{inputs.model_name} on {task.title}", metrics=measured,
        config={**to_tree(config), "strengths": len(GRID)}, hashes=inputs.hashes(),
        counts={"samples": len(test), "classes": task.num_classes, "train": len(train), "val": 0 if val is None else len(val),
                "fitted": len(whole), "features": train.rows.shape[1]},
        seeds=(seed,), task=task.name, model=inputs.model_name, split=inputs.name_of("test"), details=details,
    )  # fmt: skip
    said = per_sample(task, logits, _targets(test), test.groups)
    if probe.independent:
        said["probability"] = 1 / (1 + np.exp(-logits.max(axis=1).astype(np.float64)))
    return Outcome(record=record, samples={"id": np.array(test.ids), **said})


def labelled(inputs: Inputs, split: str, level: Level) -> Features:
    """The rows of a split, which must have labels.

    Raises:
        DataError: if it has none, or no samples.
    """
    found = inputs.features(split, level)
    if found.targets is None or not len(found):
        what = "the samples have no labels" if len(found) else "there are no samples"
        raise DataError(what, source=f"{inputs.task.name}/{split}", expected="labelled samples")
    return found


def rows_of(features: Features, normalise: bool) -> np.ndarray:
    """Rows in memory, of unit length if asked."""
    return features.unit() if normalise else features.array()


def judge(task: Task, logits: np.ndarray, test: Features, *, seed: int) -> tuple[dict[str, Metric], dict[str, Any]]:
    """Metrics, the task's own first, and details of a classifier's logits on test samples."""
    targets = _targets(test)
    if targets.ndim == 2:
        return scores(task, logits, targets, test.groups, seed=seed, independent=True), {}
    measured, details = measure(task, logits, targets, test.groups, seed=seed)
    interval = clopper_pearson(int((logits.argmax(axis=1) == targets).sum()), len(targets), CLIP_CONFIDENCE)
    return measured, {**details, "clopper_pearson": [interval.low, interval.high]}


def class_counts(features: Features, num_classes: int) -> list[int]:
    """Samples of each class or label."""
    targets = _targets(features)
    counts = targets.sum(axis=0) if targets.ndim == 2 else np.bincount(targets, minlength=num_classes)
    return [int(count) for count in counts]


def _parted(train: Features, share: float, seed: int) -> tuple[Features, Features]:
    out = held_out(_targets(train), share, seed)
    return train.take(~out), train.take(out)


def _probe(task: Task, train: Features, config: Config) -> PathProbe:
    return PathProbe(
        rows_of(train, config.normalise), _targets(train), task.num_classes, tolerance=config.tolerance
    )  # fmt: skip


def _targets(features: Features) -> np.ndarray:
    assert features.targets is not None
    return features.targets


def _notes(choice: Choice, probe: PathProbe) -> list[str]:
    notes = []
    if choice.at_end is not None:
        what = f"the chosen strength {choice.strength:.3g} is the {choice.at_end} penalty of the grid"
        notes.append(f"{what}, so the best may lie beyond")
    if probe.unconverged:
        worst = max(probe.gradient_norms[one] for one in probe.unconverged)
        notes.append(f"{len(probe.unconverged)} fits stopped before their tolerance, at a gradient of {worst:.1e} at most")
    return notes
