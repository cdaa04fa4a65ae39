"""Groups from pairs: the pairs that matter at every threshold, and the groups at one of them.

Of all pairs that a search finds, a `Forest` keeps a minimum spanning forest: at most one pair fewer than there are candidates,
and for **every** threshold it falls into the same groups as all pairs together. So a threshold can be changed without a search.
Pairs are ranked by distance and then by their rows, no two alike: the forest is one and the same in whatever order, and in
however many batches, pairs come in.

Groups are what pairs connect, also through others: A like B and B like C put A and C together even where they are not alike.
`capped_groups` keeps such chains in bounds.

Memory: 24 bytes a kept pair, and while pairs are sifted about 60 bytes a pair of those (at most `BUFFER` new ones at a time).
Letters: N candidates, P pairs, M candidates that are in a pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BUFFER = 2**22


class Edges(NamedTuple):
    """Pairs of candidates a < b with their distances, sorted by distance, a, b."""

    a: np.ndarray
    b: np.ndarray
    distance: np.ndarray

    def upto(self, distance: float) -> Edges:
        """Those that are no farther apart."""
        return Edges(*(values[: int(np.searchsorted(self.distance, distance, side="right"))] for values in self))


class Forest:
    """Keeps of the pairs that are added a minimum spanning forest."""

    def __init__(self, buffer: int = BUFFER):
        self._kept = Edges(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float64))
        self._new: list[Edges] = []
        self._waiting, self._buffer = 0, buffer
        self.added = 0

    def add(self, a: np.ndarray, b: np.ndarray, distance: np.ndarray | float) -> None:
        """Take in pairs of different candidates; the distance of all, or of each."""
        low, high = np.minimum(a, b).astype(np.int64), np.maximum(a, b).astype(np.int64)
        self._new.append(Edges(low, high, np.broadcast_to(np.asarray(distance, np.float64), low.shape)))
        self.added += len(low)
        self._waiting += len(low)
        if self._waiting >= max(self._buffer, len(self._kept.a)):
            self._sift()

    def edges(self) -> Edges:
        """What is kept."""
        self._sift()
        return self._kept

    def _sift(self) -> None:
        if self._new:
            both = Edges(*(np.concatenate(values) for values in zip(self._kept, *self._new, strict=True)))
            self._kept, self._new, self._waiting = spanning(both), [], 0


def spanning(edges: Edges) -> Edges:
    """The minimum spanning forest of pairs in any order, sorted (Boruvka)."""
    order = np.lexsort((edges.b, edges.a, edges.distance))
    ranked = Edges(*(values[order] for values in edges))
    _, kept = _grown(ranked.a, ranked.b)
    return Edges(*(values[kept] for values in ranked))


def components(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """(M,) the candidates that are in a pair, ascending, and (M,) the smallest candidate of the group that each is in."""
    a, b = (np.concatenate([np.zeros(0, np.int64), *(pair[side] for pair in pairs)]) for side in (0, 1))
    nodes = np.unique(np.concatenate([a, b]))
    labels, _ = _grown(a, b)
    least = np.full(len(nodes), len(nodes), np.int64)
    np.minimum.at(least, labels, np.arange(len(nodes)))
    return nodes, nodes[least[labels]]


def _grown(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which component each node is in (nodes by rank of their numbers), and the places of a spanning forest's edges.

    Edges are taken to be ranked, the best first: every component reaches out by its best edge until none leads outside.
    """
    nodes, ends = np.unique(np.concatenate([a, b]), return_inverse=True)
    labels = np.arange(len(nodes))
    left, right, rank = ends[: len(a)], ends[len(a) :], np.arange(len(a))
    kept: list[np.ndarray] = []
    while len(rank):
        best = np.full(len(nodes), len(a), dtype=np.int64)
        np.minimum.at(best, left, rank)
        np.minimum.at(best, right, rank)
        roots = np.flatnonzero(best < len(a))
        place = np.searchsorted(rank, best[roots])
        kept.append(np.unique(best[roots]))
        parent = np.arange(len(nodes))
        parent[roots] = np.where(left[place] == roots, right[place], left[place])
        # Two that chose the same edge point at each other; the smaller one stays. No other circle can be.
        mutual = (parent[parent] == np.arange(len(nodes))) & (np.arange(len(nodes)) < parent)
        parent[mutual] = np.flatnonzero(mutual)
        while not np.array_equal(parent, above := parent[parent]):
            parent = above
        labels, left, right = parent[labels], parent[left], parent[right]
        open_ = left != right
        left, right, rank = left[open_], right[open_], rank[open_]
    return labels, np.sort(np.concatenate(kept)) if kept else np.zeros(0, np.int64)


def capped_groups(edges: Edges, most: int, distances: Sequence[float]) -> tuple[Edges, dict[float, int]]:
    """The pairs that are left when groups of more than `most` are taken apart at stricter thresholds, one after the other.

    Args:
        distances: the thresholds, falling; the first is the one that groups are made at.

    Returns:
        The pairs, and how many groups were too large at each threshold (also at the last, where they are left as they are).
    """
    kept: list[Edges] = []
    large: dict[float, int] = {}
    open_ = edges.upto(distances[0])
    for step, distance in enumerate(distances):
        nodes, labels = components([(open_.a, open_.b)])
        _, place, size = np.unique(labels, return_inverse=True, return_counts=True)
        too_large = size > most
        if too_large.any():
            large[distance] = int(too_large.sum())
        if not too_large.any() or step + 1 == len(distances):
            kept.append(open_)
            break
        inside = too_large[place[np.searchsorted(nodes, open_.a)]]
        kept.append(Edges(*(values[~inside] for values in open_)))
        open_ = Edges(*(values[inside] for values in open_)).upto(distances[step + 1])
    whole = Edges(*(np.concatenate(values) for values in zip(*kept, strict=True)))
    order = np.lexsort((whole.b, whole.a, whole.distance))
    return Edges(*(values[order] for values in whole)), large
