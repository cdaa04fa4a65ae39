"""Scores of pairs: rounding, histograms, and the score that a share of all reaches, in memory that does not grow.

Scores are cosines, -1 to 1, rounded to five decimals: finer than the noise of 16-bit weights by two orders of magnitude,
and coarser than that of float32. So counts of every value that there is (200,001) give the exact score of a share:

    t(s) = max { t : #{score >= t} >= ceil(s N) }

and a share keeps all scores of at least t, ties with the last one included.

Letters: N scores.
"""

from __future__ import annotations

import math

import numpy as np

from ostension.errors import LimitError

STEPS = 100_000  # of a score of 1
MOST_GROUPS = 256  # 1.6 MB of counts each
BINS = 40  # of a histogram for reports


def rounded(scores: np.ndarray) -> np.ndarray:
    """Scores with five decimals, float64, within -1 and 1."""
    return np.clip(np.round(np.asarray(scores, np.float64), 5), -1, 1)


class Counts:
    """How often each score comes, apart for each group.

    Args:
        field: what groups are told apart by, for the message when they are too many.
    """

    def __init__(self, field: str = ""):
        self.field = field
        self._counts: dict[str, np.ndarray] = {}

    def add(self, group: str, scores: np.ndarray) -> None:
        """Take in rounded scores (N,) of a group.

        Raises:
            LimitError: for more groups than can be counted.
        """
        if group not in self._counts:
            if len(self._counts) == MOST_GROUPS:
                what = f"more than {MOST_GROUPS} values of {self.field!r} to take shares of apart"
                raise LimitError(what, fix="use a field with fewer values")
            self._counts[group] = np.zeros(2 * STEPS + 1, np.int64)
        places = np.rint(np.asarray(scores) * STEPS).astype(np.int64) + STEPS
        np.add.at(self._counts[group], places, 1)

    def reached_by(self, share: float) -> dict[str, float]:
        """For each group the score that a share of it reaches; see the equation above."""
        return {group: _reached_by(counts, share) for group, counts in sorted(self._counts.items())}

    def histogram(self) -> dict[str, list[float]]:
        """The scores of all groups in equal bins between the lowest and the highest: {"edges" (BINS + 1), "counts" (BINS)}."""
        total = sum(self._counts.values(), np.zeros(2 * STEPS + 1, np.int64))
        places = np.flatnonzero(total)
        if not len(places):
            return {"edges": [], "counts": []}
        values = (places - STEPS) / STEPS
        high = values[-1] if values[-1] > values[0] else values[0] + 1 / STEPS
        edges = np.linspace(values[0], high, BINS + 1)
        counts, _ = np.histogram(values, edges, weights=total[places])
        return {"edges": np.round(edges, 6).tolist(), "counts": counts.astype(np.int64).tolist()}


def _reached_by(counts: np.ndarray, share: float) -> float:
    wanted = max(1, math.ceil(share * int(counts.sum()) - 1e-9))  # 0.3 x 10 is 3, not 4
    from_above = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_above, wanted))
    return round((2 * STEPS - place - STEPS) / STEPS, 5)
