"""Accuracy along the line from zero-shot to an adapted predictor, where its pictures are from and where they are not.

    heads      logits(alpha) = (1 - alpha) L_0 + alpha L_1       frozen tower and two linear heads: every alpha from one pass
    weights    theta(alpha) = (1 - alpha) theta_0 + alpha theta_1    tuned towers: live, with pictures decoded once
    logits     as "heads" where the predictor is no linear head: mixed answers, which are no point between weights

alpha is chosen on the split "val" of the task, where it has one; what is measured never chooses. Details of the record: "how",
"alphas", "scores" {task@split: [score at each alpha]}, of which the first is in distribution, "outside" (the mean over the
others), "validation" and "chosen" (None without "val"), "factor" (of the predictor's logits, see `same_spread`).

Letters: N samples, C classes, S pixels a side.
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
from ostension.evals.scores import score_name, score_value, scores
from ostension.evals.store_inputs import Embedder
from ostension.evals.task_splits import TaskSplits
from ostension.image.transforms import Transform
from ostension.model.predictor import Predictor
from ostension.runtime import torch_generator
from ostension.shapes import Float
from ostension.weights.line import head_line, ratio_of_spreads

ALPHAS = tuple(step / 10 for step in range(11))
PROBES = 8  # pairs of rows on which a head shows that it is linear


@dataclasses.dataclass(frozen=True)
class Place:
    """A split that is measured."""

    task: Task
    data: TaskData

    @property
    def name(self) -> str:
        return f"{self.task.name}@{self.data.split}"

    def value(self, logits: Float[np.ndarray, "N C"]) -> float:
        assert self.data.targets is not None
        return score_value(self.task, logits, self.data.targets, self.data.groups)

    def metric(self, logits: Float[np.ndarray, "N C"], seed: int) -> Metric:
        assert self.data.targets is not None
        return scores(self.task, logits, self.data.targets, self.data.groups, seed=seed)[score_name(self.task)]


Answers = Callable[[float, Place], np.ndarray]  # the logits (N, C) at an alpha


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
    places = [Place(one.task, one.split("test")) for one in (splits, *targets)]
    val = Place(splits.task, splits.split("val")) if splits.missing("val") is None else None
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
            how, factor, steps = frozen_answers(predictor, wanted, judged, embedder, splits.task, same_spread)
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


@torch.no_grad()
def is_head(predictor: Predictor) -> bool:
    """Whether the logits are W x + b for rows x of the frozen tower, as seen at the middle of random rows."""
    if predictor.depends != "nothing":
        return False
    device, width = predictor.weights.device, predictor.weights.shape[-1]
    rows = torch.randn(2, PROBES, width, generator=torch_generator("is it linear")).to(device)
    ends, middle = [predictor.logits(part) for part in rows], predictor.logits(rows.mean(dim=0))
    finite = torch.stack(ends).isfinite()
    reach = float(torch.stack(ends)[finite].abs().max()) if bool(finite.any()) else 0.0
    return torch.allclose(middle, (ends[0] + ends[1]) / 2, rtol=0, atol=1e-5 * reach)


def frozen_answers(
    predictor: Predictor, alphas: Sequence[float], places: Sequence[Place], embedder: Embedder, task: Task, same_spread: bool
) -> tuple[str, float, Iterator[tuple[float, Answers]]]:
    """What is mixed, the factor of the predictor's logits, and answers from the logits of both ends, which are computed once.

    Raises:
        ConfigError: for a predictor that changes the image side.
    """
    if predictor.own_images:
        raise ConfigError(
            f"{predictor.kind} changes the image side and tunes no tower, so there is no line",
            expected="a head or a tuned tower",
        )
    templates = predictor.templates or task.prompt_templates()
    ends: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for place in places:
        names = names_of(place.task)
        start = Predictor.zero_shot(predictor.encoder, list(names), templates)
        both = (logits_of(one, place.data, embedder) for one in (start, bound(predictor, names)))
        ends[place.name] = next(both), next(both)
    factor = ratio_of_spreads(*ends[places[0].name]) if same_spread else 1.0
    if factor != 1:
        ends = {name: (start, (factor * end).astype(end.dtype)) for name, (start, end) in ends.items()}

    def answers(alpha: float, place: Place) -> np.ndarray:
        return head_line(*ends[place.name], alpha)

    return "heads" if is_head(predictor) else "logits", factor, ((alpha, answers) for alpha in alphas)


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
