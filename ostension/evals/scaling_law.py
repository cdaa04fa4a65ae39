"""Scaling laws: the error of a model as a power of the compute that trained it, fitted, with bands, and read forward.

    E = 10^b C^a        with C in multiply-accumulates a sample x samples seen, E = 1 - accuracy (or 1 - recall)

Two fitting rules of the OpenCLIP study (Cherti et al. 2023, and its notebook). "frontier" is the line of its 29 runs: the
range of log10 C, lengthened by 0.1, is cut into five equal bins, each bin stands as (its centre, the smallest log10 E in
it), empty bins are left out. "least-squares" is its line of OpenAI's three ViTs: all points, as they are.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from ostension.config import require
from ostension.errors import DataError
from ostension.runtime import numpy_generator

Rule = Literal["frontier", "least-squares"]
NUM_BINS = 5
# The notebook's margin on the upper end, so that the largest run falls inside the last bin.
BIN_MARGIN = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalingLaw:
    """E = 10^`intercept` C^`slope`.

    Attributes:
        rule: how it was fitted.
        num_points: runs that it was fitted on.
    """

    slope: float
    intercept: float
    rule: Rule
    num_points: int

    @property
    def coefficient(self) -> float:
        """10^b, the error at C = 1."""
        return 10**self.intercept

    def predict(self, compute: np.ndarray | float) -> np.ndarray:
        """The error at each compute, in the unit that the law was fitted with."""
        return 10 ** (self.intercept + self.slope * np.log10(np.asarray(compute, dtype=np.float64)))


def fit_scaling_law(compute: np.ndarray, error: np.ndarray, rule: Rule = "frontier") -> ScalingLaw:
    """Fit the law to runs.

    Args:
        compute: (N,) positive, in one unit.
        error: (N,) in (0, 1].

    Raises:
        DataError: for fewer than two different computes, or values out of range.
    """
    log_compute, log_error = _logs(compute, error)
    x, y = _frontier(log_compute, log_error) if rule == "frontier" else (log_compute, log_error)
    if len(np.unique(x)) < 2:
        raise DataError(f"{len(x)} runs give {len(np.unique(x))} different points", expected="2 or more, to lay a line through")
    slope, intercept = np.polyfit(x, y, 1)
    return ScalingLaw(slope=float(slope), intercept=float(intercept), rule=rule, num_points=len(log_compute))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Band:
    """An interval around a law's prediction at each compute, (M,) each."""

    low: np.ndarray
    high: np.ndarray


def prediction_band(
    compute: np.ndarray,
    error: np.ndarray,
    at: np.ndarray,
    *,
    rule: Rule = "frontier",
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Band:
    """Bootstrap percentile band: runs drawn with replacement, the law fitted anew, its prediction at each `at`.

    Draws that cannot be fitted (one compute only) are drawn again.
    """
    require(0 < level < 1, "level", level, "between 0 and 1")
    compute, error, at = (np.asarray(values, dtype=np.float64) for values in (compute, error, at))
    fit_scaling_law(compute, error, rule)
    generator = numpy_generator(seed, "scaling band")
    predictions: list[np.ndarray] = []
    while len(predictions) < resamples:
        chosen = generator.integers(len(compute), size=len(compute))
        try:
            predictions.append(fit_scaling_law(compute[chosen], error[chosen], rule).predict(at))
        except DataError:
            continue
    low, high = np.quantile(np.stack(predictions), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Band(low=low, high=high)


def _logs(compute: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    compute, error = np.asarray(compute, dtype=np.float64), np.asarray(error, dtype=np.float64)
    if compute.ndim != 1 or compute.shape != error.shape:
        raise DataError(f"computes {compute.shape} and errors {error.shape}", expected="one of each for every run")
    if not (np.isfinite(compute).all() and (compute > 0).all()):
        raise DataError("a compute is not positive and finite", expected="multiply-accumulates x samples seen")
    if not ((error > 0) & (error <= 1)).all():
        raise DataError("an error is not in (0, 1]", expected="1 - accuracy, as a fraction")
    return np.log10(compute), np.log10(error)


def _frontier(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The smallest y in each of the bins, at the bins' centres."""
    edges = np.linspace(x.min(), x.max() + BIN_MARGIN, NUM_BINS + 1)
    bins = np.digitize(x, edges) - 1
    filled = np.unique(bins)
    centres = (edges[filled] + edges[filled + 1]) / 2
    return centres, np.array([y[bins == each].min() for each in filled])
