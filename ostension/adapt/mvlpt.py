"""MVLPT: prompts learned on many tasks at once, which then begin a target task's, or serve the tasks that they were learned on.

    text       contexts around the class name (CoOp's, the name in the middle)
    visual     tokens before every block of the image tower (VPT-deep's)
    unified    both kinds go through one small transformer together and come out as contexts and tokens (UPT)

How several tasks are learned together, and how a target task goes on from there, is in `_joint`.

Source: Shen et al. 2024, "Multitask Vision-Language Prompt Tuning" (arXiv:2211.11720), and its code.
Letters: N contexts or tokens, L blocks, W width of the text tower, W' of the image tower.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from ostension.adapt._fit import Recipe
from ostension.adapt._init import normal
from ostension.adapt._joint import OfTasks, fitting_tasks
from ostension.adapt._mixer import Mixer
from ostension.adapt._text import ClassTokens
from ostension.adapt._visual import first_tokens, visual_insert, vit_of
from ostension.adapt.base import Spec
from ostension.config import require
from ostension.model.clip import CLIP
from ostension.runtime import torch_generator

SPEC = Spec(
    title="MVLPT",
    paper='Shen, Yang, Zhang, Zhai, Gonzalez, Keutzer, Darrell. "Multitask Vision-Language Prompt Tuning". WACV 2024, '
    "arXiv:2211.11720",
    trains="text contexts (N, W), image tokens (L, N, W'), or both and a transformer of one layer and width 128",
    selects=True,
    departures=(
        "a class of another task has the logit minus infinity where the loss is restricted; the code multiplies by 0, which is "
        "harmless only while right logits are large",
        "a name that two tasks share is one class of the vocabulary",
        "all blocks run whatever the number of deep tokens; in the code upper ones can be skipped",
        "one draw of the sources' pictures serves all source seeds; the code draws anew with each",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the defaults are the code's.

    Attributes:
        family: "text", "visual" or "unified".
        length: text contexts; None takes 16, or 4 of "unified".
        visual_length: image tokens of each block; None takes the same.
        template: of the hand-written prompts, for "visual".
        restrict: whether a picture's classes are those of its own task.
        joint: learn the target together with its sources, instead of after them.
        source_seeds: of the prompts that are learned on the sources and averaged.
        recipe: how it is trained.
    """

    family: Literal["text", "visual", "unified"] = "unified"
    length: int | None = None
    visual_length: int | None = None
    template: str = "a photo of a {}."
    restrict: bool = False
    joint: bool = False
    source_seeds: tuple[int, ...] = (1, 2, 3)
    recipe: Recipe = dataclasses.field(default_factory=lambda: Recipe(epochs=200, select="best"))

    def __post_init__(self):
        for key in ("length", "visual_length"):
            value = getattr(self, key)
            require(value is None or value >= 1, key, value, "1 or more, or nothing")
        require(bool(self.source_seeds), "source_seeds", self.source_seeds, "one or more")


class MVLPT(OfTasks):
    """Prompts of one family."""

    kind, config_type = "mvlpt", Config
    hand_written: Tensor

    def __init__(self, model: CLIP, config: Config, class_names: Sequence[str], *, seed: int = 0):
        super().__init__(model, config, class_names, seed=seed)
        self.needs_images = config.family != "text"
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


fit = fitting_tasks(MVLPT)
