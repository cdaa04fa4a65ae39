"""CLIP-Adapter: a small residual net moves the picture's feature, the hand-written prompts stay.

    f' = unit(r A(f) + (1 - r) f),   A(f) = relu(U relu(D f)),   D (E/4, E), U (E, E/4), no biases;   logits = scale f' @ W.T

The code feeds A with embeddings that have their length. Without biases A(c f) = c A(f), so that unit rows give the same f'.
Source: Gao et al. 2021, "CLIP-Adapter: Better Vision-Language Models with Feature Adapters" (arXiv:2110.04544), and its code.
Letters: B batch, C classes, E embedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ostension.adapt._fit import Recipe, fitting
from ostension.adapt._hand_written import HandWritten
from ostension.adapt._init import uniform
from ostension.adapt.base import Spec
from ostension.config import require
from ostension.model.clip import CLIP
from ostension.runtime import torch_generator
from ostension.shapes import Float

SPEC = Spec(
    title="CLIP-Adapter",
    paper='Gao, Geng, Zhang, Ma, Fang, Zhang, Li, Qiao. "CLIP-Adapter: Better Vision-Language Models with Feature Adapters". '
    "IJCV 2023, arXiv:2110.04544",
    trains="two matrices (E/4, E) and (E, E/4) on the picture's feature",
    neutral={"ratio": 0.0},
    departures=(
        "the adapter of the text side, which the paper has and the code has not, is left out",
        "the ratio is not chosen for each data set; the text's rows are computed once, and not in every step",
        "all templates of the task make W; the code has one a data set",
        "features of K random crops are computed once; K = 0 trains on the centre crop alone",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the defaults are the code's.

    Attributes:
        ratio: r, how much of f' the net makes; 0 is zero-shot.
        reduction: E over the width between the two matrices.
        templates: of W; none takes the task's.
        recipe: how it is trained.
    """

    ratio: float = 0.2
    reduction: int = 4
    templates: tuple[str, ...] = ()
    recipe: Recipe = dataclasses.field(default_factory=lambda: Recipe(epochs=200))

    def __post_init__(self):
        require(0 <= self.ratio <= 1, "ratio", self.ratio, "0 to 1")
        require(self.reduction >= 1, "reduction", self.reduction, "1 or more")


class ClipAdapter(HandWritten):
    """The net."""

    kind, config_type = "clip-adapter", Config

    def __init__(self, model: CLIP, config: Config, class_names: Sequence[str], *, seed: int = 0):
        super().__init__(model, config, class_names, seed=seed)
        width, generator = model.config.embed_dim, torch_generator(seed, "clip_adapter")
        inner = max(1, width // config.reduction)
        self.down = nn.Parameter(uniform((inner, width), width**-0.5, generator).to(model.device))
        self.up = nn.Parameter(uniform((width, inner), inner**-0.5, generator).to(model.device))

    def adapted(self, features: Float[Tensor, "B E"]) -> Float[Tensor, "B E"]:
        """f' of f."""
        wide = torch.promote_types(features.dtype, self.down.dtype)
        features = features.to(wide)
        moved = F.linear(F.linear(features, self.down.to(wide)).relu(), self.up.to(wide)).relu()
        return F.normalize(self.config.ratio * moved + (1 - self.config.ratio) * features, dim=-1)

    def logits(self, features: Float[Tensor, "B E"]) -> Float[Tensor, "B C"]:
        return self.cosines(self.adapted(features), self.rows) * self.scale()


fit = fitting(ClipAdapter)
