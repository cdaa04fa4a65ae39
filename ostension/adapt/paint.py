"""PAINT: the image tower is tuned before a frozen hand-written classifier, then taken back as far as other tasks ask for.

    theta = theta_0 + alpha (theta_1 - theta_0)        alpha of a grid, by validation pictures of new tasks and of those to keep

Nothing is added and the text tower stays, so the model takes any class names, as before. Several new tasks are learned

    joint          in one run on the pictures of all, each before its own task's classifier
    sequential     one after the other, each from the patched model before, with an alpha of its own
    parallel       each from theta_0;  theta = theta_0 + sum_i alpha_i (theta_i - theta_0)

A point is judged by the mean of two sides: accuracy on the new tasks, and on those to keep. In a sequence the tasks learned so
far are the new ones. Or (`within`) the new tasks count alone, as long as those to keep stay near where they were.

Source: Ilharco et al. 2022, "Patching open-vocabulary models by interpolating weights" (arXiv:2208.05592), and its code, which
has the single task.
Letters: B batch, C classes, E embedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ostension.adapt._examples import Examples, Labelled
from ostension.adapt._fit import Recipe, fit_addition
from ostension.adapt._hand_written import HandWritten, with_templates
from ostension.adapt._patching import Held, go, name_of
from ostension.adapt._tuning import Tuned, tuning
from ostension.adapt.base import AdditionPredictor, Spec
from ostension.config import require
from ostension.data.pairs import Joined
from ostension.errors import ConfigError
from ostension.model.clip import CLIP
from ostension.weights.line import GRID

MODES = ("joint", "sequential", "parallel")

SPEC = Spec(
    title="PAINT",
    paper='Ilharco, Wortsman, Gadre, Song, Hajishirzi, Kornblith, Farhadi, Schmidt. "Patching open-vocabulary models by '
    'interpolating weights". NeurIPS 2022, arXiv:2208.05592',
    trains="the image tower",
    selects=True,
    neutral={},
    departures=(
        "several tasks: the code has one; joint, sequential and parallel are as the paper defines them, from memory",
        "the alphas of parallel patches: the best common one, then each in turn until nothing gains (the paper: a black-box "
        "search, from memory)",
        "in a sequence the tasks learned so far count as new ones, with one half of the weight together",
        "the warm-up of 500 steps is a quarter of all steps at most",
        "where no task to keep is named, alpha is chosen on the new ones alone; `within` is ours",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the defaults are the code's.

    Attributes:
        several: how several new tasks are learned: "joint", "sequential" or "parallel".
        alpha: how far to go; None chooses it.
        within: choose the point with the best accuracy on new tasks at which those to keep have lost no more than this on
            average (in each step of a sequence), such as 0.01; None takes the best mean of both sides, which may give up more.
        grid: steps of the grid that alpha is chosen from, 0 to 1.
        refine: look at every fourth part of the grid first, then nearer and nearer to the best: half the work where the
            mean of both sides has one peak.
        val_limit: validation pictures of a task that are looked at, at most.
        templates: of the first task's classifier; none takes the task's. The other tasks have their own.
        groups: train only so many of the image tower's last groups (`Tuned`); None trains all of it.
        recipe: how the tower is tuned, for each task anew where they are not learned jointly.
    """

    several: Literal["joint", "sequential", "parallel"] = "joint"
    alpha: float | None = None
    within: float | None = None
    grid: int = len(GRID) - 1
    refine: bool = False
    val_limit: int = 5000
    templates: tuple[str, ...] = ()
    groups: int | None = None
    recipe: Recipe = dataclasses.field(default_factory=lambda: tuning(lr=1e-5, batch_size=128))

    def __post_init__(self):
        require(self.several in MODES, "several", self.several, f"one of {', '.join(MODES)}")
        require(not (self.refine and self.several == "parallel"), "refine", True, "false where patches are side by side")
        require(self.alpha is None or 0 <= self.alpha <= 1, "alpha", self.alpha, "0 to 1, or nothing to choose it")
        require(self.within is None or 0 <= self.within < 1, "within", self.within, "a share of 1, such as 0.01, or nothing")
        require(self.within is None or self.alpha is None, "within", self.within, "nothing where alpha is given")
        require(self.grid >= 1, "grid", self.grid, "1 step or more")
        require(self.val_limit >= 1, "val_limit", self.val_limit, "1 or more")
        require(self.recipe.select == "last", "recipe.select", self.recipe.select, "last: alpha is chosen, and no epoch")


class Paint(HandWritten, Tuned):
    """The image tower, tuned before the rows of hand-written prompts.

    Attributes:
        heads: in training on several tasks, the rows (C, E) of each.
    """

    kind, config_type = "paint", Config

    def __init__(self, model: CLIP, config: Config, class_names: Sequence[str], *, seed: int = 0):
        super().__init__(model, config, class_names, seed=seed)
        self.heads: list[Tensor] = []

    def loss(self, batch: Any) -> Tensor:
        if not self.heads:
            return super().loss(batch)
        features, found = self.image(batch.images), []
        for number, rows in enumerate(self.heads):
            members = batch.domains == number
            logits = self.scale() * self.cosines(features[members], rows)
            found.append(F.cross_entropy(logits, batch.targets[members], reduction="sum"))
        return torch.stack(found).sum() / len(features)

    def settle(self) -> None:
        self.heads = []

    def take(self, model: CLIP) -> None:
        """Become the image tower of a model."""
        self.live.visual.load_state_dict(model.visual.state_dict())


def learn(
    start: CLIP,
    tasks: Sequence[Examples],
    config: Config,
    *,
    seed: int,
    folder: Path | None,
    progress: Callable[[dict[str, float]], None] | None,
) -> CLIP:
    """A model whose image tower is tuned on the pictures of tasks, each before its own task's classifier."""
    first = tasks[0]
    addition = Paint(start, config, first.class_names, seed=seed)
    data = first.train
    if len(tasks) > 1:
        addition.heads = [start.classifier(task.class_names, task.templates).weights for task in tasks]
        data = Labelled(
            source=Joined([task.train.source for task in tasks]),
            targets=np.concatenate([task.train.targets for task in tasks]),
            domains=np.repeat(np.arange(len(tasks)), [len(task.train) for task in tasks]),
            name="joined", store=first.train.store,
        )  # fmt: skip
    fit_addition(addition, data, config.recipe, seed=seed, folder=folder, progress=progress)
    return addition.tuned_model()


def fit(
    model: CLIP,
    examples: Examples,
    config: Config,
    *,
    seed: int = 0,
    folder: Path | None = None,
    progress: Callable[[dict[str, float]], None] | None = None,
    sources: Sequence[Examples] = (),
    keep: Sequence[Examples] = (),
) -> AdditionPredictor:
    """The patched model's predictor.

    Args:
        sources: further tasks to learn, after `examples`.
        keep: tasks whose accuracy is to stay; their training pictures are not looked at.

    Raises:
        ConfigError: for a task without validation pictures where alpha is to be chosen, or two tasks of one name.
    """
    config = with_templates(config, examples)
    tasks = [dataclasses.replace(examples, templates=config.templates), *sources]
    named = [name_of(task) for task in (*tasks, *keep)]
    if len(set(named)) < len(named):
        raise ConfigError(f"tasks {', '.join(named)}", expected="each once, to learn or to keep")

    def held(some: Sequence[Examples]) -> dict[str, Held]:
        if config.alpha is not None:
            return {}
        return {name_of(task): Held(model, task, limit=config.val_limit, seed=seed) for task in some}

    grid = [step / config.grid for step in range(config.grid + 1)] if config.alpha is None else [config.alpha]
    new, kept = held(tasks), held(keep)

    def tuned(start: CLIP, some: Sequence[Examples], place: str) -> CLIP:
        return learn(start, some, config, seed=seed, folder=folder and folder / place, progress=progress)

    order: list[dict[str, Any]] = []

    def patched(start: CLIP, ends: Sequence[CLIP], number: int) -> CLIP:
        """From `start` towards `ends`, which learned the tasks up to `number`."""
        found, choice = go(start, ends, {name: new[name] for name in named[:number] if name in new}, kept, grid,
                           within=config.within, refine=config.refine)  # fmt: skip
        order.append({"tasks": named[:number], **choice.tree()})
        return found

    if config.several == "joint" or len(tasks) == 1:
        result = patched(model, [tuned(model, tasks, "joint")], len(tasks))
    elif config.several == "parallel":
        result = patched(model, [tuned(model, [task], name_of(task)) for task in tasks], len(tasks))
    else:
        result = model
        for number, task in enumerate(tasks, 1):
            result = patched(result, [tuned(result, [task], name_of(task))], number)
    addition = Paint(model, config, examples.class_names, seed=seed)
    addition.take(result)
    predictor = addition.predictor(config.templates)
    predictor.facts |= {"several": config.several, "keep": [name_of(task) for task in keep], "patches": order}
    return predictor
