"""Clusters of unlabelled features, and which class each of them stands for.

Letters: N samples, C clusters and classes, E embedding.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from ostension.errors import LimitError
from ostension.shapes import Float, Int

RESTARTS, ROUNDS = 10, 100
MOST = 8  # classes: 40,320 ways to give them to clusters


def k_means(rows: Float[Tensor, "N E"], count: int, generator: torch.Generator) -> Int[np.ndarray, " N"]:
    """The cluster of each row: the best of ten runs by the summed squared distances from the centres.

    The first centres are drawn one after the other with chances that go with the squared distance from the nearest so far.
    """
    count = min(count, len(rows))
    best, found = float("inf"), torch.zeros(len(rows), dtype=torch.int64)
    for _ in range(RESTARTS):
        centres = _first(rows, count, generator)
        for _ in range(ROUNDS):
            distances = torch.cdist(rows, centres).square()
            nearest = distances.argmin(1)
            sums = torch.zeros_like(centres).index_add_(0, nearest, rows)
            sizes = nearest.bincount(minlength=count)[:, None]
            moved = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
            if torch.equal(moved, centres):
                break
            centres = moved
        total = float(distances.amin(1).sum())
        if total < best:
            best, found = total, nearest
    return found.numpy()


def _first(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    chosen = [int(torch.randint(len(rows), (1,), generator=generator))]
    while len(chosen) < count:
        distances = torch.cdist(rows, rows[chosen]).square().amin(1)
        chances = distances if float(distances.sum()) > 0 else torch.ones_like(distances)
        chosen.append(int(torch.multinomial(chances, 1, generator=generator)))
    return rows[chosen]


def as_classes(clusters: Int[np.ndarray, " N"], targets: Int[np.ndarray, " N"], count: int) -> Int[np.ndarray, " N"]:
    """The cluster of each sample as a class: of all ways to give one class to each cluster the one that is most often right.

    Raises:
        LimitError: for more classes than that many ways can be tried for.
    """
    if count > MOST:
        raise LimitError(f"{count} classes are too many for clusters", expected=f"{MOST} at most", fix="initial=zero-shot")
    table = np.zeros((count, count), dtype=np.int64)
    np.add.at(table, (clusters, targets), 1)
    ways = np.array(list(itertools.permutations(range(count))))
    right = table[np.arange(count), ways].sum(1)
    return ways[right.argmax()][clusters]
