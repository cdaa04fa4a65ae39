"""Which images are trained on: few a class, and a fifth of them held out to choose the settings.

Two modes. *faithful* draws and holds out as the released toolkit does: `random.Random(seed)` shuffles the file's order, and
the images held out are the first of each class. *honest* shuffles with our own generator, holds out at random, and never
takes a class's only image away from training.

Letters: N images, C classes.
Source: `sample_few_shot_subset` of vision-datasets 0.2.17 and `get_dataloader` of the toolkit, both read.
"""

from __future__ import annotations

import math
import random

import numpy as np

from ostension.evals.elevater.knowledge import Mode
from ostension.runtime import numpy_generator
from ostension.shapes import Int

HELD_OUT = 0.2


def draw_shots(targets: np.ndarray, num_classes: int, shots: int, seed: int, mode: Mode) -> Int[np.ndarray, " n"]:
    """Positions of about `shots` images of each class, in the order drawn; all of a class that has fewer.

    With several labels an image is taken while one of its classes lacks images, unless that would overfill another by half;
    images without a label count as a class of their own, as long as another class lacks images.

    Args:
        targets: (N,) classes, or (N, C) of 0 and 1.
    """
    order = _shuffled(len(targets), seed, mode, f"shots/{shots}")
    found = np.zeros(num_classes + 1, np.int64)  # the last place is for images without a label
    chosen = []
    for place in order:
        labels = _labels(targets, place, num_classes)
        held = found[labels]
        if held.min() >= shots or (held.min() > shots / 2 and held.max() > 1.5 * shots):
            continue
        chosen.append(place)
        found[labels] += 1
        if found[:num_classes].min() >= shots:
            break
    return np.array(chosen, np.int64)


def hold_out(targets: np.ndarray, seed: int, mode: Mode) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]]:
    """Positions to train on and positions held out: a fifth of each class, rounded up.

    With several labels images are held out one by one, always the next one with the first class that still lacks some.

    Args:
        targets: (N,) classes, or (N, C) of 0 and 1.
    """
    order = np.arange(len(targets)) if mode == "faithful" else np.array(_shuffled(len(targets), seed, mode, "hold-out"))
    out = np.zeros(len(targets), bool)
    shuffled = targets[order]
    if targets.ndim == 1:
        for label in np.unique(targets):
            members = order[shuffled == label]
            count = math.ceil(HELD_OUT * len(members))
            out[members[: count if mode == "faithful" else min(count, len(members) - 1)]] = True
    else:
        out[order[_cover(shuffled > 0)]] = True
    return np.flatnonzero(~out), np.flatnonzero(out)


def _cover(labels: np.ndarray) -> list[int]:
    """Rows that together have a fifth of each label's rows at least."""
    lacking = np.ceil(labels.sum(axis=0) * HELD_OUT).astype(np.int64)
    free = np.ones(len(labels), bool)
    chosen = []
    while (lacking > 0).any():
        label = int((lacking > 0).argmax())
        row = int((labels[:, label] & free).argmax())
        chosen.append(row)
        free[row] = False
        lacking -= labels[row]
    return chosen


def _shuffled(count: int, seed: int, mode: Mode, purpose: str) -> list[int]:
    if mode == "faithful":
        order = list(range(count))
        random.Random(seed).shuffle(order)
        return order
    return numpy_generator(seed, "elevater", purpose).permutation(count).tolist()


def _labels(targets: np.ndarray, place: int, num_classes: int) -> np.ndarray:
    if targets.ndim == 1:
        return targets[place : place + 1]
    found = np.flatnonzero(targets[place])
    return found if len(found) else np.array([num_classes])
