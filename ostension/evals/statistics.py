"""Intervals, tests and lines that results are judged by: exact binomial, chi-squared, McNemar, correlation, least squares.

Everything is written on two special functions, the regularised incomplete beta and gamma; scipy agrees to 1e-10 (tested).

Letters: N pairs or samples, R rows and C columns of a table of counts, S seeds.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ostension.errors import DataError
from ostension.evals.metrics import BOOTSTRAP_RESAMPLES, Interval
from ostension.runtime import numpy_generator
from ostension.shapes import Float, Int

CLIP_CONFIDENCE = 0.995  # the paper's Clopper-Pearson intervals: alpha = 0.005
_TINY = 1e-300


def incomplete_beta(a: float, b: float, x: float) -> float:
    """I_x(a, b), the regularised incomplete beta function, by its continued fraction.

    Source: DLMF 8.17.22, evaluated with Lentz's method as modified by Thompson and Barnett.
    """
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on the other side
        return 1.0 - incomplete_beta(b, a, 1 - x)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    below = 1 / (1 - (a + b) * x / (a + 1) or _TINY)
    above, value = 1.0, below
    # About sqrt(max(a, b)) terms are needed; the limit is far beyond that.
    for m in range(1, 1000 + 10 * math.isqrt(int(a + b) + 1)):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            below = 1 / (1 + term * below or _TINY)
            above = 1 + term / above or _TINY
            value *= below * above
        if abs(below * above - 1) < 1e-15:
            break
    return min(1.0, math.exp(front) * value / a)


def binomial_tail(successes: int, trials: int, p: float) -> float:
    """P(X >= successes) for X binomial with `trials` and `p`: the one-sided test of "more than p"."""
    _check_counts(successes, trials)
    return 1.0 if successes == 0 else incomplete_beta(float(successes), trials - successes + 1.0, p)


def clopper_pearson(successes: int, trials: int, confidence: float = CLIP_CONFIDENCE) -> Interval:
    """The exact interval of a proportion: all p that neither one-sided binomial test rejects at (1 - confidence) / 2."""
    _check_counts(successes, trials)
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else _solve(lambda p: incomplete_beta(float(successes), trials - successes + 1.0, p), tail)
    high = (
        1.0
        if successes == trials
        else _solve(lambda p: incomplete_beta(successes + 1.0, float(trials - successes), p), 1 - tail)
    )
    return Interval(low, high, confidence, "clopper-pearson")


def bonferroni(p: float, tests: int) -> float:
    """The p-value of one of `tests` tests, corrected."""
    return min(1.0, p * tests)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down corrected p-values, in the order given; never larger than Bonferroni's."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = largest
    return corrected


@dataclasses.dataclass(frozen=True)
class ChiSquare:
    """Pearson's test: the statistic, its degrees of freedom, the p-value, and the effect size V of Cramer (0..1)."""

    statistic: float
    freedom: int
    p: float
    cramers_v: float


def chi_square(counts: Int[np.ndarray, "R C"]) -> ChiSquare:
    """Whether rows and columns of a table of counts are independent. No continuity correction.

    Rows and columns that are empty count as absent; a table of one row or column has p = 1.

    Raises:
        DataError: for counts that are negative, or none at all.
    """
    if counts.size == 0 or counts.min() < 0 or counts.sum() == 0:
        raise DataError(f"a table of {counts.sum() if counts.size else 0} counts", expected="counts from 0, some above 0")
    table = counts[counts.sum(axis=1) > 0][:, counts.sum(axis=0) > 0].astype(np.float64)
    freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
    if freedom == 0:
        return ChiSquare(0.0, 0, 1.0, 0.0)
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    statistic = float(((table - expected) ** 2 / expected).sum())
    halves = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    p = float(torch.special.gammaincc(halves[0], halves[1]))
    return ChiSquare(statistic, freedom, p, math.sqrt(statistic / (table.sum() * (min(table.shape) - 1))))


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value that two classifiers are equally often right on the same samples.

    Args:
        only_first: samples that only the first one got right.
        only_second: samples that only the second one got right.
    """
    trials = only_first + only_second
    return 1.0 if trials == 0 else min(1.0, 2 * binomial_tail(max(only_first, only_second), trials, 0.5))


def pearson(x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"]) -> tuple[float, float]:
    """The correlation r of pairs and its two-sided p-value by Student's t with N - 2 degrees of freedom.

    Raises:
        DataError: for fewer than three pairs, or values that are all equal.
    """
    _check_pairs(x, y)
    centred_x, centred_y = x - x.mean(), y - y.mean()
    norm = math.sqrt(float(centred_x @ centred_x) * float(centred_y @ centred_y))
    if norm == 0:
        raise DataError("all values are equal, which correlates with nothing", expected="values that differ")
    r = max(-1.0, min(1.0, float(centred_x @ centred_y) / norm))
    return r, incomplete_beta((len(x) - 2) / 2, 0.5, 1 - r * r)


def student_quantile(confidence: float, freedom: int) -> float:
    """The t with P(|T| <= t) = `confidence`, of Student's distribution with that many degrees of freedom.

    P(|T| > t) = I_{n / (n + t^2)}(n / 2, 1 / 2).
    """
    if freedom < 1 or not 0 < confidence < 1:
        raise DataError(f"{freedom} degrees of freedom at {confidence}", expected="1 or more, at a confidence between 0 and 1")
    share = _solve(lambda x: incomplete_beta(freedom / 2, 0.5, x), 1 - confidence)
    return math.sqrt(freedom * (1 - share) / share)


def seeds_and_samples(
    values: Float[np.ndarray, " S"], errors: Float[np.ndarray, " K"], confidence: float = 0.95
) -> Interval:
    """The interval of a mean over seeds that were all measured on the same samples.

        half = sqrt((t s)^2 / S + (z e)^2)      s over seeds (S - 1 below the line), t Student's with S - 1; e over samples

    The samples are one draw for all seeds, so that their error does not shrink with S. Of one seed there is the second alone.

    Args:
        errors: the standard errors over samples, whose mean is e.
    """
    if not len(values) or not len(errors):
        raise DataError("nothing to take the mean of", expected="one value and one error or more")
    mean, count = float(np.mean(values)), len(values)
    half = statistics.NormalDist().inv_cdf(0.5 + confidence / 2) * float(np.mean(errors))
    method = "samples"
    if count > 1:
        seeds = student_quantile(confidence, count - 1) * float(np.std(values, ddof=1)) / math.sqrt(count)
        half, method = math.hypot(seeds, half), "seeds and samples"
    return Interval(mean - half, mean + half, confidence, method)


@dataclasses.dataclass(frozen=True)
class Line:
    """y = intercept + slope x by least squares, with the share of variance that it explains."""

    slope: float
    intercept: float
    r_squared: float

    def __call__(self, x: float) -> float:
        return self.intercept + self.slope * x


def least_squares(x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"]) -> Line:
    """The line through points, ordinary least squares of y on x.

    Raises:
        DataError: for fewer than three points, or x that are all equal.
    """
    _check_pairs(x, y)
    centred = x - x.mean()
    spread = float(centred @ centred)
    if spread == 0:
        raise DataError("all x are equal, which has no slope", expected="values that differ")
    slope = float(centred @ y) / spread
    intercept = float(y.mean() - slope * x.mean())
    total = float(((y - y.mean()) ** 2).sum())
    rest = float(((y - intercept - slope * x) ** 2).sum())
    return Line(slope, intercept, 1.0 - rest / total if total else 1.0)


def bootstrap(
    statistic: Callable[..., float],
    *arrays: np.ndarray,
    seed: int,
    confidence: float = 0.95,
    resamples: int = BOOTSTRAP_RESAMPLES,
) -> Interval:
    """A percentile bootstrap interval of `statistic(*arrays)`, drawing the same rows from every array.

    A draw on which the statistic is not defined (`DataError`, as for points that are all one) is drawn again.
    """
    if not len(arrays[0]):
        raise DataError("there is nothing to draw from", expected="one row or more")
    generator = numpy_generator(seed, "bootstrap-statistic")
    values: list[float] = []
    failures = 0
    while len(values) < resamples:
        rows = generator.integers(len(arrays[0]), size=len(arrays[0]))
        try:
            values.append(statistic(*(array[rows] for array in arrays)))
        except DataError:
            failures += 1
            if failures > 10 * resamples:
                raise
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(float(low), float(high), confidence, "bootstrap")


def _solve(rising: Callable[[float], float], wanted: float) -> float:
    """The p in 0..1 at which a rising function is `wanted`, by bisection to the last bit that matters."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < wanted else (low, middle)
    return (low + high) / 2


def _check_counts(successes: int, trials: int) -> None:
    if not 0 <= successes <= trials or trials == 0:
        raise DataError(f"{successes} successes in {trials} trials", expected="0 <= successes <= trials, at least one trial")


def _check_pairs(x: np.ndarray, y: np.ndarray) -> None:
    if len(x) != len(y) or len(x) < 3:
        raise DataError(f"{len(x)} x and {len(y)} y", expected="three or more pairs")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise DataError("a value is not finite", expected="finite pairs")
