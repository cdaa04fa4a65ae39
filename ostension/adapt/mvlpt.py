"""MVLPT: prompts learned on many tasks at once, which then begin a target task's, or serve the tasks that they were learned on.

    text       contexts around the class name (CoOp's, the name in the middle)
    visual     tokens before every block of the image tower (VPT-deep's)
    unified    both kinds go through one small transformer together and come out as contexts and tokens (UPT)

All tasks' classes make one vocabulary; the loss is the cross-entropy over it, or over the classes of a picture's own task
(`restrict`), the others' logits being minus infinity. Prompts that were learned with several seeds are averaged, number by
number, and the target task goes on from there.

Source: Shen et al. 2024, "Multitask Vision-Language Prompt Tuning" (arXiv:2211.11720), and its code.
Letters: N contexts or tokens, L blocks, W width of the text tower, W' of the image tower, C classes, B batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ostension.adapt._examples import Examples, Labelled
from ostension.adapt._fit import Recipe, fit_addition
from ostension.adapt._init import linear, normal
from ostension.adapt._text import ClassTokens
from ostension.adapt._visual import first_tokens, visual_insert, vit_of
from ostension.adapt.base import Addition, AdditionPredictor, Spec
from ostension.config import require
from ostension.data.pairs import Joined
from ostension.model.clip import CLIP
from ostension.model.config import VitConfig
from ostension.model.layers import Block
from ostension.runtime import torch_generator

SPEC = Spec(
    title="MVLPT",
    paper='Shen, Yang, Zhang, Zhai, Gonzalez, Keutzer, Darrell. "Multitask Vision-Language Prompt Tuning". WACV 2024, '
    "arXiv:2211.11720",
    trains="text contexts (N, W), image tokens (L, N, W'), or both and a transformer of one layer and width 128",
    departures=(
        "a class of another task has the logit minus infinity where the loss is restricted; the code multiplies by 0, which is "
        "harmless only while right logits are large",
        "a name that two tasks share is one class of the vocabulary",
        "all blocks run whatever the number of deep tokens; in the code upper ones can be skipped",
    ),
)
UNIFIED_WIDTH = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the defaults are the code's.

    Attributes:
        family: "text", "visual" or "unified".
        length: text contexts; None takes 16, or 4 of "unified".
        visual_length: image tokens of each block; None takes the same.
        template: of the hand-written prompts, for "visual".
        restrict: whether a picture's classes are those of its own task.
        recipe: how it is trained.
    """

    family: Literal["text", "visual", "unified"] = "unified"
    length: int | None = None
    visual_length: int | None = None
    template: str = "a photo of a {}."
    restrict: bool = False
    recipe: Recipe = dataclasses.field(default_factory=lambda: Recipe(epochs=200))

    def __post_init__(self):
        for key in ("length", "visual_length"):
            value = getattr(self, key)
            require(value is None or value >= 1, key, value, "1 or more, or nothing")


class MVLPT(Addition):
    """Prompts of one family.

    Attributes:
        tasks: for training on several tasks, which classes (T, C) belong to each; None for one.
    """

    kind, config_type = "mvlpt", Config
    hand_written: Tensor

    def __init__(self, model: CLIP, config: Config, class_names: Sequence[str], *, seed: int = 0):
        super().__init__(model, config, class_names, seed=seed)
        self.needs_images = config.family != "text"
        self.tasks: Tensor | None = None
        usual = 4 if config.family == "unified" else 16
        generator, width = torch_generator(seed, "mvlpt"), model.text.config.width
        if config.family != "visual":
            self.context = nn.Parameter(normal((config.length or usual, width), generator).to(model.device))
            self.prompts = ClassTokens(model, self.class_names, "middle")
        else:
            rows = model.classifier(self.class_names, [config.template]).weights
            self.register_buffer("hand_written", rows, persistent=False)
        if self.needs_images:
            vision = vit_of(model, self.kind)
            shape = (vision.layers, config.visual_length or usual, vision.width)
            self.tokens = nn.Parameter(first_tokens(shape, "mvlpt", vision, seed).to(model.device))
        if config.family == "unified":
            self.mixer = Mixer(width, vision, generator).to(model.device)

    def parts(self) -> tuple[Tensor, Tensor]:
        """Contexts and tokens as the towers get them."""
        return self.mixer(self.context, self.tokens) if self.config.family == "unified" else (self.context, self.tokens)

    def image(self, images: Tensor) -> Tensor:
        if not self.needs_images:
            return super().image(images)
        tokens = self.tokens if self.config.family == "visual" else self.parts()[1]
        return self.model.encode_image(images, normalize=True, insert=visual_insert(tokens, "mvlpt"))

    def weights(self, features: Tensor | None = None) -> Tensor:
        if self.config.family == "visual":
            return self.hand_written
        return self.prompts.encode(self.context if self.config.family == "text" else self.parts()[0])

    def loss(self, batch: Any) -> Tensor:
        features = self.image(batch.images) if self.needs_images else batch.features
        logits = self.logits(features)
        if self.tasks is not None and self.config.restrict:
            logits = logits.masked_fill(~self.tasks[batch.domains], -torch.inf)
        return F.cross_entropy(logits, batch.targets)

    def settle(self) -> None:
        self.tasks = None


class Mixer(nn.Module):
    """The small transformer that contexts and tokens go through together."""

    def __init__(self, width: int, vision: VitConfig, generator: torch.Generator):
        super().__init__()
        self.text_in = linear(width, UNIFIED_WIDTH, generator)
        self.image_in = linear(vision.width, UNIFIED_WIDTH, generator)
        self.block = Block(UNIFIED_WIDTH, 1, 4 * UNIFIED_WIDTH, "gelu", 1e-5)
        for name, value in self.block.named_parameters():
            with torch.no_grad():
                if value.ndim > 1:
                    value.copy_(normal(tuple(value.shape), generator, UNIFIED_WIDTH**-0.5))
                else:
                    value.fill_(1.0 if "ln" in name and name.endswith("weight") else 0.0)
        self.text_out = linear(UNIFIED_WIDTH, width, generator)
        self.image_out = linear(UNIFIED_WIDTH, vision.width, generator)

    def forward(self, context: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Contexts (N, W) and tokens (L, N', W') made of each other."""
        sequence = torch.cat([self.text_in(context), self.image_in(tokens.flatten(0, 1))])
        mixed = self.block(sequence[None])[0]
        count = len(context)
        return self.text_out(mixed[:count]), self.image_out(mixed[count:]).view(tokens.shape)


def vocabulary(tasks: Sequence[Examples]) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """All class names, each once, and the place of each task's classes among them."""
    names = list(dict.fromkeys(name for task in tasks for name in task.class_names))
    place = {name: index for index, name in enumerate(names)}
    return tuple(names), [np.array([place[name] for name in task.class_names]) for task in tasks]


def learn(
    model: CLIP,
    tasks: Sequence[Examples],
    config: Config,
    *,
    seed: int = 0,
    folder: Path | None = None,
    progress: Callable[[dict[str, float]], None] | None = None,
) -> MVLPT:
    """Prompts learned on several tasks together, over the vocabulary of all."""
    names, places = vocabulary(tasks)
    addition = MVLPT(model, config, names, seed=seed)
    members = torch.zeros(len(tasks), len(names), dtype=torch.bool)
    for row, own in enumerate(places):
        members[row, torch.from_numpy(own)] = True
    addition.tasks = members.to(model.device)
    joined = Labelled(
        source=Joined([task.train.source for task in tasks]),
        targets=np.concatenate([own[task.train.targets] for task, own in zip(tasks, places, strict=True)]),
        domains=np.repeat(np.arange(len(tasks)), [len(task.train) for task in tasks]),
        name="joined", store=tasks[0].train.store,
    )  # fmt: skip
    fit_addition(addition, joined, config.recipe, seed=seed, folder=folder, progress=progress)
    return addition


def average(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of several states, number by number; of equal ones the same bits."""
    first = states[0]
    if all(torch.equal(state[name], first[name]) for state in states for name in first):
        return dict(first)
    return {name: torch.stack([state[name].double() for state in states]).mean(0).to(first[name]) for name in first}


def fit(
    model: CLIP,
    examples: Examples,
    config: Config,
    *,
    seed: int = 0,
    folder: Path | None = None,
    progress: Callable[[dict[str, float]], None] | None = None,
    sources: Sequence[Examples] = (),
    source_seeds: Sequence[int] = (1, 2, 3),
) -> AdditionPredictor:
    """The predictor of a target task; with `sources`, from the mean of prompts learned on those with each of the seeds."""
    addition = MVLPT(model, config, examples.class_names, seed=seed)
    if sources:
        learned = []
        for number in source_seeds:
            place = None if folder is None else folder / f"source-{number}"
            learned.append(learn(model, sources, config, seed=number, folder=place, progress=progress).state_dict())
        addition.load_state_dict(average(learned))
    fit_addition(addition, examples.train, config.recipe, seed=seed, folder=folder, progress=progress)
    return addition.predictor()
