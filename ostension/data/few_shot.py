"""K samples of each class, drawn as the published few-shot results drew theirs; base and new classes.

Source: Dassl's `generate_fewshot_dataset` and CoOp's data sets, whose k-shot files are pickles; this gives the same samples.
Letters: N samples, C classes, K shots.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from ostension.config import require
from ostension.errors import DataError
from ostension.runtime import numpy_generator
from ostension.shapes import Int

VAL_SHOTS = 4
HELD_SHARE, HELD_MOST = 0.1, 5000  # of all training samples, where nothing else is there to choose by (PAINT's split)


def draw_few_shot(
    train: Int[np.ndarray, " N"], val: Int[np.ndarray, " V"] | None, shots: int, seed: int
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " v"] | None]:
    """Positions of `shots` training samples a class, and of min(shots, 4) validation samples a class.

    One stream of random numbers is used up by the training samples, class after class in the order in which classes first
    occur, and then by the validation samples. A class with fewer samples gives all of them.

    Args:
        train: classes of the training samples, in the order of the published split.
        val: classes of the validation samples, or None.
        seed: 1, 2 and 3 in the published results.
    """
    require(shots >= 1, "shots", shots, "1 or more")
    stream = random.Random(seed)
    return _draw(train, shots, stream), None if val is None else _draw(val, min(shots, VAL_SHOTS), stream)


def hold_out(
    train: Int[np.ndarray, " N"], chosen: Int[np.ndarray, " n"], shots: int, seed: int
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " v"]]:
    """Positions to train on and to choose by, where a task has no validation split.

    With `shots` the chosen samples stay, and min(shots, 4) of the others of each class are to choose by. Without (0), a tenth
    of the chosen samples, 5,000 at most and of each class its share, is taken away from them.

    Raises:
        DataError: if no sample is left to choose by.
    """
    generator = numpy_generator(seed, "few_shot", "hold_out")
    pool = np.setdiff1d(np.arange(len(train)), chosen) if shots else chosen
    held = []
    for label in np.unique(train[pool]):
        members = generator.permutation(pool[train[pool] == label])
        share = min(HELD_SHARE, HELD_MOST / len(pool)) * len(members)
        held.append(members[: min(shots, VAL_SHOTS) if shots else min(max(1, round(share)), len(members) - 1)])
    val = np.sort(np.concatenate(held)) if held else np.empty(0, dtype=np.int64)
    if not len(val):
        raise DataError("no training sample is left to choose by", fix="fewer shots, or a task with a split called val")
    return (chosen if shots else np.setdiff1d(chosen, val)), val


def base_and_new(num_classes: int) -> tuple[range, range]:
    """The first half of the classes, rounded up, and the rest (CoCoOp's base-to-new protocol)."""
    half = -(-num_classes // 2)
    return range(half), range(half, num_classes)


def harmonic_mean(base: float, new: float) -> float:
    """2 b n / (b + n); 0 where both are 0."""
    return 2 * base * new / (base + new) if base + new else 0.0


def _draw(classes: Sequence[int] | np.ndarray, shots: int, stream: random.Random) -> np.ndarray:
    members: dict[int, list[int]] = {}
    for place, label in enumerate(np.asarray(classes).tolist()):
        members.setdefault(label, []).append(place)
    chosen = [stream.sample(places, shots) if len(places) >= shots else places for places in members.values()]
    return np.array([place for places in chosen for place in places], dtype=np.int64)
