"""CoCoOp: contexts that a small net shifts by the picture's feature, so that what is learned carries over to new classes.

    v_m(x) = v_m + h(f(x)),    h = Linear(E -> E / 16), ReLU, Linear(E / 16 -> W)
    W_c(x) = g([v_1(x)] ... [v_N(x)] [name_c] ".")

One shift for all contexts. A step encodes batch x classes prompts; the prefix of a picture is computed once for all classes.
Source: Zhou, Yang, Loy, Liu 2022, "Conditional Prompt Learning for Vision-Language Models" (arXiv:2203.05557), and its code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ostension.adapt._fit import Recipe, fitting
from ostension.adapt._init import linear
from ostension.adapt._text import ClassTokens, word_context
from ostension.adapt.base import Addition, Spec
from ostension.model.clip import CLIP
from ostension.runtime import torch_generator

BOTTLENECK = 16  # the width of the net is the embedding's over this


def _silence(addition: CoCoOp) -> None:
    """A net that shifts nothing."""
    with torch.no_grad():
        for value in addition.second.parameters():
            value.zero_()


SPEC = Spec(
    title="CoCoOp",
    paper='Zhou, Yang, Loy, Liu. "Conditional Prompt Learning for Vision-Language Models". CVPR 2022, arXiv:2203.05557',
    trains="the contexts (4, W) and a net of two layers; 35,360 numbers for ViT-B/16",
    depends="feature",
    neutral={},
    silence=_silence,
    departures=(
        "any batch size; the published runs have 1",
        "features of K random crops are computed once; K = 0 trains on the centre crop alone",
        "float32 throughout; the code's net runs in float16",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the defaults are the paper's.

    Attributes:
        words: words whose embeddings the contexts begin with.
        recipe: how it is trained.
    """

    words: str = "a photo of a"
    recipe: Recipe = dataclasses.field(default_factory=lambda: Recipe(epochs=10, batch_size=1))


class CoCoOp(Addition):
    """Contexts and the net that shifts them."""

    kind, config_type, depends = "cocoop", Config, "feature"

    def __init__(self, model: CLIP, config: Config, class_names: Sequence[str], *, seed: int = 0):
        super().__init__(model, config, class_names, seed=seed)
        generator, width = torch_generator(seed, "cocoop", "net"), model.config.embed_dim
        self.context = nn.Parameter(word_context(model, config.words))
        self.first = linear(width, max(1, width // BOTTLENECK), generator).to(model.device)
        self.second = linear(max(1, width // BOTTLENECK), self.context.shape[-1], generator).to(model.device)
        self.prompts = ClassTokens(model, self.class_names)

    def weights(self, features: Tensor | None = None) -> Tensor:
        assert features is not None
        shift = self.second(self.first(features.to(self.context.dtype)).relu())  # (B, W)
        return self.prompts.encode((self.context + shift[:, None])[:, None])  # (B, 1, N, W) gives (B, C, E)


fit = fitting(CoCoOp)
