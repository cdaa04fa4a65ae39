"""KgCoOp: CoOp held near the hand-written prompts, so that what it gains on its classes costs the others less.

    L = CE + weight * (1 - 1/C sum_c cos(W_c, W0_c)),    W0 the rows of the hand-written prompts

Source: Yao, Zhang, Xu 2023, "Visual-Language Prompt Tuning with Knowledge-guided Context Optimization" (arXiv:2303.13283); the
form of the second term and its weight 8 from memory of its code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ostension.adapt._fit import Recipe, fitting
from ostension.adapt._text import ClassTokens, word_context
from ostension.adapt.base import TEMPLATE, Addition, Spec
from ostension.config import require
from ostension.model.clip import CLIP

SPEC = Spec(
    title="KgCoOp",
    paper='Yao, Zhang, Xu. "Visual-Language Prompt Tuning with Knowledge-guided Context Optimization". CVPR 2023, '
    "arXiv:2303.13283",
    trains="the contexts (4, W)",
    neutral={},
    departures=(
        "features of K random crops are computed once, and an epoch takes one of each; K = 0 trains on the centre crop alone",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        words: words whose embeddings the contexts begin with.
        weight: of the distance from the hand-written rows; 0 is CoOp.
        template: of the hand-written prompts; None takes the task's if it has one alone, else "a photo of a {}.".
        recipe: how it is trained.
    """

    words: str = "a photo of a"
    weight: float = 8.0
    template: str | None = None
    recipe: Recipe = dataclasses.field(default_factory=lambda: Recipe(epochs=100, batch_size=128))

    def __post_init__(self):
        require(self.weight >= 0, "weight", self.weight, "0 or more")


class KgCoOp(Addition):
    """Contexts, and the rows that they stay near."""

    kind, config_type = "kgcoop", Config
    hand_written: Tensor

    def __init__(self, model: CLIP, config: Config, class_names: Sequence[str], *, seed: int = 0):
        super().__init__(model, config, class_names, seed=seed)
        self.context = nn.Parameter(word_context(model, config.words))
        rows = model.classifier(self.class_names, [config.template or TEMPLATE]).weights
        self.register_buffer("hand_written", rows, persistent=False)
        self.prompts = ClassTokens(model, self.class_names)

    def weights(self, features: Tensor | None = None) -> Tensor:
        return self.prompts.encode(self.context)

    def loss(self, batch: Any) -> Tensor:
        rows = self.weights()
        found = F.cross_entropy(self.scale() * self.cosines(batch.features, rows), batch.targets)
        return found + self.config.weight * (1 - (rows * self.hand_written).sum(-1).mean())


fit = fitting(KgCoOp)
