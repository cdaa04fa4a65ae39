"""CoCoOp: contexts that a small net shifts by the picture's feature, so that what is learned carries over to new classes.

    v_m(x) = v_m + h(f(x)),    h = Linear(E -> E / 16), ReLU, Linear(E / 16 -> W)
    W_c(x) = g([v_1(x)] ... [v_N(x)] [name_c] ".")

One shift for all contexts. A step encodes batch x classes prompts; the prefix of a picture is computed once for all classes.
Source: Zhou, Yang, Loy, Liu 2022, "Conditional Prompt Learning for Vision-Language Models" (arXiv:2203.05557), and its code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from ostension.adapt._conditional import ConditionalContext, silence
from ostension.adapt._fit import Recipe, fitting
from ostension.adapt.base import Addition, Spec
from ostension.model.clip import CLIP

SPEC = Spec(
    title="CoCoOp",
    paper='Zhou, Yang, Loy, Liu. "Conditional Prompt Learning for Vision-Language Models". CVPR 2022, arXiv:2203.05557',
    trains="the contexts (4, W) and a net of two layers; 35,360 numbers for ViT-B/16",
    depends="feature",
    neutral={},
    silence=silence,
    departures=(
        "any batch size; the published runs have 1",
        "features of K random crops are computed once, and an epoch takes one of each; K = 0 trains on the centre crop alone",
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
        self.conditional = ConditionalContext(model, config.words, self.class_names, seed)

    def weights(self, features: Tensor | None = None) -> Tensor:
        assert features is not None
        return self.conditional(features)


fit = fitting(CoCoOp)
