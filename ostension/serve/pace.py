"""How long a batch takes, learned from those before: seconds = fixed + slope * cost, the latest counting most.

A plain ratio of seconds to cost would take a short text, whose time is mostly the batch's own, for the measure of all texts,
and a queue would seem longer than it is. While all batches are alike nothing tells the two parts apart; then their shares are
those that were measured when the model was warmed (`shape`), and without these all of the time is counted as fixed.
"""

from __future__ import annotations

KEEP = 0.9  # of the weight of what was seen before, with each batch
# Of the squared mean cost: how much differences of cost have to be before they say more than the shape, or than nothing.
RIDGE, RIDGE_WITHOUT_SHAPE = 1.0, 0.05


class Pace:
    """The line through decaying weights."""

    def __init__(self) -> None:
        self._weight = self._cost = self._seconds = self._squares = self._products = 0.0
        self.fixed = self.slope = 0.0
        self._shape: tuple[float, float] | None = None

    @property
    def ratio(self) -> float:
        """Seconds for each unit of cost, as if nothing was fixed; 0 before the first batch."""
        return self._seconds / self._cost if self._cost else 0.0

    def shape(self, fixed: float, slope: float) -> None:
        """Begin with a line that was measured on the model alone."""
        self._shape = fixed, slope
        if not self._weight:
            self.fixed, self.slope = fixed, slope

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
        expected, ridge = 0.0, RIDGE_WITHOUT_SHAPE * mean * mean
        if self._shape is not None:
            fixed, slope = self._shape
            expected, ridge = average * slope / (fixed + slope * mean), RIDGE * mean * mean
        slope = (together + ridge * expected) / (spread + ridge) if mean else 0.0
        self.slope = min(max(0.0, slope), average / mean) if mean else 0.0
        self.fixed = average - self.slope * mean

    def seconds(self, cost: float) -> float:
        """Of a batch of that cost."""
        return self.fixed + self.slope * cost

    def cost_within(self, seconds: float) -> float:
        """The cost of a batch that takes so long."""
        return (seconds - self.fixed) / self.slope if self.slope else float("inf") if seconds >= self.fixed else 0.0
