"""Shifts: a head's accuracy in distribution and on what is shifted, on the same classes, pooled the same way.

x is the accuracy on the reference's samples of the shift's classes, y that on the shift; a shift of videos has pm-0 and pm-10
(`pm_k`), whose mean is its y. Intervals are Clopper-Pearson at 99.5 %, as in the paper.

Letters: N, M samples, S classes of the reference, C of the shift.
Source: Taori et al. 2020; CLIP, section 3.3.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ostension.data.task import Task, shipped, task_names
from ostension.evals.class_maps import ClassMap, class_map, partner, pool
from ostension.evals.heads import Head
from ostension.evals.metrics import Interval
from ostension.evals.pm_k import K, read_frames, right_in_set, score_frames
from ostension.evals.records import Metric
from ostension.evals.statistics import CLIP_CONFIDENCE, clopper_pearson
from ostension.shapes import Bool, Float
from ostension.store import Features

ZERO_SHOT, OWN_NAMES, FULL = "zero-shot", "zero-shot, own names", "probe"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """What one head reaches on one shift.

    Attributes:
        shift: its name.
        kind: the head's.
        x, y: accuracy in distribution and on the shift; None where it was not measured.
        parts: of a shift of videos "pm_0" and, where the lists of frames are known, "pm_10".
    """

    shift: str
    kind: str
    x: Metric | None = None
    y: Metric | None = None
    parts: dict[str, Metric] = dataclasses.field(default_factory=dict)

    def tree(self) -> dict[str, Any]:
        """As JSON: {"shift", "kind", "x", "y", "pm_0", ...}, accuracies as [share, samples]."""
        told = {"x": self.x, "y": self.y, **self.parts}
        pairs = {name: None if one is None else [one.value, one.count] for name, one in told.items()}
        return {"shift": self.shift, "kind": self.kind, **pairs}


def shift_tasks(source: str) -> list[Task]:
    """The shipped tasks that keep or pool the classes of `source`."""
    found = (shipped(name) for name in task_names())
    return [task for task in found if source in (task.classes_of, task.superclass_of)]


def right(logits: Float[np.ndarray, "N C"], targets: np.ndarray) -> Bool[np.ndarray, " N"]:
    """Whether the largest logit is the target, or in the set of targets."""
    predicted = logits.argmax(axis=1)
    return right_in_set(predicted, targets) if targets.ndim == 2 else predicted == targets


def share(correct: Bool[np.ndarray, " N"], chance: float | None = None) -> Metric:
    """The share of right ones with its 99.5 % Clopper-Pearson interval."""
    successes, count = int(correct.sum()), len(correct)
    interval = clopper_pearson(successes, count, CLIP_CONFIDENCE)
    return Metric(value=successes / count, count=count, chance=chance, interval=interval)


def read_partner(head_logits: Float[np.ndarray, "N S"], reference: Features, found: ClassMap) -> Metric:
    """x: the accuracy on the reference's samples of the shift's classes, from the reference's logits."""
    assert reference.targets is not None
    pooled, targets, _ = partner(head_logits, reference.targets, found)
    return share(pooled.argmax(axis=1) == targets)


def read_shift(
    task: Task, logits: Float[np.ndarray, "M C"], samples: Features, *, frames: str = "", kind: str = ZERO_SHOT
) -> Reading:
    """y of a shift, from logits of its own classes.

    Args:
        frames: a folder with the published lists of frames, or one with a folder of them for each task.
    """
    assert samples.targets is not None
    chance = 1 / task.num_classes
    if task.metric != "pm_k":
        return Reading(shift=task.name, kind=kind, y=share(right(logits, samples.targets), chance))
    if not frames:
        return Reading(shift=task.name, kind=kind, parts={"pm_0": share(right(logits, samples.targets), chance)})
    classes = task.display_names()
    folder = Path(frames) / task.name if (Path(frames) / task.name).is_dir() else Path(frames)
    keys = list(classes)
    predicted = [keys[place] for place in logits.argmax(axis=1)]
    alone, together = score_frames(predicted, samples.ids, read_frames(folder, classes), K)
    parts = {"pm_0": share(alone, chance), f"pm_{K}": share(together)}
    both = sum(part.value for part in parts.values()) / 2
    return Reading(shift=task.name, kind=kind, y=Metric(value=both, count=len(alone), chance=None), parts=parts)


def read_pooled(
    head: Head, task: Task, reference_logits: np.ndarray | None, reference: Features | None, samples: Features | None,
    *, frames: str = "",
) -> Reading:  # fmt: skip
    """x and y of a task that keeps or pools the classes of the head."""
    found = class_map(task)
    reading = Reading(shift=task.name, kind=head.kind)
    if samples is not None:
        reading = read_shift(task, pool(head.logits(samples), found), samples, frames=frames, kind=head.kind)
    if reference is not None and reference_logits is not None:
        reading = dataclasses.replace(reading, x=read_partner(reference_logits, reference, found))
    return reading


def mean_reading(readings: Sequence[Reading]) -> Reading:
    """The mean over draws of the training samples; without an interval if there are several."""
    first = readings[0]
    if len(readings) == 1:
        return first

    def mean(metrics: Sequence[Metric | None]) -> Metric | None:
        known = [one for one in metrics if one is not None]
        if not known:
            return None
        return dataclasses.replace(known[0], value=statistics.fmean(one.value for one in known), interval=None)

    parts = {name: mean([one.parts[name] for one in readings]) for name in first.parts}
    return dataclasses.replace(
        first, x=mean([one.x for one in readings]), y=mean([one.y for one in readings]),
        parts={name: part for name, part in parts.items() if part is not None},
    )  # fmt: skip


def drop_metrics(readings: Sequence[Reading]) -> dict[str, Metric]:
    """The means over shifts of y and of x, x - y, and how many times as many errors the shifts make.

    The means of x and y are over the shifts that have both; without any, of what there is. Intervals of means and of x - y are
    normal ones at 95 %: shifts have samples of their own, while every x is of the same reference, so that their mean is no
    surer than one of them.
    """
    both = [one for one in readings if one.x is not None and one.y is not None]
    used = both or list(readings)
    ys = [one.y for one in used if one.y is not None]
    xs = [one.x for one in used if one.x is not None]
    found: dict[str, Metric] = {}
    if ys:
        found["shifted"] = ys[0] if len(ys) == 1 else _mean(ys, error_of_own(ys))
    if xs:
        found["reference"] = xs[0] if len(xs) == 1 else _mean(xs, error_of_shared(xs))
    if both:
        x, y = found["reference"].value, found["shifted"].value
        error = math.hypot(error_of_own(ys), error_of_shared(xs))
        count = found["shifted"].count
        drop = Metric(value=x - y, count=count, direction="lower", chance=0.0, interval=_normal(x - y, error))
        found["drop"] = drop
        if x < 1:
            found["error_ratio"] = Metric(value=(1 - y) / (1 - x), count=count, direction="lower", chance=1.0)
    return found


def error_of_own(shares: Sequence[Metric]) -> float:
    """The standard error of a mean of shares that each have their own samples."""
    return math.sqrt(sum(one.value * (1 - one.value) / one.count for one in shares)) / len(shares)


def error_of_shared(shares: Sequence[Metric]) -> float:
    """The largest standard error that a mean of shares can have, whatever samples they share."""
    return sum(math.sqrt(one.value * (1 - one.value) / one.count) for one in shares) / len(shares)


def _mean(metrics: Sequence[Metric], error: float) -> Metric:
    value = statistics.fmean(metric.value for metric in metrics)
    return Metric(value=value, count=sum(metric.count for metric in metrics), interval=_normal(value, error))


def _normal(value: float, error: float) -> Interval:
    half = statistics.NormalDist().inv_cdf(0.975) * error
    return Interval(value - half, value + half, 0.95, "normal")
