"""A mixture of two Gaussians over the losses of pairs: how likely is each pair noise?

A model that has begun to learn gives pairs that belong together a low loss and others a high one. With losses x_i,

    p(x) = sum_k w_k N(x; m_k, s_k^2),    P(noise | x_i) = w_1 N(x_i; m_1, s_1^2) / p(x_i),   m_0 < m_1            (1)

fitted by expectation-maximisation in float64, from a few fixed starts, of which the likeliest counts: no random numbers.

What is ours, beside (1), and why:

- Losses are cut at their 0.5 % and 99.5 % quantiles before the fit, else a single huge one gets a component of its own.
- Of Gaussians with different spreads the wider wins at both ends, so that (1) would call pairs of the very lowest losses noise
  (or those of the highest clean). The log-odds are a parabola in x; beyond its turning point they are held, so that a higher
  loss is never less likely noise.
- Where nothing tells two kinds apart (equal losses, a component that runs empty, one Gaussian as good by BIC), no pair is
  noise.

Letters: n losses.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ostension.errors import DataError

CUT = 0.005
STARTS = (0.25, 0.5, 0.75, 0.9)  # share of the losses that a start takes for clean
FLOOR = 1e-6  # least variance, of losses of variance 1; scikit-learn's
ROUNDS, TOLERANCE = 1000, 1e-9
FEWEST = 8  # losses that are fitted at all
EMPTY = 0.002  # share below which a component is none


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """Two Gaussians, the one of the lower mean first.

    Attributes:
        shares, means, spreads: w, m and s of both, in the losses' own unit.
        limits: what losses are cut at.
        count: n.
        why_not: why the losses do not tell two kinds apart; None where they do.
    """

    shares: tuple[float, float]
    means: tuple[float, float]
    spreads: tuple[float, float]
    limits: tuple[float, float]
    count: int
    why_not: str | None = None

    def log_odds(self, losses: np.ndarray) -> np.ndarray:
        """ln P(noise) / P(clean), equation (1) as it stands."""
        x = np.asarray(losses, np.float64)
        logs = [
            np.log(share) - np.log(spread) - 0.5 * ((x - mean) / spread) ** 2
            for share, mean, spread in zip(self.shares, self.means, self.spreads, strict=True)
        ]
        return logs[1] - logs[0]

    def posterior(self, losses: np.ndarray) -> np.ndarray:
        """(n,) P(noise), which never falls as the loss grows; 0 where two kinds cannot be told apart."""
        x = np.clip(np.asarray(losses, np.float64), *self.limits)
        if self.why_not is not None:
            return np.zeros(x.shape)
        (m0, m1), (v0, v1) = self.means, (self.spreads[0] ** 2, self.spreads[1] ** 2)
        if v0 != v1:
            turning = (m0 / v0 - m1 / v1) / (1 / v0 - 1 / v1)
            x = np.maximum(x, turning) if v1 > v0 else np.minimum(x, turning)
        return 1 / (1 + np.exp(-np.clip(self.log_odds(x), -700, 700)))

    def tree(self) -> dict[str, Any]:
        """For records and logs."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()}


def fit_mixture(losses: np.ndarray) -> Mixture:
    """The mixture of some losses.

    Raises:
        DataError: for a loss that is not finite.
    """
    x = np.asarray(losses, np.float64).ravel()
    if not np.isfinite(x).all():
        raise DataError(f"{np.count_nonzero(~np.isfinite(x))} of {len(x)} losses are not finite", expected="numbers")
    low, high = np.quantile(x, (CUT, 1 - CUT)) if len(x) else (0.0, 0.0)
    cut = np.clip(x, low, high)
    centre, unit = (float(cut.mean()), float(cut.std())) if len(x) else (0.0, 0.0)

    def made(found: _Fit | None, why_not: str | None) -> Mixture:
        shares, means, variances = (np.array([1.0, 0.0]), np.zeros(2), np.ones(2)) if found is None else found[1:]
        return Mixture(
            shares=_two(shares), means=_two(centre + unit * means), spreads=_two(unit * np.sqrt(variances)),
            limits=(float(low), float(high)), count=len(x), why_not=why_not,
        )  # fmt: skip

    if len(x) < FEWEST:
        return made(None, f"{len(x)} losses are too few")
    if unit <= 1e-9 * max(1.0, abs(centre)):
        return made(None, "all losses are equal")
    z = (cut - centre) / unit
    fits = [found for start in STARTS if (found := expectation_maximisation(z, *hard_start(z, start))) is not None]
    if not fits:
        return made(None, "one component runs empty")
    best = max(fits, key=lambda found: found[0])
    one = -0.5 * len(z) * (np.log(2 * np.pi) + 1)  # of one Gaussian, with mean 0 and variance 1
    if 2 * (best[0] - one) <= 3 * np.log(len(z)):
        return made(best, "one Gaussian describes the losses as well")
    return made(best, None)


_Fit = tuple[float, np.ndarray, np.ndarray, np.ndarray]  # log-likelihood, shares, means, variances


def hard_start(z: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares, means and variances of the lower and the upper part of the numbers, cut at a quantile."""
    cut = np.sort(z)
    place = min(max(1, round(share * len(z))), len(z) - 1)
    parts = (cut[:place], cut[place:])
    return (
        np.array([len(part) / len(z) for part in parts]), np.array([part.mean() for part in parts]),
        np.array([part.var() + FLOOR for part in parts]),
    )  # fmt: skip


def expectation_maximisation(z: np.ndarray, shares: np.ndarray, means: np.ndarray, variances: np.ndarray) -> _Fit | None:
    """From a start to where the log-likelihood stands still; None if a component runs empty on the way."""
    before = -np.inf
    for _ in range(ROUNDS):
        logs = np.log(shares) - 0.5 * (np.log(2 * np.pi * variances) + (z[:, None] - means) ** 2 / variances)  # (n, 2)
        top = logs.max(axis=1, keepdims=True)
        weights = np.exp(logs - top)
        sums = weights.sum(axis=1, keepdims=True)
        likelihood = float((top + np.log(sums)).sum())
        weights /= sums
        counts = weights.sum(axis=0)
        if counts.min() < EMPTY * len(z):
            return None
        if likelihood - before <= TOLERANCE * len(z):
            break
        before, shares = likelihood, counts / len(z)
        means = weights.T @ z / counts
        variances = (weights * (z[:, None] - means) ** 2).sum(axis=0) / counts + FLOOR
    order = np.argsort(means, kind="stable")
    return likelihood, shares[order], means[order], variances[order]


def _two(values: np.ndarray) -> tuple[float, float]:
    return float(values[0]), float(values[1])
