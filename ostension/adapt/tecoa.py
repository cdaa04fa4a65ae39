"""TeCoA: training on attacked pictures against the text classifier, so that robustness reaches classes never trained on.

    d ~ U(-eps, eps), then K times  d <- clip(d + alpha sign(dL/dd), +-eps),  x + d in 0..1;   L = CE(s f(x + d) W', y)

W are the hand-written prompts' rows. Trained is the image tower ("tower"), or a frame of pixels and tokens ("prompts").
Source: Mao et al. 2023, "Understanding Zero-Shot Adversarial Robustness for Large-Scale Models" (arXiv:2212.07016), and its
code.
Letters: B batch, S pixels a side, N tokens, W width, E embedding, C classes.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ostension.adapt._fit import Recipe, fitting
from ostension.adapt._init import normal
from ostension.adapt._visual import first_tokens, visual_insert, vit_of
from ostension.adapt.base import Addition, Examples, Spec
from ostension.config import require
from ostension.model.clip import CLIP
from ostension.runtime import torch_generator
from ostension.train.attacks import Budget, pgd

RATES = {"tower": 1e-5, "prompts": 40.0}

SPEC = Spec(
    title="TeCoA",
    paper='Mao, Geng, Yang, Wang, Vondrick. "Understanding Zero-Shot Adversarial Robustness for Large-Scale Models". '
    "ICLR 2023, arXiv:2212.07016",
    trains="the image tower, or a frame of pixels (3, S, S) and tokens (N, W)",
    neutral={},
    neutral_template="This is a photo of a {}",
    departures=(
        "the attack's gradients never reach the weights; in the code they do, and loss scaling hides it",
        "the learning rate is constant within an epoch; the code warms up over 1,000 steps and follows a cosine by step",
        "no checkpoint is chosen by test sets; the last one counts",
        "the paper's learning rate of the tower, 1e-5, is remembered; the script's default is 1e-7",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the defaults are the shipped commands'.

    Attributes:
        train: "tower", or "prompts".
        attack: in training.
        frame_px: width of the frame of pixels, for "prompts"; 0 is none.
        tokens: N, for "prompts"; 0 is none.
        template: of the hand-written prompts.
        recipe: how it is trained; without `lr` it has 1e-5 for the tower and 40 for prompts. `views` is 0, as nothing is
            cropped at random.
    """

    train: Literal["tower", "prompts"] = "tower"
    attack: Budget = dataclasses.field(default_factory=Budget)
    frame_px: int = 30
    tokens: int = 100
    template: str = "This is a photo of a {}"
    recipe: Recipe = dataclasses.field(
        default_factory=lambda: Recipe(epochs=10, batch_size=256, lr=None, weight_decay=0.0, warmup_epochs=0, views=0)
    )

    def __post_init__(self):
        require(self.frame_px >= 0, "frame_px", self.frame_px, "0 or more")
        require(self.tokens >= 0, "tokens", self.tokens, "0 or more")


class TeCoA(Addition):
    """A tower of its own, or prompts for the model's."""

    kind, config_type, needs_images = "tecoa", Config, True
    hand_written: Tensor
    inner: Tensor

    def __init__(self, model: CLIP, config: Config, class_names: Sequence[str], *, seed: int = 0):
        super().__init__(model, config, class_names, seed=seed)
        words = [re.sub("[_/-]", " ", name.lower()) for name in self.class_names]
        self.register_buffer("hand_written", model.classifier(words, [config.template]).weights, persistent=False)
        if config.train == "tower":
            self.tower = copy.deepcopy(model.visual).float().requires_grad_().eval()
            return
        vision, side = vit_of(model, self.kind), model.config.vision.image_size
        require(2 * config.frame_px < side, "frame_px", config.frame_px, f"less than half of {side}")
        generator = torch_generator(seed, "tecoa", "frame")
        inner = torch.zeros(side, side)
        inner[config.frame_px : side - config.frame_px, config.frame_px : side - config.frame_px] = 1
        self.register_buffer("inner", inner.to(model.device), persistent=False)
        self.frame = nn.Parameter(normal((3, side, side), generator, 1.0).to(model.device))
        self.tokens = nn.Parameter(first_tokens((1, config.tokens, vision.width), "tecoa", vision, seed).to(model.device))

    def image(self, images: Tensor) -> Tensor:
        if self.config.train == "tower":
            return F.normalize(self.tower(images.float()), dim=-1)
        framed = images + self.frame * (1 - self.inner)
        return self.model.encode_image(framed, normalize=True, insert=visual_insert(self.tokens, "tecoa"))

    def train(self, mode: bool = True) -> TeCoA:
        # A ResNet's running statistics stay the model's own: attacked pictures would move them with every forward.
        super().train(mode)
        if self.config.train == "tower":
            self.tower.eval()
        return self

    def weights(self, features: Tensor | None = None) -> Tensor:
        return self.hand_written

    def loss(self, batch: Any) -> Tensor:
        mean, std = pixel_statistics(self.model, batch.images)

        def logits(pixels: Tensor) -> Tensor:
            return self.logits(self.image((pixels - mean) / std))

        pixels = (batch.images * std + mean).clamp(0, 1)
        attacked = pgd(logits, pixels, batch.targets, self.config.attack, generator=batch.generator)
        return F.cross_entropy(logits(attacked.detach()), batch.targets)


def pixel_statistics(model: CLIP, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread of the model's preprocessing as (3, 1, 1)."""
    config = model.transform.config
    return tuple(torch.tensor(values).to(like)[:, None, None] for values in (config.mean, config.std))  # type: ignore[return-value]


def _recipe(config: Config, examples: Examples) -> Recipe:
    """The recipe with the learning rate of what is trained."""
    return config.recipe if config.recipe.lr is not None else dataclasses.replace(config.recipe, lr=RATES[config.train])


fit = fitting(TeCoA, _recipe)
