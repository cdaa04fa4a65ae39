"""CPL: CoCoOp with a contrast against counterfactual features, which borrow from another class just what flips the decision.

    u*   the fewest coordinates (greedily) that, copied from a picture of the nearest other class, make that class win; 0 or 1
    u  = clip(0.999 u* + 0.001 U, 0, 1),   U learned, beginning with ones
    v' = (1 - u) v + u v-,                 as a unit row
    L  = CE + lambda log(1 + exp(cos(t, v') - cos(t, v))) + 0.07 ||u||,    t the right class's row for this picture

u* is found once for every training picture, against the hand-written rows (`_counterfactual`).

Source: He et al. 2022, "CPL: Counterfactual Prompt Learning for Vision and Language Models" (arXiv:2210.10362). The released
code cannot run (a syntax error, and shapes that fit one picture only), so this is the formula.
Letters: B batch, C classes, E embedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ostension.adapt._conditional import ConditionalContext, silence
from ostension.adapt._counterfactual import flips, nearest_others, partners
from ostension.adapt._examples import Examples
from ostension.adapt._fit import Recipe, fit_addition
from ostension.adapt.base import Addition, AdditionPredictor, Spec
from ostension.config import require
from ostension.model.clip import CLIP

SHARE, PENALTY = 0.999, 0.07

SPEC = Spec(
    title="CPL",
    paper='He, Yang, Feng, Fu, Akula, Jampani, Narayana, Basu, Wang, Wang. "CPL: Counterfactual Prompt Learning for Vision and '
    'Language Models". EMNLP 2022, arXiv:2210.10362',
    trains="CoCoOp's contexts and net, and U (C, E), which only training uses",
    depends="feature",
    neutral={"weight": 0.0},
    silence=silence,
    departures=(
        "the nearest other class is that with the closest hand-written row; the code asks BERTScore",
        "the contrast is with the right class's row, as the paper has it; the code averages over all classes' rows",
        "u* is found against the hand-written rows, once a picture; a class of one picture a side borrows from that one",
        "features of K random crops are computed once, and an epoch takes one of each; K = 0 trains on the centre crop alone",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the defaults are the paper's, as the authors state them.

    Attributes:
        words: words whose embeddings the contexts begin with.
        weight: lambda; 0 is CoCoOp (without the penalty on u as well).
        template: of the hand-written rows.
        recipe: how it is trained.
    """

    words: str = "a photo of a"
    weight: float = 1.0
    template: str = "a photo of a {}."
    recipe: Recipe = dataclasses.field(default_factory=lambda: Recipe(epochs=10, batch_size=1))

    def __post_init__(self):
        require(self.weight >= 0, "weight", self.weight, "0 or more")


class CPL(Addition):
    """Conditional contexts, and how far counterfactuals go."""

    kind, config_type, depends = "cpl", Config, "feature"

    def __init__(self, model: CLIP, config: Config, class_names: Sequence[str], *, seed: int = 0):
        super().__init__(model, config, class_names, seed=seed)
        self.conditional = ConditionalContext(model, config.words, self.class_names, seed)
        # Counterfactuals serve training only: U, u* and the features v-.
        self.reach: Tensor | None = None
        self.flips: Tensor | None = None
        self.borrowed: Tensor | None = None

    def weights(self, features: Tensor | None = None) -> Tensor:
        assert features is not None
        return self.conditional(features)

    def settle(self) -> None:
        self.reach = self.flips = self.borrowed = None

    def prepare(self, examples: Examples, seed: int) -> None:
        """Find every training picture's counterfactual before the first step."""
        features, targets = examples.train.features(self.model)[0], examples.train.labels
        rows = self.model.classifier(self.class_names, [self.config.template]).weights.float().cpu()
        rivals = nearest_others(rows)
        others = partners(targets, rivals, seed)
        borrowed, device = features[others], self.model.device
        self.flips = flips(features, borrowed, rows[targets], rows[rivals[targets]]).to(device)
        self.borrowed, self.reach = borrowed.to(device), nn.Parameter(torch.ones_like(rows, device=device))

    def loss(self, batch: Any) -> Tensor:
        rows = self.weights(batch.features)
        found = F.cross_entropy(self.scale() * self.cosines(batch.features, rows), batch.targets)
        if self.config.weight == 0 or self.reach is None or self.flips is None or self.borrowed is None:
            return found
        places = torch.from_numpy(batch.indices).to(rows.device)
        share = (SHARE * self.flips[places] + (1 - SHARE) * self.reach[batch.targets]).clamp(0, 1)
        changed = F.normalize((1 - share) * batch.features + share * self.borrowed[places], dim=-1)
        own = rows[torch.arange(len(rows), device=rows.device), batch.targets]
        gap = ((changed - batch.features) * own).sum(-1)
        return found + self.config.weight * F.softplus(gap).mean() + PENALTY * share.norm(dim=-1).mean()


def fit(model: CLIP, examples: Examples, config: Config, *, seed: int = 0, **run: Any) -> AdditionPredictor:
    """The predictor; U and the counterfactuals stay behind."""
    addition = CPL(model, config, examples.class_names, seed=seed)
    if config.weight > 0:
        addition.prepare(examples, seed)
    fit_addition(addition, examples.train, config.recipe, val=examples.val, seed=seed, **run)
    return addition.predictor()
