"""Accuracy along the line from zero-shot to an adapted predictor, where its pictures are from and where they are not.

    heads      logits(alpha) = (1 - alpha) L_0 + alpha L_1       frozen tower and two linear heads: every alpha from one pass
                                                                 over kept rows (`weights.heads`), for the price of one point
    weights    theta(alpha) = (1 - alpha) theta_0 + alpha theta_1    tuned towers: live, with pictures decoded once
    logits     as "heads" where the predictor is no linear head: mixed answers, which are no point between weights

alpha is chosen on the split "val" of the task, where it has one; what is measured never chooses. Details of the record: "how",
"alphas", "scores" {task@split: [score at each alpha]}, of which the first is in distribution, "outside" (the mean over the
others), "validation" and "chosen" (None without "val"), "factor" (of the predictor's logits, see `same_spread`).

Letters: N samples, C classes, A alphas, S pixels a side.
Source: Wortsman et al. 2022 (arXiv:2109.01903), section 4.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ostension.adapt._tuning import Tuned
from ostension.adapt.base import AdditionPredictor
from ostension.config import require
from ostension.data.task import Task
from ostension.data.task_data import TaskData
from ostension.errors import ConfigError
from ostension.evals.adaptation import points_between
from ostension.evals.answers import BLOCK, bound, logits_of, names_of
from ostension.evals.records import Metric, Record
from ostension.evals.scores import (
    BY_PICKS,
    check_targets,
    score_name,
    score_value,
    scores,
    scores_of_picks,
    value_of_picks,
)
from ostension.evals.store_inputs import Embedder
from ostension.evals.task_splits import TaskSplits
from ostension.image.transforms import Transform
from ostension.model.predictor import Predictor
from ostension.shapes import Float
from ostension.store.key import Level
from ostension.weights.heads import End, Head, head_of, picks_of_heads, picks_of_logits
from ostension.weights.line import head_line, ratio_of_spreads

ALPHAS = tuple(step / 10 for step in range(11))


@dataclasses.dataclass(frozen=True)
class Place:
    """A split that is measured."""

    splits: TaskSplits
    data: TaskData

    @classmethod
    def of(cls, splits: TaskSplits, split: str = "test") -> Place:
        data = splits.split(split)
        assert data.targets is not None
        check_targets(splits.task, (len(data), len(splits.task.display_names())), data.targets)
        return cls(splits, data)

    @property
    def task(self) -> Task:
        return self.splits.task

    @property
    def name(self) -> str:
        return f"{self.task.name}@{self.data.split}"

    @property
    def by_picks(self) -> bool:
        """Whether the score looks at the largest logits alone."""
        return score_name(self.task) in BY_PICKS

    def value(self, said: np.ndarray) -> float:
        """The score of logits (N, C), or of the classes that are picked (N,)."""
        assert self.data.targets is not None
        measure = value_of_picks if said.ndim == 1 else score_value
        return measure(self.task, said, self.data.targets, self.data.groups)

    def metric(self, said: np.ndarray, seed: int) -> Metric:
        """The same with its interval."""
        assert self.data.targets is not None
        given = self.data.targets, self.data.groups
        if said.ndim == 1:
            classes = len(self.task.display_names())
            return scores_of_picks(self.task, said, *given, classes=classes, seed=seed)[score_name(self.task)]
        return scores(self.task, said, *given, seed=seed)[score_name(self.task)]


Answers = Callable[[float, Place], np.ndarray]  # the logits (N, C) at an alpha, or what they pick (N,)


def adapt_curve(
    predictor: Predictor,
    splits: TaskSplits,
    embedder: Embedder,
    *,
    targets: Sequence[TaskSplits] = (),
    alphas: Sequence[float] = ALPHAS,
    same_spread: bool = False,
    seed: int = 0,
) -> Record:
    """The scores at every alpha; the metrics are those of the chosen one (of the predictor, where none is), of zero-shot and of
    the predictor.

    The start is zero-shot with the predictor's templates, or the task's where it has none, or what the method begins with where
    it tunes a tower.

    Args:
        targets: other tasks, out of distribution.
        same_spread: multiply a head's logits so that they spread over the classes as zero-shot's do (on the task's measured
            pictures, whose labels are not looked at). A probe that was chosen by accuracy may have logits of any size.
        seed: of bootstraps.

    Raises:
        ConfigError: for a predictor that changes the image side and tunes no tower of a model, or alphas without both ends.
    """
    given = sorted({float(alpha) for alpha in alphas})
    require(bool(given) and 0 <= given[0] <= given[-1] <= 1, "alphas", list(alphas), "numbers from 0 to 1")
    wanted = sorted({0.0, 1.0, *given})
    places = [Place.of(one) for one in (splits, *targets)]
    val = Place.of(splits, "val") if splits.missing("val") is None else None
    judged = [*places, *([val] if val is not None else [])]
    known: dict[str, list[float]] = {place.name: [] for place in judged}
    kept: dict[tuple[str, float], Metric] = {}
    how, best, factor = "weights", (-1.0, 1.0), 1.0
    with tempfile.TemporaryDirectory(prefix="ostension-curve-") as folder:
        if is_tuned(predictor):
            if same_spread:
                raise ConfigError("same_spread has no effect on a tuned tower, whose weights are interpolated")
            steps = tuned_answers(predictor, wanted, judged, embedder, Path(folder))  # type: ignore[arg-type]
        else:
            how, factor, steps = frozen_answers(predictor, wanted, judged, embedder, same_spread)
        for alpha, answers in steps:
            found = {place.name: answers(alpha, place) for place in judged}
            for place in judged:
                known[place.name].append(place.value(found[place.name]))
            better = val is not None and alpha in given and known[val.name][-1] > best[0]
            if better and val is not None:
                best = known[val.name][-1], alpha
            for place in places if better or alpha in (0, 1) else []:
                kept[place.name, alpha] = place.metric(found[place.name], seed)
    inside, outside = places[0], places[1:]
    chosen = best[1] if val is not None else None
    measured: dict[str, Metric] = {}
    for prefix, alpha in (("", 1.0 if chosen is None else chosen), ("zero-shot/", 0.0), ("adapted/", 1.0)):
        measured[f"{prefix}{score_name(inside.task)}"] = kept[inside.name, alpha]
        measured |= {f"{prefix}{place.name}": kept[place.name, alpha] for place in outside}
    shown = [wanted.index(alpha) for alpha in given]
    curves = {name: [values[at] for at in shown] for name, values in known.items()}
    details: dict[str, Any] = {
        "how": how, "factor": factor, "alphas": given,
        "scores": {place.name: curves[place.name] for place in places}, "chosen": chosen,
        "outside": np.mean([curves[place.name] for place in outside], axis=0).tolist() if outside else [],
        "validation": curves[val.name] if val is not None else [],
    }  # fmt: skip
    return Record(
        protocol="adapt-curve", subject=f"{predictor.kind} along alpha", metrics=measured,
        config={"alphas": given, "same_spread": same_spread}, hashes=embedder.hashes(splits.task),
        counts={place.name: len(place.data) for place in places}, seeds=(seed,),
        task=splits.task.name, model=embedder.name, split=inside.data.split, details=details,
    )  # fmt: skip


def is_tuned(predictor: Predictor) -> bool:
    """Whether the predictor has towers of its own, so that there are weights to go along."""
    return isinstance(getattr(predictor, "module", None), Tuned)


def frozen_answers(
    predictor: Predictor, alphas: Sequence[float], places: Sequence[Place], embedder: Embedder, same_spread: bool
) -> tuple[str, float, Iterator[tuple[float, Answers]]]:
    """What is mixed, the factor of the predictor's logits, and answers from one pass over the rows of both ends.

    Raises:
        ConfigError: for a predictor that changes the image side.
    """
    if predictor.own_images:
        raise ConfigError(
            f"{predictor.kind} changes the image side and tunes no tower, so there is no line",
            expected="a head or a tuned tower",
        )
    head = head_of(predictor)
    templates = predictor.templates or places[0].task.prompt_templates()
    ends = {}
    for place in places:
        names = names_of(place.task)
        ends[place.name] = words(embedder, place, names, templates), bound(predictor, names)
    factor = ratio_of_spreads(*_logits(ends[places[0].name], places[0], embedder)) if same_spread else 1.0
    found: dict[str, np.ndarray] = {}  # picks (A, N), or else both ends' logits (2, N, C)
    for place in places:
        if head is not None and place.by_picks:
            start, end = ends[place.name]
            both = (start, head_of(start)), (end, head if end is predictor else head_of(end))
            found[place.name] = picks_of_heads(*_heads(both, place, embedder, factor), alphas)
        else:
            logits = _logits(ends[place.name], place, embedder, factor)
            found[place.name] = picks_of_logits(*logits, alphas) if place.by_picks else np.stack(logits)
    order = {alpha: number for number, alpha in enumerate(alphas)}

    def answers(alpha: float, place: Place) -> np.ndarray:
        known = found[place.name]
        return known[order[alpha]] if place.by_picks else head_line(known[0], known[1], alpha)

    return "logits" if head is None else "heads", factor, ((alpha, answers) for alpha in alphas)


def words(embedder: Embedder, place: Place, names: Sequence[str], templates: Sequence[str]) -> Predictor:
    """Zero-shot, from rows of prompts that are kept."""
    rows = embedder.inputs(place.splits).classifier({name: (name,) for name in names}, templates)
    return Predictor(
        class_names=names, weights=torch.from_numpy(rows).to(embedder.model.device), scale=embedder.scale,
        encoder=embedder.model, templates=templates,
    )  # fmt: skip


def _logits(
    ends: tuple[Predictor, Predictor], place: Place, embedder: Embedder, factor: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """The logits of both ends, the second's multiplied."""
    start, end = (logits_of(one, place.data, embedder) for one in ends)
    return start, end if factor == 1 else (factor * end).astype(end.dtype)


def _heads(
    ends: tuple[tuple[Predictor, Head | None], ...], place: Place, embedder: Embedder, factor: float
) -> tuple[End, End]:
    """Both ends as heads on rows that are kept, with the logits that `logits_of` gives."""
    known: dict[Level, np.ndarray] = {}
    for level in dict.fromkeys(one.level for one, _ in ends):
        rows = embedder.rows(place.data, level)
        known[level] = rows.unit() if level == "post" else rows.array()

    def end(predictor: Predictor, head: Head | None) -> End:
        rows = known[predictor.level]
        assert head is not None

        @torch.no_grad()
        def exact(chosen: np.ndarray) -> np.ndarray:
            return predictor.logits(torch.from_numpy(rows[chosen]).to(predictor.encoder.device)).float().cpu().numpy()

        return End(head, rows, exact)

    return end(*ends[0]), end(*ends[1]).scaled(factor)


def tuned_answers(
    predictor: AdditionPredictor, alphas: Sequence[float], places: Sequence[Place], embedder: Embedder, folder: Path
) -> Iterator[tuple[float, Answers]]:
    """Answers of live weights, one alpha after another; the predictor has its own again in the end."""
    if predictor.takes != "pictures":
        raise ConfigError(f"a {predictor.kind!r} predictor takes {predictor.takes}", expected="one of pictures")
    pictures = {
        place.name: Decoded(place.data, embedder.transform(place.task), folder / str(number))
        for number, place in enumerate(places) if predictor.own_images
    }  # fmt: skip
    for alpha, (_, now) in zip(alphas, points_between(predictor, alphas), strict=True):

        def answers(alpha: float, place: Place, now: Predictor = now) -> np.ndarray:
            at = bound(now, names_of(place.task))
            return pictures[place.name].logits(at) if predictor.own_images else logits_of(at, place.data, embedder)

        yield alpha, answers


class Decoded:
    """The pictures of a split as the model takes them, in bytes: decoded and resized once, kept in a file."""

    def __init__(self, data: TaskData, transform: Transform, path: Path):
        side = transform.config.image_size
        self.transform = transform
        self.pixels = np.memmap(path, np.uint8, "w+", shape=(len(data), 3, side, side))
        for index in range(len(data)):
            pair = data.samples.read(index)
            self.pixels[index] = transform.pixels(pair.image, name=pair.key).numpy()

    @torch.no_grad()
    def logits(self, predictor: Predictor) -> Float[np.ndarray, "N C"]:
        """The logits of all of them."""
        found = []
        for start in range(0, len(self.pixels), BLOCK):
            block = torch.from_numpy(np.array(self.pixels[start : start + BLOCK])).to(predictor.encoder.device)
            found.append(predictor.forward(self.transform.normalize(block)).float().cpu())
        return torch.cat(found).numpy()
