"""Greedy soups: models are added in the order of their held-out scores, each only if the mean of all does not get worse.

    greedy_soup(["a", "b", "c"], "soup", score)     # score(folder) -> float, on held-out samples, higher is better

Where the score is the share of samples that are right, give `Samples` instead of a function: a candidate is then rejected as
soon as it is certain to be worse, and the outcome is the same. First come the samples that the soup so far gets wrong (the
candidate mends f of them), then the others, until more than f are newly broken.

By construction the result is never below the best single model on the samples that it was chosen on.

Source: model soups, arXiv 2203.05482, recipe 1: "at least as good" keeps a model (its code asks for better).
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ostension.config import require
from ostension.weights.arithmetic import soup
from ostension.weights.batch_norm import Pictures
from ostension.weights.sources import open_models

Score = Callable[[Path], float]
CHUNK = 64  # samples that are looked at together before a candidate may be rejected


class Samples(abc.ABC):
    """Held-out samples of which a model gets each right or wrong.

    Attributes:
        count: how many there are.
    """

    count: int

    @abc.abstractmethod
    def judge(self, model: Path) -> Callable[[np.ndarray], np.ndarray]:
        """For a model's folder, the function that tells which of the samples (positions) it gets right."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One candidate.

    Attributes:
        model: what was added.
        alone: its own score.
        together: the score of the soup with it; None where it was rejected early.
        kept: whether it stayed.
        seen: samples looked at to decide; None where a function scored.
    """

    model: str
    alone: float
    together: float | None
    kept: bool
    seen: int | None = None


@dataclasses.dataclass(frozen=True)
class GreedySoup:
    """What a greedy soup is made of: `members` in the order in which they joined, its `score`, and every step."""

    members: tuple[str, ...]
    score: float
    steps: tuple[Step, ...]
    notes: tuple[str, ...]


def greedy_soup(
    models: Sequence[str | os.PathLike],
    target: str | os.PathLike,
    score: Score | Samples,
    *,
    recalibrate: Pictures | None = None,
    force: bool = False,
    overwrite: bool = False,
    told: Callable[[Step], None] | None = None,
) -> GreedySoup:
    """Write the greedy soup of models; see the head of this file.

    Models with equal scores are taken in the order of their files' hashes, so that the order given does not matter. Candidates
    are written beside `target`, one at a time; with `recalibrate` the statistics of batch normalisation of each are estimated.

    Raises:
        CheckpointError, ConfigError: as `arithmetic.soup`.
    """
    require(len(models) >= 1, "models", list(models), "one or more")
    names = [os.fspath(name) for name in models]
    require(len(set(names)) == len(names), "models", names, "each once")
    digests = []
    for name in names:  # one at a time: they need not be open together
        with open_models([name]) as opened:
            digests.append(opened[0].digest)
    parent = Path(target).absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f".{Path(target).name}.", dir=parent)))
        right = {}
        if isinstance(score, Samples):
            everything = np.arange(score.count)
            right = {name: np.asarray(score.judge(Path(name))(everything), bool) for name in names}
            alone = {name: float(row.mean()) for name, row in right.items()}
        else:
            alone = {name: float(score(Path(name))) for name in names}
        for name, value in alone.items():
            require(np.isfinite(value), f"the score of {name}", value, "a finite number")
        _, _, ordered = zip(*sorted(zip([-alone[name] for name in names], digests, names, strict=True)), strict=True)
        members, best = [ordered[0]], alone[ordered[0]]
        steps = [Step(ordered[0], best, best, True)]
        state = right.get(ordered[0])
        for name in ordered[1:]:
            candidate = place / "candidate"
            soup([*members, name], candidate, recalibrate=recalibrate, force=force, overwrite=True)
            if isinstance(score, Samples):
                assert state is not None
                found, seen = not_worse(state, score.judge(candidate))
                together = None if found is None else float(found.mean())
                step = Step(name, alone[name], together, found is not None, seen)
                state = state if found is None else found
            else:
                together = float(score(candidate))
                step = Step(name, alone[name], together, together >= best)
            if step.kept:
                members.append(name)
                best = together if together is not None else best
            steps.append(step)
            if told is not None:
                told(step)
        notes = soup(members, target, recalibrate=recalibrate, force=force, overwrite=overwrite)
    return GreedySoup(tuple(members), best, tuple(steps), tuple(notes))


def not_worse(right: np.ndarray, judge: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray | None, int]:
    """Which samples a candidate gets right, or None as soon as these are certain to be fewer than `right`; and how many it saw.

    Args:
        right: (N,) whether the model to beat gets each sample right.
        judge: the candidate's answers for positions of samples.
    """
    found, seen = np.zeros(len(right), bool), 0
    wrong, sound = np.flatnonzero(~right), np.flatnonzero(right)
    for start in range(0, len(wrong), CHUNK):
        part = wrong[start : start + CHUNK]
        found[part] = judge(part)
        seen += len(part)
    mended, broken = int(found.sum()), 0
    for start in range(0, len(sound), CHUNK):
        part = sound[start : start + CHUNK]
        found[part] = judge(part)
        seen += len(part)
        broken += int((~found[part]).sum())
        if broken > mended:
            return None, seen
    return found, seen
