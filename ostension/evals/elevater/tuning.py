"""The search for a learning rate and a weight decay: six rates, and for each the peak among 97 decays.

For each rate the seven decays 1e-6, 1e-4, ..., 1e6 are tried; then, around the best so far, those 8, 4, 2 and 1 places away
on either side: at most 15 trials of the 97. The rates do not look at each other, so a round of all rates is one call, whose
trials can run side by side. A later trial must be better, not equal, to take over, so ties go to the smaller value first
tried, as in the toolkit.

A trial that fails has no score and is never chosen; it stays in the list with what went wrong.

Source: `hyperparameter_sweep` and `hyperparameter_sweep_lr` of the toolkit, read; the grid is that of CLIP's linear probes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from ostension.errors import DivergenceError
from ostension.evals.elevater.probe import Trial

RATES = tuple(10.0**power for power in range(-6, 0))
DECAYS = tuple(10.0 ** (-6 + place / 8) for place in range(97))
FIRST = tuple(range(0, 97, 16))
STEPS = (8, 4, 2, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored:
    """A trial and its score on the images held out; without a score it failed, and `error` says how."""

    trial: Trial
    score: float | None
    error: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """The best trial and all that were tried, in order."""

    best: Scored
    tried: tuple[Scored, ...]

    @property
    def failed(self) -> tuple[Scored, ...]:
        return tuple(scored for scored in self.tried if scored.score is None)

    @property
    def summary(self) -> str:
        """One line for the log."""
        best = f"rate {self.best.trial.learning_rate:g}, decay {self.best.trial.weight_decay:.3g}, score {self.best.score:.4f}"
        if not self.failed:
            return f"{len(self.tried)} trials, best {best}"
        return f"{len(self.tried)} trials, best {best}; {len(self.failed)} failed, the first: {line_of(self.failed[0])}"


def search(
    evaluate: Callable[[Sequence[Trial]], Sequence[Scored]],
    rates: Sequence[float] = RATES,
    decays: Sequence[float] = DECAYS,
) -> Search:
    """The search.

    Args:
        evaluate: the scored trials, in the order given.

    Raises:
        DivergenceError: if every trial failed.
    """
    known: dict[tuple[int, int], Scored] = {}
    peaks: dict[int, int] = {}
    wanted = [(rate, place) for rate in range(len(rates)) for place in FIRST if place < len(decays)]
    for step in (0, *STEPS):
        if step:
            wanted = [
                (rate, place)
                for rate, peak in peaks.items()
                for place in (max(peak - step, 0), min(peak + step, len(decays) - 1))
                if (rate, place) not in known
            ]
        trials = [Trial(learning_rate=rates[rate], weight_decay=decays[place]) for rate, place in wanted]
        known |= dict(zip(wanted, evaluate(trials) if trials else [], strict=True))
        for rate, place in wanted:
            if _better(known[rate, place], known.get((rate, peaks.get(rate, -1)))):
                peaks[rate] = place
    best: Scored | None = None
    for rate in sorted(peaks):
        if _better(known[rate, peaks[rate]], best):
            best = known[rate, peaks[rate]]
    if best is None:
        raise DivergenceError(f"all {len(known)} trials failed, the first: {line_of(next(iter(known.values())))}")
    return Search(best=best, tried=tuple(known.values()))


def line_of(scored: Scored) -> str:
    """A failed trial in words."""
    return f"rate {scored.trial.learning_rate:g}, decay {scored.trial.weight_decay:.3g}: {scored.error}"


def _better(new: Scored, old: Scored | None) -> bool:
    return new.score is not None and (new.score > (-math.inf if old is None or old.score is None else old.score))
