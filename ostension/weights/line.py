"""The line between two models: live models along it, whole curves, and the choice of a point on validation scores.

    line = Line(zero_shot, tuned)
    curve = [measure(line.at(alpha)) for alpha in GRID]       # pictures decoded once by the caller, no files
    logits = head_line(rows @ w0.T, rows @ w1.T, alpha)       # frozen towers: logits are linear in alpha

Letters: N samples, C classes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch

from ostension.config import require
from ostension.formats.load import load
from ostension.model.clip import CLIP
from ostension.weights.batch_norm import Pictures, estimate
from ostension.weights.kernel import Mixed, Source, block_of, spans, used
from ostension.weights.sources import open_models, verified
from ostension.weights.states import StateSource, check_same_tensors

GRID = tuple(step / 20 for step in range(21))  # PAINT's: 0, 0.05, ..., 1


class Line:
    """Models (1 - alpha) start + alpha end, of which one is live at a time; its numbers are those that files would have.

    Args:
        start, end: models of one architecture; they stay as they are. Tensors that are the same in both are shared with the
            live model, so that a tower that was not trained takes no memory of its own.
        recalibrate: pictures on which the statistics of batch normalisation are estimated between the ends.

    Raises:
        CheckpointError: for tensors of other names or shapes.
    """

    def __init__(self, start: CLIP, end: CLIP, *, recalibrate: Pictures | None = None):
        states = [{name: value.detach() for name, value in model.state_dict().items()} for model in (start, end)]
        names = ("the start", "the end")
        self._sources: list[Source] = [StateSource(name, state) for name, state in zip(names, states, strict=True)]
        check_same_tensors(self._sources)
        same = {name for name, value in states[0].items() if _same(value, states[1][name])}
        self._recalibrate = recalibrate
        self._fixed = set() if recalibrate is not None else same  # statistics are written to
        with torch.device("meta"):
            self._live = CLIP(start.config, seed=None).to(start.dtype).eval()
        own = {name: value if name in self._fixed else torch.empty_like(value) for name, value in states[0].items()}
        self._live.load_state_dict(own, assign=True)
        self._live.requires_grad_(False)  # what is shared is not to be trained
        self._live.transform = start.transform
        if start._tokenizer is not None:
            self._live.tokenizer = start.tokenizer

    @classmethod
    @contextlib.contextmanager
    def of_files(
        cls,
        start: str | os.PathLike,
        end: str | os.PathLike,
        *,
        recalibrate: Pictures | None = None,
        device: str = "auto",
        dtype: str = "auto",
    ) -> Iterator[Line]:
        """The line between two models on disk, read in blocks: in memory is the live model alone.

        Raises:
            CheckpointError: for models that cannot be read or trusted, or tensors of other names or shapes.
        """
        with open_models([start, end], predictors=False) as models:
            check_same_tensors(models)
            line = cls.__new__(cls)
            line._sources, line._fixed, line._recalibrate = list(models), set(), recalibrate
            line._live = load(start, device=device, dtype=dtype)
            verified(models)
            yield line

    @torch.no_grad()
    def at(self, alpha: float) -> CLIP:
        """The model there; the next call changes it."""
        output = Mixed((1 - float(alpha), float(alpha)))
        members = used(self._sources, output)
        for name, value in self._live.state_dict().items():
            if name in self._fixed:
                continue
            flat = value.view(-1)
            for start, stop in spans(len(flat), len(self._sources)):
                blocks = {index: self._sources[index].read(name, start, stop) for index in members}
                flat[start:stop] = block_of(self._sources, output, name, blocks, value.dtype)
        if self._recalibrate is not None and output.only is None:
            estimate(self._live, self._recalibrate)
        return self._live


@dataclasses.dataclass(frozen=True)
class Point:
    """A point of a curve: alpha, the mean over the scores, and the scores by name."""

    alpha: float
    mean: float
    scores: dict[str, float]


def curve(line: Line, alphas: Sequence[float], measure: Callable[[CLIP], dict[str, float]]) -> list[Point]:
    """The scores of the models along a line; `measure` gives them by the names of tasks."""
    found = []
    for alpha in alphas:
        scores = measure(line.at(alpha))
        found.append(Point(float(alpha), float(np.mean(list(scores.values()))), scores))
    return found


def choose(points: Sequence[Point], patch: Sequence[str], keep: Sequence[str]) -> Point:
    """The point with the highest `balance` of what is to be learned and what is to stay; the smallest alpha of equal ones."""
    require(bool(points), "points", [], "one or more")
    return max(points, key=lambda point: (balance(point.scores, patch, keep), -point.alpha))


def balance(scores: Mapping[str, float], patch: Sequence[str], keep: Sequence[str]) -> float:
    """The mean of two sides, of which each counts a half, however many tasks it has; one side alone, if the other is empty.

    Source: PAINT, arXiv 2208.05592, section 2 (there: mean accuracy over patching and supported tasks, on validation data).
    """
    sides = [float(np.mean([scores[name] for name in side])) for side in (patch, keep) if side]
    return float(np.mean(sides))


def head_line(start: np.ndarray, end: np.ndarray, alpha: float) -> np.ndarray:
    """Logits (N, C) at a point of the line between two heads on the same frozen features: (1 - alpha) L0 + alpha L1.

    One pass over the features gives every alpha. The ends are the given logits, to the bit.
    """
    if alpha in (0, 1):
        return end if alpha else start
    return ((1 - alpha) * start.astype(np.float64) + alpha * end.astype(np.float64)).astype(start.dtype)


def ratio_of_spreads(start: np.ndarray, end: np.ndarray) -> float:
    """How much wider logits (N, C) spread over the classes than others; 1 where those do not spread at all.

    Columns that are minus infinity throughout, of classes that are never given, are left out.
    """
    there = np.isfinite(end).all(axis=0)
    spreads = [float((part[:, there] - part[:, there].mean(axis=1, keepdims=True)).std()) for part in (start, end)]
    return spreads[0] / spreads[1] if spreads[1] > 0 else 1.0


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether all bits are the same."""
    equal = one.dtype == other.dtype and torch.equal(one, other)
    return equal and bool((torch.signbit(one) == torch.signbit(other)).all())
