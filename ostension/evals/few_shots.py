"""Few labelled samples a class: which are drawn, and what is held out to choose on.

Letters: N samples, n of them chosen, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from ostension.data.task import Task
from ostension.data.task_parts import chance_level
from ostension.errors import DataError
from ostension.evals import metrics
from ostension.evals.records import Metric
from ostension.evals.scores import Groups, Targets, score_name, score_value
from ostension.runtime import numpy_generator, seed_for
from ostension.shapes import Bool, Float, Int
from ostension.store import Features
from ostension.train.strength_search import PathProbe

Regime = Literal["paper", "few"]
MOST_JUDGED = 4  # samples a class that CoOp's regime chooses on: 1, 2, 4, 4, 4 for 1, 2, 4, 8, 16 shots


def nested_shots(labels: Int[np.ndarray, " N"], shots: Sequence[int], seed: int) -> dict[int, Int[np.ndarray, " n"]]:
    """Positions of k samples of each class for every k of `shots`, each draw inside the larger ones.

    A class with fewer than k samples gives all that it has (`short_classes` counts them). So the points of a curve differ by
    more samples, not by other ones.

    Raises:
        DataError: for numbers of shots that are not above 0.
    """
    if not shots or min(shots) < 1:
        raise DataError(f"shots are {list(shots)}", expected="one or more numbers from 1")
    generator = numpy_generator(seed, "nested-shots")
    orders = [generator.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    return {k: np.sort(np.concatenate([order[:k] for order in orders])) for k in shots}


def short_classes(labels: Int[np.ndarray, " N"], shots: int) -> int:
    """How many classes that occur have fewer samples than that."""
    return int((np.unique(labels, return_counts=True)[1] < shots).sum())


def held_out(targets: Targets, share: float, seed: int) -> Bool[np.ndarray, " N"]:
    """Which samples are held out to choose on: a share of each class, at least one where a class has two or more, and never
    all of it; of samples with several labels, a share of all.

    Raises:
        DataError: if that leaves nothing to choose on.
    """
    generator = numpy_generator(seed, "held-out")
    chosen = np.zeros(len(targets), dtype=bool)
    groups = [np.arange(len(targets))] if targets.ndim == 2 else [np.flatnonzero(targets == one) for one in np.unique(targets)]
    for members in groups:
        if len(members) > 1:
            count = min(max(1, round(share * len(members))), len(members) - 1)
            chosen[generator.permutation(members)[:count]] = True
    if not chosen.any():
        raise DataError("no class has two samples, so none can be held out to choose the strength on", fix="add a split val")
    return chosen


def joined(*parts: Features) -> Features:
    """The rows of several splits, one after the other, with targets and groups."""
    first = parts[0]
    shared = [name for name in first.groups if all(name in part.groups for part in parts)]
    targets = [part.targets for part in parts if part.targets is not None]
    return Features(
        rows=np.concatenate([part.array() for part in parts]),
        targets=np.concatenate(targets) if len(targets) == len(parts) else None,
        classes=first.classes,
        groups={name: np.concatenate([np.asarray(part.groups[name]) for part in parts]) for name in shared},
        ids=tuple(f"{number}/{one}" for number, part in enumerate(parts) for one in part.ids),
        facts=first.facts,
    )


@dataclasses.dataclass(frozen=True)
class Draw:
    """Some samples a class, and those that settings are chosen on.

    Attributes:
        shots: how many a class.
        train: (n,) positions in the split "train".
        judged: (m,) positions in the split that `judged_in` names.
        judged_in: "val", or "train" where there is no "val".
    """

    shots: int
    train: Int[np.ndarray, " n"]
    judged: Int[np.ndarray, " m"]
    judged_in: str


def draws(
    train: Int[np.ndarray, " N"],
    val: Int[np.ndarray, " M"] | None,
    *,
    shots: Sequence[int],
    regime: Regime,
    share: float,
    seed: int,
) -> list[Draw]:
    """One draw for every number of shots, nested in each other.

    In the regime "paper" settings are chosen on the whole split "val", which is not what few labels mean, but what the paper
    did (openai/CLIP, issue 128); where there is none, on a share of train that nothing is drawn from. In the regime "few" they
    are chosen on min(shots, 4) further samples a class, out of "val" or else out of what is left of train.

    Args:
        train, val: labels.

    Raises:
        DataError: if nothing is left to choose on.
    """
    if regime == "paper":
        out = np.zeros(len(train), dtype=bool) if val is not None else held_out(train, share, seed)
        pool = np.flatnonzero(~out)
        judged = np.flatnonzero(out) if val is None else np.arange(len(val))
        place = "train" if val is None else "val"
        return [Draw(k, pool[rows], judged, place) for k, rows in nested_shots(train[pool], shots, seed).items()]
    found = []
    for k, rows in nested_shots(train, shots, seed).items():
        left = np.setdiff1d(np.arange(len(train)), rows) if val is None else np.arange(len(val))
        labels = train if val is None else val
        if not len(left):
            what = f"all {len(train)} samples of train are drawn at {k} a class, so none is left to choose on"
            raise DataError(what, fix="ask for fewer shots, or add a split val")
        few = min(k, MOST_JUDGED)
        judged = left[nested_shots(labels[left], (few,), seed_for(seed, "judged"))[few]]
        found.append(Draw(k, rows, judged, "train" if val is None else "val"))
    return found


def score_of(
    task: Task,
    probe: PathProbe,
    rows: Float[np.ndarray, "M D"],
    targets: Targets,
    groups: Groups | None = None,
    offset: Float[np.ndarray, "M C"] | None = None,
) -> Callable[[float], float]:
    """The task's own score on validation samples, as a function of the strength."""

    def score(strength: float) -> float:
        logits = probe.logits(strength, rows, offset)
        return score_value(task, logits, targets, groups, independent=probe.independent)

    return score


def mean_metric(
    task: Task, values: Sequence[float], correct: Bool[np.ndarray, "R N"], targets: Int[np.ndarray, " N"], *, seed: int
) -> Metric:
    """The mean of a score over R draws.

    For accuracies the interval is a bootstrap over test samples of how often each was right: it covers the choice of test
    samples, not that of training samples, whose spread stands in the curve. Other metrics have none.
    """
    chance = chance_level(task.metric, task.num_classes, None)[0]
    interval = None
    if score_name(task) in ("accuracy", "mean_per_class"):
        _, members, sizes = np.unique(targets, return_inverse=True, return_counts=True)
        each = np.ones(len(targets)) if score_name(task) == "accuracy" else len(targets) / (len(sizes) * sizes[members])
        interval = metrics.bootstrap_interval(each * correct.mean(axis=0), seed=seed)
    return Metric(value=float(np.mean(values)), count=len(targets), chance=chance, interval=interval)
