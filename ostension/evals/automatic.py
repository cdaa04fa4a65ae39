"""Which method: candidates that suit the case are fitted, judged by pictures held out, and one is taken, with the reason.

Candidates stand in the order in which they change the model, the least first. The one with the best score on the judging
pictures counts, and of those within a standard error of it the first: what more change does not clearly earn is not changed.

    se = sqrt(p (1 - p) / n)         p the best score, n the number of judging pictures

Validation pictures are parted in two: methods choose their own settings on one half, and are judged on the other. The test
split is looked at once, when the choice is made, and decides nothing. docs/howto/choose.md says what the rules rest on.

Letters: N samples, C classes.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ostension.adapt._examples import Examples, Labelled
from ostension.adapt.base import METHODS
from ostension.data.pairs import Subset
from ostension.errors import DataError, OstensionError
from ostension.evals.adaptation import ZERO_SHOT, Plan, examples_of, plan_with
from ostension.evals.store_inputs import Embedder
from ostension.evals.task_splits import TaskSplits
from ostension.model.predictor import Predictor
from ostension.shapes import Bool

BLOCK = 64
WEAK = 2.0  # so many times zero-shot's score say that there is little to hold on to (docs/papers/tuning.md)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wishes:
    """The case.

    Attributes:
        open_vocabulary: other class names will be asked for later.
        shift: pictures will be of another kind than the labelled ones. What does not hold on to what the model knew is then set
            aside, unless it has more than twice zero-shot's score: a model that knows that little has little to hold on to.
        towers: there is time to tune a tower, minutes to hours.
    """

    open_vocabulary: bool = False
    shift: bool = False
    towers: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A method with settings, and what it suits.

    Attributes:
        any_names: what it learns serves other class names.
        steady: it holds on to what the model knew, which pictures of another kind need where that is worth something.
        tower: it tunes a tower.
    """

    method: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    any_names: bool = False
    steady: bool = False
    tower: bool = False

    def unfit(self, wishes: Wishes) -> str:
        """Why it is not tried; empty where it is."""
        if wishes.open_vocabulary and not self.any_names:
            return "what it learns belongs to its classes"
        return "it tunes a tower" if self.tower and not wishes.towers else ""


CANDIDATES = (
    Candidate(method=ZERO_SHOT, any_names=True, steady=True),
    Candidate(method="kgcoop", any_names=True, steady=True),
    Candidate(method="clip-adapter", any_names=True),
    Candidate(method="coop", any_names=True),
    Candidate(method="prior", steady=True),
    Candidate(method="tip-adapter", steady=True),
    Candidate(method="tip-adapter-f"),
    Candidate(method="probe"),
    Candidate(method="wise-ft", settings={"method": "flyp", "recipe.lr": 1e-5}, any_names=True, steady=True, tower=True),
    Candidate(method="wise-ft", settings={"recipe.lr": 1e-5}, steady=True, tower=True),
    Candidate(method="flyp", any_names=True, tower=True),
    Candidate(method="finetune", settings={"recipe.lr": 1e-5}, tower=True),
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tried:
    """What came of a candidate.

    Attributes:
        score: on the judging pictures; None where it was not tried or failed.
        why: why not, or why it does not count.
        seconds: of its fit.
    """

    name: str
    score: float | None = None
    why: str = ""
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """What was taken.

    Attributes:
        predictor: fitted.
        plan: its method and settings.
        tried: every candidate, in their order.
        pictures: how many it was judged on.
        reason: in a sentence.
    """

    predictor: Predictor
    plan: Plan
    tried: tuple[Tried, ...]
    pictures: int
    reason: str


def choose(
    splits: TaskSplits,
    embedder: Embedder,
    wishes: Wishes,
    *,
    shots: int = 16,
    seed: int = 1,
    folder: Path | None = None,
    candidates: Sequence[Candidate] | None = None,
    told: Callable[[Tried], None] | None = None,
) -> Choice:
    """Fit what suits the case, judge, take one.

    Args:
        shots: labelled pictures a class; 0 takes all.
        folder: where fits keep their state.
        candidates: instead of all of `CANDIDATES`.
        told: of each candidate, as it is done.

    Raises:
        DataError, ConfigError: without a training split, or without enough pictures to judge by.
    """
    held = examples_of(splits, embedder, plan_with("probe", {}, shots=shots, seed=seed))
    own, judging = halves(held)
    tried: list[Tried] = []
    found: list[tuple[Plan, Predictor]] = []
    listed = CANDIDATES if candidates is None else candidates
    for number, candidate in enumerate(listed):
        plan, name = plan_with(candidate.method, candidate.settings, shots=shots, seed=seed), _name(candidate)
        began = time.monotonic()
        try:
            if why := candidate.unfit(wishes):
                tried.append(Tried(name=name, why=why))
            else:
                place = None if folder is None else folder / f"{number}-{candidate.method}"
                predictor = _fit(plan, embedder, own, place)
                score = float(right(predictor, judging, embedder).mean())
                found.append((plan, predictor))
                tried.append(Tried(name=name, score=score, seconds=round(time.monotonic() - began, 3)))
        except OstensionError as error:  # a model that the method is not for; the others are
            tried.append(Tried(name=name, why=str(error)))
        if told is not None:
            told(tried[-1])
    if not found:
        raise DataError("no method could be fitted", fix=f"{tried[0].name}: {tried[0].why}")
    if wishes.shift:
        tried = set_aside(tried, listed)
    scored = [one for one in tried if one.score is not None]
    left = [number for number, one in enumerate(scored) if not one.why]
    best, reason = decide([(scored[number].name, float(scored[number].score or 0)) for number in left], len(judging))
    plan, predictor = found[left[best]]
    return Choice(predictor=predictor, plan=plan, tried=tuple(tried), pictures=len(judging), reason=reason)


def set_aside(tried: Sequence[Tried], candidates: Sequence[Candidate]) -> list[Tried]:
    """The same with the reason why what is not steady does not count, where zero-shot is worth holding on to."""
    words = next((one.score for one in tried if one.name == ZERO_SHOT and one.score is not None), 0.0)
    why = "set aside: it does not hold on to what the model knew"
    return [
        dataclasses.replace(one, why=why)
        if one.score is not None and not candidate.steady and one.score <= WEAK * words
        else one
        for one, candidate in zip(tried, candidates, strict=True)
    ]


def decide(scores: Sequence[tuple[str, float]], pictures: int) -> tuple[int, str]:
    """The first within a standard error of the best, and why it is taken."""
    best_name, best = max(scores, key=lambda pair: pair[1])
    error = math.sqrt(best * (1 - best) / pictures)
    place = next(number for number, (_, score) in enumerate(scores) if score >= best - error)
    name, score = scores[place]
    said = f"{name} has {100 * score:.1f} % of {pictures} pictures that no method has seen"
    if name == best_name and score == best:
        return place, f"{said}, the most"
    return place, (
        f"{said}; {best_name} has {100 * best:.1f} %, within a standard error of {100 * error:.1f} points, and changes more"
    )


def halves(examples: Examples) -> tuple[Examples, Labelled]:
    """The examples with every second validation picture of each class, and the others to judge by.

    Raises:
        DataError: where no class has two.
    """
    val = examples.val
    assert val is not None
    seen: dict[int, int] = {}
    second = np.zeros(len(val), bool)
    for place, target in enumerate(val.targets.tolist()):
        seen[target] = seen.get(target, 0) + 1
        second[place] = seen[target] % 2 == 0
    if not second.any():
        raise DataError(
            f"{len(val)} validation pictures, one a class", expected="two of some class", fix="more labelled pictures"
        )
    return dataclasses.replace(examples, val=_part(val, ~second)), _part(val, second)


def right(predictor: Predictor, data: Labelled, embedder: Embedder) -> Bool[np.ndarray, " N"]:
    """Which pictures a predictor gets right, from kept rows where it leaves the image side alone."""
    model, found = embedder.model, []
    rows = None if predictor.own_images else data.features(model, level=predictor.level)[0]
    with torch.no_grad():
        for start in range(0, len(data), BLOCK):
            block = np.arange(start, min(start + BLOCK, len(data)))
            if rows is None:
                logits = predictor.forward(data.pixels(model, block).to(model.device))
            else:
                logits = predictor.logits(rows[start : start + BLOCK].to(model.device))
            found.append(logits.argmax(dim=1).cpu().numpy())
    return np.concatenate(found) == data.targets


def _part(data: Labelled, chosen: np.ndarray) -> Labelled:
    places = np.flatnonzero(chosen)
    domains = None if data.domains is None else data.domains[places]
    return dataclasses.replace(data, source=Subset(data.source, places), targets=data.targets[places], domains=domains)


def _fit(plan: Plan, embedder: Embedder, examples: Examples, folder: Path | None) -> Predictor:
    if plan.method == ZERO_SHOT:
        return embedder.model.classifier(list(examples.class_names), examples.templates)
    return METHODS.load(plan.method).fit(embedder.model, examples, plan.config, seed=plan.seed, folder=folder)


def _name(candidate: Candidate) -> str:
    inner = candidate.settings.get("method")
    return candidate.method if inner is None else f"{candidate.method} of {inner}"
