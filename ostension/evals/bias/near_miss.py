"""The near-miss stress test: what adding almost-right captions to the classes does to a classifier.

Accuracy is measured over the classes alone, then with near misses beside them. A near miss is a text that is close to one
class and wrong for every sample ("a parking lot with a red car" for one with a white car), so whoever gets it is wrong. CLIP's
study of surveillance frames found 91.8 % before, 51.1 % after, and 40.7 % that chose the near miss.

Letters: N samples, C classes, K near misses.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ostension.errors import DataError
from ostension.evals.bias.groups import CONFIDENCE, Rate, rate
from ostension.evals.statistics import mcnemar
from ostension.shapes import Bool, Float, Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class NearMiss:
    """Before and after near misses were added.

    Attributes:
        before, after: accuracy.
        to_own: share of samples that got a near miss of their own class.
        to_any: share of samples that got any near miss.
        lost: share of samples that were right before and got a near miss.
        p: exact McNemar's p-value that accuracy did not change.
        by_class: (before, after, to a near miss of its own) for each class that has samples.
        right_before, right_after: (N,) correctness of each sample.
        chosen: (N,) the near miss that each sample got, -1 for none.
    """

    before: Rate
    after: Rate
    to_own: Rate
    to_any: Rate
    lost: Rate
    p: float
    by_class: dict[int, tuple[Rate, Rate, Rate]]
    right_before: Bool[np.ndarray, " N"]
    right_after: Bool[np.ndarray, " N"]
    chosen: Int[np.ndarray, " N"]


def near_miss(
    logits: Float[np.ndarray, "N C"],
    near: Float[np.ndarray, "N K"],
    targets: Int[np.ndarray, " N"],
    owners: Int[np.ndarray, " K"],
    *,
    confidence: float = CONFIDENCE,
) -> NearMiss:
    """Accuracy with and without near misses.

    Args:
        near: logits of the near misses.
        owners: the class that each near miss almost describes.

    Raises:
        DataError: for no samples, no near misses, or owners that are no class.
    """
    count, classes = logits.shape
    if not count or not near.shape[1]:
        raise DataError(f"{count} samples and {near.shape[1]} near misses", expected="one at least of both")
    if owners.min() < 0 or owners.max() >= classes:
        raise DataError(f"near misses of classes {owners.min()}..{owners.max()}", expected=f"0..{classes - 1}")
    before = logits.argmax(axis=1) == targets
    takes = near.max(axis=1) > logits.max(axis=1)
    chosen = np.where(takes, near.argmax(axis=1), -1)
    after = before & ~takes
    own = takes & (owners[chosen] == targets)

    def share(happened: np.ndarray, name: str = "all") -> Rate:
        return rate(name, int(happened.sum()), len(happened), confidence)

    by_class = {}
    for target in np.unique(targets).tolist():
        mine = targets == target
        by_class[target] = (share(before[mine]), share(after[mine]), share(own[mine]))
    return NearMiss(
        before=share(before), after=share(after), to_own=share(own), to_any=share(takes), lost=share(before & takes),
        p=mcnemar(int((before & ~after).sum()), int((after & ~before).sum())), by_class=by_class,
        right_before=before, right_after=after, chosen=chosen,
    )  # fmt: skip
