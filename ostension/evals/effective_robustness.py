"""Effective and relative robustness: how far above the line of ordinary models a model lies, and what a change gained.

Ordinary ImageNet models lie near one line where both axes are logits: logit y = a + b logit x, with x the accuracy in
distribution (on the shift's classes) and y the accuracy on the shift. Then

    effective robustness = y - sigmoid(a + b logit x)        relative robustness = y after a change - y before it

Letters: M models that a line goes through, R refits.
Source: Taori et al. 2020, sections 2 and 3; CLIP, section 3.3 and Figures 13 to 15.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from ostension.errors import DataError
from ostension.evals.metrics import Interval
from ostension.evals.statistics import Line, least_squares
from ostension.evals.testbed import SEVEN, Shift, TestBed, named_shift
from ostension.runtime import numpy_generator
from ostension.shapes import Float

REFITS = 1_000  # of the published figures


def logit(p: Float[np.ndarray, "*S"]) -> Float[np.ndarray, "*S"]:
    """ln(p / (1 - p)); minus and plus infinity at 0 and 1."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(p) - np.log1p(-p))


def sigmoid(t: float) -> float:
    """The inverse of the logit."""
    return 1 / (1 + math.exp(-t)) if t >= 0 else math.exp(t) / (1 + math.exp(t))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Baseline:
    """What ordinary models reach on a shift.

    Attributes:
        lines: in logits; one, or one below and one from `pivot` on.
        pivot: x at which they meet.
        x, y: (M,) shares of the models that they go through.
        models: their names.
    """

    lines: tuple[Line, ...]
    pivot: float | None
    x: Float[np.ndarray, " M"]
    y: Float[np.ndarray, " M"]
    models: tuple[str, ...]

    def __call__(self, x: float) -> float:
        """The accuracy on the shift of an ordinary model with accuracy `x` in distribution."""
        line = self.lines[-1] if self.pivot is None or x >= self.pivot else self.lines[0]
        return sigmoid(line(float(logit(np.array(x)))))

    def effective(self, x: float, y: float) -> float:
        """Effective robustness: y above the line, a difference of shares."""
        return y - self(x)

    def band(self, x: float, *, seed: int, confidence: float = 0.95, refits: int = REFITS) -> Interval:
        """The percentile interval of the line at `x` over refits to models drawn with replacement; of no width at 0 and 1."""
        if not 0 < x < 1:
            return Interval(self(x), self(x), confidence, "bootstrap of models")
        chosen = self._part(x)
        at, over, up = float(logit(np.array(x))), logit(self.x[chosen]), logit(self.y[chosen])
        draws = numpy_generator(seed, "line").integers(len(over), size=(refits, len(over)))
        over, up = over[draws], up[draws]  # (R, M)
        centred = over - over.mean(axis=1, keepdims=True)
        spread = (centred * centred).sum(axis=1)
        usable = spread > 0  # a draw of one model M times has no slope; for M of 30 or more it does not happen
        slope = (centred * up).sum(axis=1)[usable] / spread[usable]
        values = up.mean(axis=1)[usable] + slope * (at - over.mean(axis=1)[usable])
        tail = (1 - confidence) / 2
        low, high = np.quantile(values, [tail, 1 - tail])
        return Interval(sigmoid(float(low)), sigmoid(float(high)), confidence, "bootstrap of models")

    def tree(self) -> dict[str, Any]:
        """The lines as JSON: slope, intercept, r2 and n of each, and the pivot."""
        parts = [self._part(-1.0), self._part(2.0)] if self.pivot is not None else [np.ones(len(self.x), dtype=bool)]
        lines = [
            {"slope": line.slope, "intercept": line.intercept, "r2": line.r_squared, "n": int(part.sum())}
            for line, part in zip(self.lines, parts, strict=True)
        ]
        return {"lines": lines, "pivot": self.pivot, "axes": "logit"}

    def _part(self, x: float) -> np.ndarray:
        """Which models the line at `x` goes through; none lies on the pivot, which was chosen as one that is left out."""
        if self.pivot is None:
            return np.ones(len(self.x), dtype=bool)
        return self.x > self.pivot if x >= self.pivot else self.x < self.pivot


def fit_baseline(
    x: Float[np.ndarray, " M"],
    y: Float[np.ndarray, " M"],
    *,
    pivot: float | None = None,
    models: tuple[str, ...] = (),
) -> Baseline:
    """The line through ordinary models, or the two that meet at `pivot`; shares strictly between 0 and 1.

    Raises:
        DataError: for fewer than three models a line, or shares that have no logit.
    """
    if not ((x > 0) & (x < 1) & (y > 0) & (y < 1)).all():
        raise DataError("an accuracy of 0 or 1 has no logit", expected="shares between them")
    over, up = logit(x), logit(y)
    parts = [x < pivot, x > pivot] if pivot is not None else [np.ones(len(x), dtype=bool)]
    lines = tuple(least_squares(over[part], up[part]) for part in parts)
    return Baseline(lines=lines, pivot=pivot, x=x, y=y, models=models or tuple(map(str, range(len(x)))))


def baseline_of(bed: TestBed, shift: Shift | str) -> Baseline:
    """The line of a test bed's standard models for a shift, or for the mean of the seven (`testbed.SEVEN`)."""
    chosen = bed.for_line(shift)
    x, y = bed.accuracies(shift)
    pivot = None if shift == SEVEN else (named_shift(shift) if isinstance(shift, str) else shift).pivot
    names = tuple(name for name, used in zip(bed.models, chosen, strict=True) if used)
    if len(names) < 3:
        what = f"{len(names)} standard models were measured on {shift if isinstance(shift, str) else shift.name}"
        fix = "give the column 'family' with the value 'standard'"
        raise DataError(what, source=bed.source, expected="three or more for a line", fix=fix)
    return fit_baseline(x[chosen], y[chosen], pivot=pivot, models=names)


def relative_robustness(before: float, after: float) -> float:
    """What a change of the model gained on the shift: y after - y before, a difference of shares."""
    return after - before


def error_ratio(x: float, y: float) -> float:
    """How many times as many errors a model makes on the shift as in distribution: (1 - y) / (1 - x).

    Raises:
        DataError: for a model without errors in distribution.
    """
    if x >= 1:
        raise DataError("no errors in distribution", expected="an accuracy below 1")
    return (1 - y) / (1 - x)
