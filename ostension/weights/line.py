"""The line between two models: live models along it, whole curves, and the choice of a point on validation scores.

    line = Line(zero_shot, tuned)
    curve = [measure(line.at(alpha)) for alpha in GRID]       # pictures decoded once by the caller, no files
    logits = head_line(rows @ w0.T, rows @ w1.T, alpha)       # frozen towers: logits are linear in alpha

Letters: N samples, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ostension.config import require
from ostension.errors import CheckpointError
from ostension.model.clip import CLIP
from ostension.weights.kernel import Mixed, block_of

GRID = tuple(step / 20 for step in range(21))  # PAINT's: 0, 0.05, ..., 1


class Line:
    """Models (1 - alpha) start + alpha end, of which one is live at a time; its numbers are those that files would have.

    Args:
        start, end: models of one architecture; they stay as they are. Memory is that of three models.

    Raises:
        CheckpointError: for tensors of other names or shapes.
    """

    def __init__(self, start: CLIP, end: CLIP):
        self._ends = [{name: value.detach() for name, value in model.state_dict().items()} for model in (start, end)]
        shapes = [{name: tuple(value.shape) for name, value in state.items()} for state in self._ends]
        odd = sorted(name for name in {*shapes[0], *shapes[1]} if shapes[0].get(name) != shapes[1].get(name))
        if odd:
            raise CheckpointError(f"the tensor {odd[0]!r} is {shapes[1].get(odd[0], 'missing')} in one model",
                                  expected=f"{shapes[0].get(odd[0], 'none')}, as in the other")  # fmt: skip
        with torch.device(start.device):
            self._live = CLIP(start.config, seed=None).to(start.dtype).eval()
        self._live.transform = start.transform
        if start._tokenizer is not None:
            self._live.tokenizer = start.tokenizer

    @torch.no_grad()
    def at(self, alpha: float) -> CLIP:
        """The model there; the next call changes it."""
        sources = [_Live(name, state) for name, state in zip("01", self._ends, strict=True)]
        output = Mixed((1 - float(alpha), float(alpha)))
        for name, value in self._live.state_dict().items():
            blocks = {index: state[name].reshape(-1) for index, state in enumerate(self._ends)}
            value.copy_(block_of(sources, output, name, blocks, value.dtype).view(value.shape))
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
    """The point with the highest mean of what is to be learned and what is to stay; the smallest alpha of equal ones.

    Each side counts a half, however many tasks it has. Source: PAINT, arXiv 2208.05592, section 2 (there: mean accuracy over
    patching and supported tasks, on validation data).
    """
    require(bool(points), "points", [], "one or more")

    def value(point: Point) -> float:
        sides = [float(np.mean([point.scores[name] for name in side])) for side in (patch, keep) if side]
        return float(np.mean(sides))

    return max(points, key=lambda point: (value(point), -point.alpha))


def head_line(start: np.ndarray, end: np.ndarray, alpha: float) -> np.ndarray:
    """Logits (N, C) at a point of the line between two heads on the same frozen features: (1 - alpha) L0 + alpha L1.

    One pass over the features gives every alpha. The ends are the given logits, to the bit.
    """
    if alpha in (0, 1):
        return end if alpha else start
    return ((1 - alpha) * start.astype(np.float64) + alpha * end.astype(np.float64)).astype(start.dtype)


class _Live:
    """A state dict as the kernel's source."""

    def __init__(self, digest: str, state: dict[str, torch.Tensor]):
        self.name, self.digest = f"model {digest}", digest
        self.dtypes = {name: value.dtype for name, value in state.items()}
        self.shapes = {name: tuple(value.shape) for name, value in state.items()}
        self._state = state

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self._state[name].reshape(-1)[start:stop]
