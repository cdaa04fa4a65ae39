"""The search for the strength of a linear probe on a validation split: the whole grid, the paper's search, and CoOp's.

The grid has 97 points, 1e-6 to 1e6, eight a decade (CLIP, A.3). Strengths are scikit-learn's `C`, which multiplies the *sum* of
the losses: at the same C, more samples mean a weaker penalty beside them. For two classes scikit-learn fits one vector where
a softmax has two; `PathProbe` divides C by two there, which makes it the same model.

Letters: N training samples, M validation samples, D features, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ostension.shapes import Float
from ostension.train.logistic import TOLERANCE, LogisticPath

PER_DECADE = 8
GRID: tuple[float, ...] = tuple(10.0 ** (-6 + step / PER_DECADE) for step in range(12 * PER_DECADE + 1))
STARTS = range(0, len(GRID), 2 * PER_DECADE)  # 1e-6, 1e-4, ..., 1e6
HALVINGS = (8, 4, 2, 1)  # grid steps that the paper's search tries on both sides of its peak
COOP_STARTS = (1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6)  # in its order: of equal ones the first, the weakest penalty, wins
COOP_STEPS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """A chosen strength.

    Attributes:
        strength: scikit-learn's C.
        score: on the validation split.
        curve: (strength, score) of everything that was tried, by rising strength.
        at_end: "weakest" or "strongest" penalty where the choice lies at an end of what was searched, else None.
        how: the name of the search.
    """

    strength: float
    score: float
    curve: tuple[tuple[float, float], ...]
    at_end: str | None
    how: str


class PathProbe:
    """A linear probe whose strength is still open: its regularisation path, with logits at any strength.

    Args:
        rows: (N, D) training features; float32 is computed in float32.
        targets: (N,) positions, or (N, C) of 0 and 1, for which each label gets a sigmoid of its own.
        offset: (N, C) fixed logits.
        prior: (C, D) weights that the penalty pulls towards.
    """

    def __init__(
        self,
        rows: Float[np.ndarray, "N D"],
        targets: np.ndarray,
        num_classes: int,
        *,
        offset: Float[np.ndarray, "N C"] | None = None,
        prior: Float[np.ndarray, "C D"] | None = None,
        tolerance: float = TOLERANCE,
    ):
        self.independent = targets.ndim == 2
        self.num_classes = num_classes
        self.path = LogisticPath(
            torch.from_numpy(np.ascontiguousarray(rows)), torch.from_numpy(targets.astype(np.int64)), num_classes,
            loss="sigmoid" if self.independent else "softmax", offset=None if offset is None else torch.from_numpy(offset),
            prior=None if prior is None else torch.from_numpy(prior), tolerance=tolerance,
        )  # fmt: skip
        self.unconverged: set[float] = set()
        self.gradient_norms: dict[float, float] = {}

    def approach(self, strength: float) -> None:
        """Solve the decades of stronger penalties first: each starts the next, and a weak one from nothing takes longer."""
        if below := [one for one in GRID[::PER_DECADE] if one < strength]:
            self.path.fit(below)

    def logits(
        self, strength: float, rows: Float[np.ndarray, "M D"], offset: Float[np.ndarray, "M C"] | None = None
    ) -> Float[np.ndarray, "M C"]:
        """The logits of other samples at a strength."""
        weight, bias = self.head(strength)
        found = (torch.from_numpy(np.ascontiguousarray(rows)).to(weight.dtype) @ weight.T + bias).numpy()
        return found if offset is None else found + offset

    def head(self, strength: float) -> tuple[Float[Tensor, "C D"], Float[Tensor, " C"]]:
        """W and b at a strength."""
        two = self.num_classes == 2 and not self.independent
        fit = self.path.fit([strength / 2 if two else strength])
        self.gradient_norms[strength] = float(fit.gradient_norm[0])
        if not fit.converged[0]:
            self.unconverged.add(strength)
        return fit.weight[0], fit.bias[0]


def whole_grid(score: Callable[[float], float], strengths: Sequence[float] = GRID) -> Choice:
    """The best of all strengths; of equal ones the strongest penalty."""
    known = {strength: score(strength) for strength in sorted(strengths)}
    return _choice(known, max(known, key=lambda strength: (known[strength], -strength)), "grid")


def paper_search(score: Callable[[float], float]) -> Choice:
    """The paper's search: seven strengths two decades apart, then 8, 4, 2 and 1 grid steps to both sides of the best so far,
    15 fits at most. Of equal ones the earlier one stays, of the seven the strongest penalty.

    Source: CLIP, A.3. It finds the best of a curve with one peak; the authors say themselves that there may be more.
    """
    known: dict[int, float] = {}

    def value(place: int) -> float:
        if place not in known:
            known[place] = score(GRID[place])
        return known[place]

    peak = max(STARTS, key=lambda place: (value(place), -place))
    for reach in HALVINGS:
        for place in (peak - reach, peak + reach):
            if 0 <= place < len(GRID):
                value(place)
        peak = max((place for place in (peak, peak - reach, peak + reach) if place in known), key=lambda place: known[place])
    return _choice({GRID[place]: found for place, found in sorted(known.items())}, GRID[peak], "paper")


def coop_search(score: Callable[[float], float]) -> Choice:
    """CoOp's search: seven strengths, then eight steps that halve a range of two decades around the best in log strength.

    A step compares both ends of its range and keeps the half on the side of the better one; of equal ones the stronger penalty.
    The result is the better end of the last step, whatever was seen before. Its range may leave the seven strengths' by a
    decade.

    Source: the implementation that CoOp's authors published (lpclip/linear_probe.py).
    """
    known = {strength: score(strength) for strength in sorted(COOP_STARTS)}
    peak = max(COOP_STARTS, key=lambda strength: known[strength])
    low, high = np.log10(peak) - 1, np.log10(peak) + 1
    best = peak
    for _ in range(COOP_STEPS):
        ends = [float(10.0**end) for end in (low, high)]
        for end in ends:
            if end not in known:
                known[end] = score(end)
        middle = (low + high) / 2
        if known[ends[0]] < known[ends[1]]:
            best, low = ends[1], middle
        else:
            best, high = ends[0], middle
    return _choice(known, best, "coop")


def _choice(known: dict[float, float], best: float, how: str) -> Choice:
    ends = {min(known): "strongest", max(known): "weakest"} if len(known) > 1 else {}
    return Choice(
        strength=best, score=known[best], curve=tuple(sorted(known.items())), at_end=ends.get(best), how=how
    )  # fmt: skip
