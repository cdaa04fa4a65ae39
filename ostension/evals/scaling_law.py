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
RULES: tuple[Rule, ...] = ("frontier", "least-squares")
NUM_BINS = 5
# The notebook's margin on the upper end, so that the largest run falls inside the last bin.
BIN_MARGIN = 0.1
MIN_PLACES = 3  # of a line that says how far runs fall from it


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalingLaw:
    """E = 10^`intercept` C^`slope`.

    Attributes:
        rule: how it was fitted.
        num_points: runs that it was fitted on.
        places: (M, 2) log10 of compute and error that the line was laid through: the bins' for the frontier, else the runs'.
    """

    slope: float
    intercept: float
    rule: Rule
    num_points: int
    places: np.ndarray

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
    places = np.stack([x, y], axis=1)
    return ScalingLaw(slope=float(slope), intercept=float(intercept), rule=rule, num_points=len(log_compute), places=places)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Band:
    """An interval around a law's prediction at each compute, (M,) each."""

    low: np.ndarray
    high: np.ndarray


def bootstrap_lines(
    compute: np.ndarray, error: np.ndarray, rule: Rule = "frontier", *, resamples: int = 2000, seed: int = 0
) -> np.ndarray:
    """Slope and intercept of the line fitted to each of `resamples` draws of the runs with replacement (R, 2).

    Draws that cannot be fitted (one compute only) are drawn again.

    Raises:
        DataError: if the runs themselves cannot be fitted.
    """
    fit_scaling_law(compute, error, rule)
    x, y = _logs(compute, error)
    generator = numpy_generator(seed, "scaling band")
    found = np.empty((0, 2))
    while len(found) < resamples:
        chosen = generator.integers(len(x), size=(resamples, len(x)))
        if rule == "frontier":
            lines = _lines(*_frontiers(x[chosen], y[chosen]))
        else:
            lines = _lines(x[chosen], y[chosen], np.ones(chosen.shape, dtype=bool))
        found = np.concatenate([found, lines[np.isfinite(lines).all(axis=1)]])
    return found[:resamples]


def prediction_band(
    compute: np.ndarray,
    error: np.ndarray,
    at: np.ndarray,
    *,
    rule: Rule = "frontier",
    of: Literal["law", "run"] = "law",
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Band:
    """Bootstrap percentile band of the prediction at each `at` (M,).

    Args:
        of: "law" is where the line may lie; "run" is where one more run may fall: to each prediction a residual of the fit is
            added, drawn with replacement and widened by sqrt(M / (M - 2)), for a line takes up two of M places.

    Raises:
        DataError: if the runs cannot be fitted, or for a run's band on a line through two places, which has no residuals.
    """
    require(0 < level < 1, "level", level, "between 0 and 1")
    at = np.asarray(at, dtype=np.float64)
    slopes, intercepts = bootstrap_lines(compute, error, rule, resamples=resamples, seed=seed).T
    predictions = 10 ** (intercepts[:, None] + slopes[:, None] * np.log10(at))
    if of == "run":
        fitted = fit_scaling_law(compute, error, rule)
        drawn = numpy_generator(seed, "scaling residuals").choice(residuals(fitted), size=predictions.shape)
        predictions = predictions * 10**drawn
    low, high = np.quantile(predictions, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Band(low=low, high=high)


def residuals(law: ScalingLaw) -> np.ndarray:
    """What the line leaves of log10 E at each of its M places, widened to the scatter of a new one (M,).

    Raises:
        DataError: for a line through two places.
    """
    count = len(law.places)
    if count < MIN_PLACES:
        raise DataError(
            f"the {law.rule} line goes through {count} places, so nothing tells how far runs fall from it",
            expected=f"{MIN_PLACES} or more",
        )
    x, y = law.places.T
    return (y - law.intercept - law.slope * x) * np.sqrt(count / (count - 2))


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


def _frontiers(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`_frontier` of each row of (R, N): the bins' centres and smallest y (R, bins), and which bins hold anything."""
    low = x.min(axis=1, keepdims=True)
    width = (x.max(axis=1, keepdims=True) + BIN_MARGIN - low) / NUM_BINS
    bins = np.minimum((x - low) // width, NUM_BINS - 1)
    inside = bins[:, :, None] == np.arange(NUM_BINS)
    lowest = np.where(inside, y[:, :, None], np.inf).min(axis=1)
    return low + width * (np.arange(NUM_BINS) + 0.5), lowest, inside.any(axis=1)


def _lines(x: np.ndarray, y: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Slope and intercept (R, 2) of least squares in each row of (R, M), over the used places; nan where x is all one."""
    count = used.sum(axis=1)
    x, y = np.where(used, x, 0.0), np.where(used, y, 0.0)
    mean_x, mean_y = x.sum(axis=1) / count, y.sum(axis=1) / count
    from_x = np.where(used, x - mean_x[:, None], 0.0)
    spread = (from_x**2).sum(axis=1)
    spread = np.where(spread > 1e-18 * np.maximum(1.0, mean_x**2), spread, np.nan)  # rounding is no spread
    slope = (from_x * y).sum(axis=1) / spread
    return np.stack([slope, mean_y - slope * mean_x], axis=1)
