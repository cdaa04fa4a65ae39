"""How far to go from a start towards what was tuned on new tasks, by validation pictures of those and of tasks to keep.

Letters: B batch, N samples, C classes, E embedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ostension.adapt._examples import Examples
from ostension.errors import ConfigError
from ostension.model.clip import CLIP
from ostension.model.predictor import Predictor
from ostension.runtime import numpy_generator
from ostension.weights.fan import Fan, search
from ostension.weights.line import Line, balance

BLOCK = 64  # pictures that are answered together


class Held:
    """Validation pictures of a task, decoded once, and its hand-written classifier from the text tower that never changes.

    Args:
        model: whose text tower, scale and preprocessing count.
        task: a task; its `val` is looked at.
        limit: pictures at most, of every class its share.
        seed: of that choice.

    Raises:
        ConfigError: for a task without validation pictures, or whose validation pictures are those of a test split.
    """

    def __init__(self, model: CLIP, task: Examples, *, limit: int, seed: int):
        name = name_of(task)
        if task.val is None:
            raise ConfigError(f"{name!r} has no validation pictures", expected="some, to choose alpha by")
        if task.val.name == "test":
            raise ConfigError(f"the validation pictures of {name!r} are its test split", expected="others, to choose alpha by")
        self.head: Predictor = model.classifier(task.class_names, task.templates)
        order = numpy_generator(seed, "held", name).permutation(len(task.val))
        order = order[np.argsort(task.val.targets[order], kind="stable")]
        count = min(limit, len(order))
        chosen = order[(np.arange(count) * len(order)) // count]
        self.targets = task.val.targets[chosen]
        pairs = (task.val.source.read(int(place)) for place in chosen)
        self._pixels = torch.stack([model.transform.pixels(pair.image, name=pair.key) for pair in pairs])

    def __len__(self) -> int:
        return len(self.targets)

    @torch.no_grad()
    def accuracy(self, model: CLIP) -> float:
        """The share that the model's image tower gets right before the head."""
        right = 0
        for start in range(0, len(self), BLOCK):
            pixels = model.transform.normalize(self._pixels[start : start + BLOCK].to(model.device))
            answers = self.head.logits(model.encode_image(pixels, normalize=True)).argmax(1).cpu().numpy()
            right += int((answers == self.targets[start : start + BLOCK]).sum())
        return right / len(self)


@dataclasses.dataclass(frozen=True)
class Choice:
    """Alphas of the ends, the model there, and what was seen on the way: (alphas, scores by task) in order."""

    alphas: tuple[float, ...]
    seen: tuple[tuple[tuple[float, ...], dict[str, float]], ...]

    def tree(self) -> dict[str, Any]:
        """As plain values, for a record."""
        return {"alphas": list(self.alphas), "seen": [{"alphas": list(at), "scores": scores} for at, scores in self.seen]}


def go(
    start: CLIP, ends: Sequence[CLIP], patch: dict[str, Held], keep: dict[str, Held], grid: Sequence[float],
    *, within: float | None = None, refine: bool = False,
) -> tuple[CLIP, Choice]:  # fmt: skip
    """The model between start and ends that is best for the two sides (`worth`), and how it was chosen.

    A grid of one point leaves nothing to choose, and nothing is looked at.

    Args:
        within: as in `worth`.
        refine: of one end, look at every fourth part of the grid first and then nearer and nearer to the best.

    Of one end the line is that of `ostension weights patch`; of several their differences are added.
    """
    seen: list[tuple[tuple[float, ...], dict[str, float]]] = []

    def measure(model: CLIP, alphas: tuple[float, ...]) -> dict[str, float]:
        scores = {name: held.accuracy(model) for name, held in (patch | keep).items()}
        seen.append((alphas, scores))
        return scores

    def value(scores: dict[str, float]) -> float:
        return worth(scores, seen[0][1], list(patch), list(keep), within)

    if len(grid) == 1:
        alphas = tuple(grid) * len(ends)
        return (Line(start, ends[0]).at(grid[0]) if len(ends) == 1 else Fan(start, ends).at(alphas)), Choice(alphas, ())

    if len(ends) == 1:
        line = Line(start, ends[0])
        values: dict[int, float] = {}

        def best(places: Iterable[int]) -> int:
            for place in places:
                if place not in values and 0 <= place < len(grid):
                    values[place] = value(measure(line.at(grid[place]), (grid[place],)))
            return max(values, key=lambda place: (values[place], -place))

        if refine:
            step = max(1, len(grid) // 4)
            found = best([*range(0, len(grid), step), len(grid) - 1])
            while step > 1:
                step = -(-step // 2)
                found = best([found - step, found + step])
        else:
            found = best(range(len(grid)))
        return line.at(grid[found]), Choice((grid[found],), tuple(seen))
    fan = Fan(start, ends)
    alphas = search(lambda at: value(measure(fan.at(at), at)), len(ends), grid)
    return fan.at(alphas), Choice(alphas, tuple(seen))


def worth(
    scores: Mapping[str, float], start: Mapping[str, float], patch: Sequence[str], keep: Sequence[str], within: float | None
) -> float:
    """What a point is chosen by: the mean of both sides, or, with `within`, the new tasks alone as long as the kept ones have
    lost no more than that on average; points beyond are worth the less the more they lose, and less than all others.

    Args:
        start: the scores of the first point that was looked at, where alphas are 0.
    """
    if within is None or not keep:
        return balance(scores, patch, keep)
    lost = float(np.mean([start[name] - scores[name] for name in keep]))
    return float(np.mean([scores[name] for name in patch])) if lost <= within + 1e-9 else -lost


def name_of(task: Examples) -> str:
    """What a task is called in records."""
    return str(task.facts.get("task") or "task")
