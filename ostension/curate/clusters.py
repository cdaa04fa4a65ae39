"""Clusters of unit rows by their directions: k-means over a sample that does not grow with the data.

    centre_c = unit(sum of the rows that are nearest to c)        nearest: the largest cosine; ties go to the first centre

The sample is of the rows whose hash of (seed, id) is smallest, which does not depend on the order they come in. Centres begin
as rows drawn from it, with equal chances; a centre that has lost all its rows stays where it is.

Letters: N rows, C clusters, E embedding.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from ostension.curate.embeddings import one_thread
from ostension.runtime import numpy_generator

BLOCK = 4096  # rows whose products with all centres are held at a time
ROUNDS = 20


class Sample:
    """At most `size` of the rows that are shown to it, each with the same chance.

    Args:
        size: rows at most; twice as many lie in memory.
        seed: of the choice.
    """

    def __init__(self, size: int, seed: int):
        self.size, self.seed = size, seed
        self.seen = 0
        self._marks = np.zeros(0, np.uint64)
        self._rows: np.ndarray | None = None

    def add(self, ids: np.ndarray, rows: np.ndarray) -> None:
        """Take in rows (n, E) with their ids (n,)."""
        if not len(rows):
            return
        self.seen += len(rows)
        marks = np.array([_mark(self.seed, number) for number in ids.tolist()], np.uint64)
        together = rows if self._rows is None else np.concatenate([self._rows, rows])
        marks = np.concatenate([self._marks, marks])
        order = np.argsort(marks, kind="stable")[: self.size]
        self._marks, self._rows = marks[order], together[order]

    def rows(self) -> np.ndarray:
        """(n, E) float32, in the order of their hashes."""
        return np.zeros((0, 0), np.float32) if self._rows is None else self._rows.astype(np.float32)


def k_means(rows: np.ndarray, count: int, seed: int, *, rounds: int = ROUNDS) -> np.ndarray:
    """(C, E) float32 unit centres of unit rows (N, E); fewer than `count` only where there are fewer rows."""
    count = min(count, len(rows))
    chosen = np.sort(numpy_generator(seed, "curation clusters").choice(len(rows), count, replace=False))
    centres = rows[chosen].copy()
    before = None
    for _ in range(rounds):
        places, _ = nearest(rows, centres)
        if before is not None and np.array_equal(places, before):
            break
        before = places
        sums = np.zeros(centres.shape, np.float64)
        np.add.at(sums, places, rows)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(lengths > 1e-9, sums / np.maximum(lengths, 1e-9), centres).astype(np.float32)
    return centres


def nearest(rows: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row the number of the nearest centre (N,) int64, and the cosine to it (N,) float32."""
    places, cosines = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.float32)
    weights = torch.from_numpy(np.ascontiguousarray(centres, np.float32)).T
    with one_thread():
        for start in range(0, len(rows), BLOCK):
            block = torch.from_numpy(np.ascontiguousarray(rows[start : start + BLOCK], np.float32))
            products = (block @ weights).numpy()
            best = products.argmax(axis=1)
            places[start : start + BLOCK] = best
            cosines[start : start + BLOCK] = products[np.arange(len(best)), best]
    return places, cosines


def _mark(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed} {number}".encode(), digest_size=8).digest(), "little")
