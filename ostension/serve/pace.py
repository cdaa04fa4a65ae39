"""How long a batch takes, learned from those before: seconds = fixed + slope * cost, the latest counting most.

A plain ratio of seconds to cost would take a short text, whose time is mostly the batch's own, for the measure of all texts,
and a queue would seem longer than it is. While all batches are alike nothing tells the two parts apart, and all of the
time is counted as fixed: then too much is accepted once, larger batches come, and the slope is known.
"""

from __future__ import annotations

KEEP = 0.9  # of the weight of what was seen before, with each batch
RIDGE = 0.05  # of the squared mean cost: differences much smaller than a fifth of the cost say little


class Pace:
    """The line through decaying weights."""

    def __init__(self) -> None:
        self._weight = self._cost = self._seconds = self._squares = self._products = 0.0
        self.fixed = self.slope = 0.0

    @property
    def ratio(self) -> float:
        """Seconds for each unit of cost, as if nothing was fixed; 0 before the first batch."""
        return self._seconds / self._cost if self._cost else 0.0

    def add(self, cost: float, seconds: float) -> None:
        """Learn from a batch."""
        self._weight = KEEP * self._weight + 1
        self._cost = KEEP * self._cost + cost
        self._seconds = KEEP * self._seconds + seconds
        self._squares = KEEP * self._squares + cost * cost
        self._products = KEEP * self._products + cost * seconds
        mean, average = self._cost / self._weight, self._seconds / self._weight
        spread = self._squares / self._weight - mean * mean
        together = self._products / self._weight - mean * average
        self.slope = min(max(0.0, together / (spread + RIDGE * mean * mean)), average / mean) if mean else 0.0
        self.fixed = average - self.slope * mean

    def seconds(self, cost: float) -> float:
        """Of a batch of that cost."""
        return self.fixed + self.slope * cost
