"""Prompt-set search: templates chosen one by one, each the one that helps most together with those before it.

For rows r of template m and class c, the classifier of a set S is W_c = sum_{m in S} r_mc / |sum_{m in S} r_mc|, as always.
With the products Z_mc = x r_mc known, a further template costs a sum and a division: (Z_Sc + Z_mc) / |s_c + r_mc|, where
|s + r|^2 = |s|^2 + 2 s r + |r|^2. So one matrix product serves every step and every candidate, and the means are exact.

Letters: N samples, M templates, C classes, E embedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from ostension.config import require
from ostension.data.task import Task
from ostension.evals.inputs import Inputs, Names
from ostension.evals.metrics import macro_f1_present, mean_per_class_accuracy
from ostension.evals.scores import Groups, Targets, score_value
from ostension.shapes import Float
from ostension.text.prompts import fill

CACHE_BYTES = 2**31  # of products that are kept between steps; where they do not fit, each step computes them again
PRODUCTS = 2**24  # computed at a time: 64 MB
BLOCK = 2**17  # taken through sum, division and maximum at a time, so that they stay in the processor's cache
WIDE_BYTES = 2**29  # of logits that are held for scores that need all of them


@dataclasses.dataclass(frozen=True)
class Judge:
    """A score of logits in two parts, so that not all logits of all candidates have to be held.

    Attributes:
        keep: of logits (n, C): what the score needs of each sample, (n,) or (n, C).
        score: of `keep`'s values of all samples.
        wide: whether `keep` gives a row and not a number a sample.
    """

    keep: Callable[[np.ndarray], np.ndarray]
    score: Callable[[np.ndarray], float]
    wide: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """A search's path.

    Attributes:
        chosen: numbers of the templates, in the order in which they were taken.
        scores: the validation score of the first of them, of the first two, and so on.
        singles: (M,) the validation score of each template alone.
        tried: classifiers that were scored.
    """

    chosen: tuple[int, ...]
    scores: tuple[float, ...]
    singles: np.ndarray
    tried: int


def judge_of(
    task: Task,
    targets: Targets,
    groups: Groups | None = None,
    pool: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Judge:
    """The task's own score.

    Args:
        pool: from the logits that templates give to those of the task's classes, where these are others.
    """
    pooled = pool or (lambda logits: logits)
    by_prediction: dict[str, Callable[[np.ndarray], float]] = {
        "accuracy": lambda predicted: float((predicted == targets).mean()),
        "mean_per_class": lambda predicted: mean_per_class_accuracy(predicted, targets),
        "macro_f1_present": lambda predicted: macro_f1_present(predicted, targets),
    }
    if task.metric in by_prediction:
        return Judge(lambda logits: pooled(logits).argmax(axis=1), by_prediction[task.metric], wide=False)
    return Judge(pooled, lambda logits: score_value(task, logits, targets, groups), wide=True)


def forward_selection(
    rows: Float[np.ndarray, "M C E"],
    features: Float[np.ndarray, "N E"],
    judge: Judge,
    *,
    scale: float = 1.0,
    max_templates: int | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> Search:
    """The greedy set: it starts with the best template, adds the best of the others, and stops when the score does not rise.

    Of equally good templates the first is taken.

    Args:
        rows: of each template and class, as `template_rows` makes them.
        features: unit rows of validation samples.
        scale: the multiplier of the cosines, for scores of probabilities.
        max_templates: where to stop at the latest.
    """
    require(max_templates is None or max_templates >= 1, "max_templates", max_templates, "1 or more")
    candidates = _Candidates(rows, features, scale, cache_bytes)
    chosen: list[int] = []
    scores: list[float] = []
    singles, tried = np.zeros(len(rows)), 0
    while len(chosen) < min(len(rows), max_templates or len(rows)):
        left = [template for template in range(len(rows)) if template not in chosen]
        found = candidates.scores(chosen, left, judge)
        tried += len(left)
        if not chosen:
            singles = found
        best = int(found.argmax())
        if scores and found[best] <= scores[-1]:
            break
        chosen.append(left[best])
        scores.append(float(found[best]))
    return Search(chosen=tuple(chosen), scores=tuple(scores), singles=singles, tried=tried)


def path_scores(
    rows: Float[np.ndarray, "M C E"],
    features: Float[np.ndarray, "N E"],
    order: Sequence[int],
    judge: Judge,
    *,
    scale: float = 1.0,
) -> list[float]:
    """The scores of the first template of `order`, of the first two, and so on."""
    candidates = _Candidates(rows[list(order)], features, scale, CACHE_BYTES)
    return [float(candidates.scores(range(count), [count], judge)[0]) for count in range(len(order))]


def template_rows(inputs: Inputs, names: Names, templates: Sequence[str]) -> Float[np.ndarray, "M C E"]:
    """The row of each template and class: the mean of its names' unit rows, not made unit again.

    The mean over templates of these is the direction of the classifier.
    """
    several = [name for of_class in names.values() for name in of_class]
    prompts = [fill(template, name) for template in templates for name in several]
    distinct = list(dict.fromkeys(prompts))
    place = {prompt: index for index, prompt in enumerate(distinct)}
    rows = inputs.texts(distinct)[[place[prompt] for prompt in prompts]].reshape(len(templates), len(several), -1)
    sizes = np.array([len(of_class) for of_class in names.values()])
    if (sizes == 1).all():
        return rows
    sums = np.add.reduceat(rows, np.concatenate([[0], sizes.cumsum()[:-1]]), axis=1)
    return (sums / sizes[:, None]).astype(np.float32)


class _Candidates:
    """The scores of sets of templates with one more, for many that might be the one."""

    def __init__(self, rows: np.ndarray, features: np.ndarray, scale: float, cache_bytes: int):
        self.rows, self.features, self.scale = rows, features, scale
        self.squares = np.einsum("mce,mce->mc", rows, rows).astype(np.float64)
        self.flat = rows.reshape(-1, rows.shape[2]).T  # (E, M C)
        self.kept = features @ self.flat if 4 * len(features) * self.flat.shape[1] <= cache_bytes else None

    def scores(self, chosen: Sequence[int], left: Sequence[int], judge: Judge) -> np.ndarray:
        """The score of `chosen` with each of `left`."""
        each = 4 * len(self.features) * self.rows.shape[1]
        step = max(1, WIDE_BYTES // each) if judge.wide else len(left)
        found = []
        for start in range(0, len(left), step):
            part = list(left[start : start + step])
            kept = self._kept(list(chosen), part, judge)
            found += [judge.score(kept[:, index]) for index in range(len(part))]
        return np.array(found)

    def _kept(self, chosen: list[int], left: list[int], judge: Judge) -> np.ndarray:
        """(N, len(left), ...) what the judge keeps."""
        templates, classes, _ = self.rows.shape
        lengths = self._lengths(chosen, left)
        factors = np.divide(self.scale, lengths, out=np.zeros_like(lengths), where=lengths > 0).astype(np.float32)
        rows, few = max(1, PRODUCTS // self.flat.shape[1]), max(1, BLOCK // (len(left) * classes))
        found = []
        for start in range(0, len(self.features), rows):
            chunk = slice(start, start + rows)
            products = self.features[chunk] @ self.flat if self.kept is None else self.kept[chunk]
            products = products.reshape(-1, templates, classes)
            for first in range(0, len(products), few):
                block = products[first : first + few]
                logits = block[:, left]  # a copy
                if chosen:
                    logits += block[:, chosen].sum(axis=1, keepdims=True)
                logits *= factors
                kept = judge.keep(logits.reshape(-1, classes))
                found.append(kept.reshape(len(block), len(left), *kept.shape[1:]))
        return np.concatenate(found)

    def _lengths(self, chosen: list[int], left: list[int]) -> np.ndarray:
        """(len(left), C) lengths of the sums of rows."""
        total = self.rows[chosen].sum(axis=0)
        across = np.einsum("mce,ce->mc", self.rows, total).astype(np.float64)
        squares = self.squares[left] + 2 * across[left] + np.einsum("ce,ce->c", total, total)
        return np.sqrt(np.maximum(squares, 0))
