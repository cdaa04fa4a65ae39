"""Calibration: how far a classifier's probabilities are from the shares of right answers, and the temperature that mends it.

`p = softmax(z / T)` for logits z; CLIP's own scale is T = 1. The errors here are of two kinds that have the same name
elsewhere: *top-label* ones look at the probability of the predicted class only, the *classwise* one at every class's.

Letters: N samples, C classes.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterator

import numpy as np

from ostension.config import require
from ostension.errors import DataError
from ostension.evals import metrics
from ostension.shapes import Bool, Float, Int

ROWS = 4_096  # rows of probabilities in float64 at a time: 33 MB of 1,000 classes
TOLERANCE = 1e-12  # of the temperature, relative
MAX_STEPS = 200  # bisection alone needs some 50 from one end of the doubles to the other


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """What the probabilities of a classifier are worth.

    Attributes:
        nll: mean of -ln p of the true class, in nats.
        brier: mean of sum_c (p_c - y_c)^2, 0 to 2 (Brier 1950).
        ece: top-label calibration error, bins of equal width (Guo et al. 2017).
        ece_adaptive: the same with bins of equal counts (Nguyen and O'Connor 2015).
        ece_classwise: the mean over classes of the error of p_c against the share of samples of class c, bins of equal width
            (Kull et al. 2019).
        confidence, accuracy: means of the top probability and of right answers.
        reliability, reliability_adaptive: the bins of `ece` and `ece_adaptive`, as `metrics.reliability` gives them.
    """

    nll: float
    brier: float
    ece: float
    ece_adaptive: float
    ece_classwise: float
    confidence: float
    accuracy: float
    reliability: list[dict[str, float]]
    reliability_adaptive: list[dict[str, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Temperature:
    """The temperature of the smallest mean -ln p.

    Attributes:
        value: T; above 1 the classifier was too sure of itself.
        low, high: its 95 % interval (normal, with the robust variance of 1/T); `high` is infinite where 1/T may be 0.
        nll_before, nll_after: at T = 1 and at `value`, on the samples that it was fitted to.
        steps: Newton steps and halvings.
    """

    value: float
    low: float
    high: float
    nll_before: float
    nll_after: float
    steps: int

    @property
    def verdict(self) -> str:
        """What T says of the classifier's own scale."""
        if self.low <= 1 <= self.high:
            return "neither over- nor under-confident beyond chance"
        return "over-confident" if self.value > 1 else "under-confident"


def calibration(
    logits: Float[np.ndarray, "N C"],
    targets: Int[np.ndarray, " N"],
    *,
    temperature: float = 1.0,
    bins: int = metrics.CALIBRATION_BINS,
) -> Calibration:
    """All measures of `softmax(logits / temperature)`, in float64.

    Raises:
        DataError: for a target whose probability is 0 (a class at minus infinity), or targets and logits that do not fit.
    """
    require(bins >= 1, "bins", bins, "1 or more")
    require(temperature > 0, "temperature", temperature, "a number above 0")
    _check(logits, targets)
    count, classes = logits.shape
    loss = brier = 0.0
    confidences, correct = np.empty(count), np.empty(count, dtype=bool)
    table = np.zeros((3, classes * bins))  # samples, probability and hits of each class's bins
    offsets = np.arange(classes) * bins
    for rows, own, z in _blocks(logits, targets):
        log_p = z / temperature
        log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        index = np.arange(len(own))
        loss -= log_p[index, own].sum()
        brier += (p * p).sum() - 2 * p[index, own].sum() + len(own)
        confidences[rows], correct[rows] = p.max(axis=1), p.argmax(axis=1) == own
        members = offsets + np.clip(np.ceil(p * bins).astype(np.int64) - 1, 0, bins - 1)
        table[0] += np.bincount(members.ravel(), minlength=table.shape[1])
        table[1] += np.bincount(members.ravel(), weights=p.ravel(), minlength=table.shape[1])
        table[2] += np.bincount(members[index, own], minlength=table.shape[1])
    if not math.isfinite(loss):
        raise DataError("a sample's own class has probability 0", expected="finite logits of every class that occurs")
    confidences = confidences.clip(0, 1)  # 1 + 2e-16 happens
    widths, equal = metrics.reliability(confidences, correct, bins), reliability_adaptive(confidences, correct, bins)
    return Calibration(
        nll=loss / count,
        brier=brier / count,
        ece=calibration_error(widths),
        ece_adaptive=calibration_error(equal),
        ece_classwise=float(np.abs(table[1] - table[2]).sum() / count / classes),
        confidence=float(confidences.mean()),
        accuracy=float(correct.mean()),
        reliability=widths,
        reliability_adaptive=equal,
    )


def reliability_adaptive(
    confidences: Float[np.ndarray, " N"], correct: Bool[np.ndarray, " N"], bins: int = metrics.CALIBRATION_BINS
) -> list[dict[str, float]]:
    """A reliability table whose bins hold equally many samples, give or take one; "low" and "high" are those of its samples."""
    order = np.argsort(confidences, kind="stable")
    return [
        {"low": float(confidences[part[0]]), "high": float(confidences[part[-1]]), "count": len(part),
         "confidence": float(confidences[part].mean()), "accuracy": float(correct[part].mean())}
        for part in np.array_split(order, min(bins, len(order)))
    ]  # fmt: skip


def calibration_error(table: list[dict[str, float]]) -> float:
    """The mean over samples of |accuracy - confidence| of their bin."""
    total = sum(row["count"] for row in table)
    return sum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in table) / total


def fit_temperature(logits: Float[np.ndarray, "N C"], targets: Int[np.ndarray, " N"]) -> Temperature:
    """The T that minimises the mean of -ln softmax(z / T)_y.

    In b = 1/T the loss is convex: its slope is mean(E_p[z] - z_y), its curvature mean(Var_p[z]). Newton's steps, and halving
    where a step leaves the bracket, end at the optimum to rounding, in float64.

    Raises:
        DataError: where no temperature is best: if the logits are right on all samples (T would be 0), or say on the mean no
            more than a guess (T would be infinite).

    Source: Guo et al. 2017, section 4.2, who use L-BFGS.
    """
    if (why := no_temperature(logits, targets)) is not None:
        raise DataError("no temperature is best", expected=why)
    # The slope is negative at 0 and positive far out, so there is one optimum.
    low, high, b = 0.0, math.inf, 1.0
    slope, curvature, before, squares = _derivatives(logits, targets, b)
    after, steps = before, 0
    while steps < MAX_STEPS:
        low, high = (b, high) if slope < 0 else (low, b)
        following = b - slope / curvature if curvature > 0 else math.inf
        following = min(following, 16 * b)  # Newton may step far out where the curve is flat
        if not low <= following <= high:
            following = (low + high) / 2
        change, b, steps = abs(following - b), following, steps + 1
        slope, curvature, after, squares = _derivatives(logits, targets, b)
        if change <= TOLERANCE * b:
            break
    error = math.sqrt(squares / len(targets)) / curvature if curvature > 0 else math.inf
    half = statistics.NormalDist().inv_cdf(0.975) * error
    return Temperature(
        value=1 / b,
        low=1 / (b + half) if half < math.inf else 0.0,
        high=1 / (b - half) if half < b else math.inf,
        nll_before=before,
        nll_after=after,
        steps=steps,
    )


def no_temperature(logits: Float[np.ndarray, "N C"], targets: Int[np.ndarray, " N"]) -> str | None:
    """What would have to be otherwise for a temperature to be best; None if there is one."""
    _check(logits, targets)
    if _derivatives(logits, targets, 0.0)[0] >= 0:
        return "logits that say more of the classes than a guess"
    if (logits[np.arange(len(targets)), targets] == logits.max(axis=1)).all():
        return "a wrong answer among the samples that it is fitted on"
    return None


def _derivatives(logits: np.ndarray, targets: np.ndarray, b: float) -> tuple[float, float, float, float]:
    """Slope, curvature and value of the mean loss at b = 1/T, and the mean square of the samples' slopes."""
    slope = curvature = loss = squares = 0.0
    for _, own, z in _blocks(logits, targets):
        dead = np.isneginf(z)
        z = np.where(dead, 0.0, z)
        weights = np.where(dead, 0.0, np.exp(b * z))
        total = weights.sum(axis=1)
        mean = (weights * z).sum(axis=1) / total
        right = z[np.arange(len(own)), own]
        if dead[np.arange(len(own)), own].any():
            raise DataError("a sample's own class has probability 0", expected="finite logits of every class that occurs")
        slope += (mean - right).sum()
        squares += ((mean - right) ** 2).sum()
        curvature += ((weights * (z - mean[:, None]) ** 2).sum(axis=1) / total).sum()
        loss += (np.log(total) - b * right).sum()
    count = len(targets)
    return slope / count, curvature / count, loss / count, squares / count


def _blocks(logits: np.ndarray, targets: np.ndarray) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Some rows at a time, in float64, with their largest logit taken off."""
    for start in range(0, len(logits), ROWS):
        rows = slice(start, start + ROWS)
        z = logits[rows].astype(np.float64)
        yield rows, targets[rows], z - z.max(axis=1, keepdims=True)


def _check(logits: np.ndarray, targets: np.ndarray) -> None:
    if len(targets) != len(logits) or len(targets) == 0:
        raise DataError(f"{len(targets)} targets of {len(logits)} rows of logits", expected="one a row, and one row at least")
    if not 0 <= targets.min() <= targets.max() < logits.shape[1]:
        raise DataError(f"targets from {targets.min()} to {targets.max()}", expected=f"0 to {logits.shape[1] - 1}")
    if not np.isfinite(logits.max(axis=1)).all():
        raise DataError("a row of the logits has no largest number", expected="finite logits")
