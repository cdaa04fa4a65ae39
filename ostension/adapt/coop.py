"""CoOp: the words around a class name become free vectors, learned from a few labelled pictures.

    t_c = [v_1] ... [v_N] [name_c] "."        p(y = c | x) = softmax_c(scale * cos(f(x), g(t_c)))

The loss is the cross-entropy; both towers stay as they are. Contexts are the same for all classes, or one set a class.
Source: Zhou, Yang, Loy, Liu 2022, "Learning to Prompt for Vision-Language Models" (arXiv:2109.01134), and its code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ostension.adapt._fit import Recipe, fitting
from ostension.adapt._text import ClassTokens, word_context
from ostension.adapt.base import Addition, Examples, Spec
from ostension.config import require
from ostension.model.clip import CLIP
from ostension.runtime import torch_generator

INIT_STD = 0.02
EPOCHS = ((1, 50), (4, 100))  # up to so many pictures a class, so many epochs; 200 beyond. ImageNet has 50 whatever it is.
MOST_EPOCHS = 200

SPEC = Spec(
    title="CoOp",
    paper='Zhou, Yang, Loy, Liu. "Learning to Prompt for Vision-Language Models". IJCV 2022, arXiv:2109.01134',
    trains="the contexts, (N, W) or one set a class (C, N, W)",
    neutral={"words": "a photo of a"},
    departures=(
        "words give one vector a token, and class-specific contexts may begin with words too; in the code words overrule both",
        "front and middle keep name and full stop apart, where the code merges a closing ')' with the stop",
        "features of K random crops are computed once, and an epoch takes one of each; K = 0 trains on the centre crop alone",
        "contexts are float32; the code trains them in float16 without loss scaling",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the defaults are the paper's.

    Attributes:
        length: N vectors; words set it themselves.
        position: where the class name stands: "end", "middle" or "front".
        words: words whose embeddings the contexts begin with; None draws from a normal distribution of spread 0.02.
        class_specific: one set of contexts a class.
        recipe: how it is trained; without `epochs` it has the published ones for the pictures a class that there are.
    """

    length: int = 16
    position: Literal["end", "middle", "front"] = "end"
    words: str | None = None
    class_specific: bool = False
    recipe: Recipe = dataclasses.field(default_factory=lambda: Recipe(epochs=None))

    def __post_init__(self):
        require(self.length >= 1, "length", self.length, "1 or more")


class CoOp(Addition):
    """Contexts around class names."""

    kind, config_type = "coop", Config

    def __init__(self, model: CLIP, config: Config, class_names: Sequence[str], *, seed: int = 0):
        super().__init__(model, config, class_names, seed=seed)
        self.binds = not config.class_specific
        if config.words is not None:
            context = word_context(model, config.words)
        else:
            generator = torch_generator(seed, "coop", "context")
            width = model.text.config.width
            context = torch.randn(config.length, width, generator=generator) * INIT_STD
        if config.class_specific:
            context = context.repeat(self.num_classes, 1, 1)
        self.context = nn.Parameter(context.to(model.device))
        self.prompts = ClassTokens(model, self.class_names, config.position)

    def weights(self, features: Tensor | None = None) -> Tensor:
        return self.prompts.encode(self.context)


def _recipe(config: Config, examples: Examples) -> Recipe:
    """The recipe with the published epochs for the pictures a class that there are."""
    if config.recipe.epochs is not None:
        return config.recipe
    most = int(np.bincount(examples.train.targets).max())
    return dataclasses.replace(config.recipe, epochs=next((count for shots, count in EPOCHS if most <= shots), MOST_EPOCHS))


fit = fitting(CoOp, _recipe)
