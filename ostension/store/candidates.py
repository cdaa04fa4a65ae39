"""Rows that may be among the best k of a query, while a search goes through all rows with products of bounded error.

For each pair of a query and a row there is an interval that holds the true product. A row whose upper end is below the k-th
greatest lower end of its query cannot be among the best k: that end is the query's floor, which only rises. What is left at
the end is narrowed in float32, then computed in float64 and ranked, equals by row number.

Letters: Q queries, P pairs of a query and a row.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

WAITING = 2**16  # pairs that wait at least before they are sifted
CROWD = 2**20  # pairs that the bounds leave; then they are computed, so that equal rows do not fill the memory
Pairs = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # queries, rows, lower ends, upper ends


class Candidates:
    """Pairs of a query and a row, sifted as they come.

    Args:
        nearer: gives narrower ends of the products of pairs, from queries (P,) and rows (P,).
        exact: gives the float64 products (P,) of pairs.
    """

    def __init__(
        self,
        num_queries: int,
        k: int,
        nearer: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
        exact: Callable[[np.ndarray, np.ndarray], np.ndarray],
    ):
        self.k, self._nearer, self._exact = k, nearer, exact
        self.floor = np.full(num_queries, -np.inf)
        self._least = torch.full((num_queries, k), -torch.inf, dtype=torch.float64)
        self._limit = max(WAITING, 4 * num_queries * k)
        self._kept: Pairs = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
        self._new: list[Pairs] = []
        self._waiting = 0

    def see(self, queries: slice, low: torch.Tensor) -> None:
        """Raise floors by lower ends (Q, n) of products with different rows, each of which is shown once."""
        least = torch.cat([self._least[queries], low], dim=1).topk(self.k, dim=1).values
        self._least[queries] = least
        self.floor[queries] = np.maximum(self.floor[queries], least[:, -1].numpy())

    def add(self, queries: np.ndarray, rows: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
        """Take in pairs with the ends of their intervals."""
        if len(queries):
            self._new.append((queries, rows, low, high))
            self._waiting += len(queries)
            if self._waiting >= self._limit:
                self._sift()
                if len(self._kept[0]) > CROWD:
                    self._raise()
                    self._sift()
                if len(self._kept[0]) > CROWD:
                    queries, rows, scores = self._ranked()
                    self._kept = queries, rows, scores, scores
                self._limit = max(self._limit, 2 * len(self._kept[0]))

    def best(self) -> tuple[np.ndarray, np.ndarray]:
        """(Q, k) rows and their float64 products, best first; every query must have k candidates by now."""
        self._sift()
        self._raise()
        self._sift()
        if len(self._kept[0]) > 2 * len(self.floor) * self.k:
            queries, rows, low, high = self._kept
            nearer_low, nearer_high = self._nearer(queries, rows)
            self._kept = queries, rows, np.maximum(low, nearer_low), np.minimum(high, nearer_high)
            self._raise()
            self._sift()
        _, rows, scores = self._ranked()
        return rows.reshape(-1, self.k), scores.reshape(-1, self.k)

    def _sift(self) -> None:
        """Drop what is below the floors."""
        queries, rows, low, high = (np.concatenate(parts) for parts in zip(self._kept, *self._new, strict=True))
        self._new, self._waiting = [], 0
        keep = high >= self.floor[queries]
        self._kept = queries[keep], rows[keep], low[keep], high[keep]

    def _raise(self) -> None:
        """Raise the floors by the pairs that are kept."""
        queries, _, low, _ = self._kept
        order = np.lexsort((-low, queries))
        starts = np.searchsorted(queries[order], np.arange(len(self.floor)))
        full = np.flatnonzero(np.diff(starts, append=len(order)) >= self.k)
        self.floor[full] = np.maximum(self.floor[full], low[order[starts[full] + self.k - 1]])

    def _ranked(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The best k pairs of each query in order, those that were computed before not again."""
        queries, rows, low, high = self._kept
        scores = low.copy()
        unknown = np.flatnonzero(low != high)
        scores[unknown] = self._exact(queries[unknown], rows[unknown])
        order = np.lexsort((rows, -scores, queries))
        queries = queries[order]
        rank = np.arange(len(order)) - np.searchsorted(queries, queries)
        first = rank < self.k
        return queries[first], rows[order[first]], scores[order[first]]
