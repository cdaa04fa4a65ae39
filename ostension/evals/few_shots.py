"""Few labelled samples a class: which are drawn, and what is held out to choose on.

Letters: N samples, n of them chosen, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ostension.errors import DataError
from ostension.evals.scores import Targets
from ostension.runtime import numpy_generator
from ostension.shapes import Bool, Int
from ostension.store import Features


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
