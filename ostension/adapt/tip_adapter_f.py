"""Tip-Adapter-F: Tip-Adapter, whose keys are then trained; without an epoch it is Tip-Adapter.

    K  <-  AdamW on  CE(scale f @ W.T + alpha exp(-beta (1 - f @ K.T)) @ V, y)

K begins with Tip-Adapter's keys, V are the pictures' classes as rows of 0 and 1.

Before, alpha and beta are chosen as Tip-Adapter chooses them; afterwards the best epoch (or none), then alpha and beta again.
All of it on validation pictures.
Source: Zhang et al. 2022, "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification" (arXiv:2207.09519), and its
code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ostension.adapt._cache import CROPS, Cache, Voting, filled, to_choose_by
from ostension.adapt._examples import Examples
from ostension.adapt._fit import Recipe, fit_addition
from ostension.adapt._hand_written import with_templates
from ostension.adapt.base import AdditionPredictor, Spec
from ostension.model.clip import CLIP

SPEC = Spec(
    title="Tip-Adapter-F",
    paper='Zhang, Fang, Zhang, Gao, Li, Dai, Qiao, Li. "Tip-Adapter: Training-free Adaption of CLIP for Few-shot '
    'Classification". ECCV 2022, arXiv:2207.09519',
    trains="the keys (N, E) of the cache of training pictures",
    selects=True,
    neutral={"alpha": 0.0},
    departures=(
        "epoch, alpha and beta are chosen on validation pictures; the code chooses the epoch on the test pictures, and reports "
        "the best of two test accuracies (selection=test chooses all three there, and reports one)",
        "it is trained with the alpha and beta that Tip-Adapter chooses; the code has a pair for each data set",
        "no training at all is among the epochs to choose from",
        "features of 10 crops of each picture are computed once; the code's crops are new in every epoch",
        "the grid, the cosines' multiplier and the templates are as in Tip-Adapter here",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Voting):
    """Settings; the defaults are the code's, for ImageNet. Those of the votes are `Voting`'s.

    Attributes:
        recipe: how keys are trained; its `views` are also the random crops that a key begins as the mean of.
    """

    recipe: Recipe = dataclasses.field(
        default_factory=lambda: Recipe(
            epochs=20, batch_size=256, optimizer="adamw", eps=1e-4, lr=1e-3, weight_decay=0.01, warmup_epochs=0,
            schedule="cosine_by_step", views=10, crop=CROPS, select="best",
        )
    )  # fmt: skip


class TipAdapterF(Cache):
    """The cache, whose keys are parameters."""

    kind, config_type = "tip-adapter-f", Config

    def __init__(self, model: CLIP, config: Config, class_names: Sequence[str], *, seed: int = 0):
        super().__init__(model, config, class_names, seed=seed)
        self.keys = nn.Parameter(torch.empty(0, model.config.embed_dim, device=model.device))
        self.register_buffer("labels", torch.empty(0, dtype=torch.int64, device=model.device))


def fit(
    model: CLIP,
    examples: Examples,
    config: Config,
    *,
    seed: int = 0,
    folder: Path | None = None,
    progress: Callable[[dict[str, float]], None] | None = None,
) -> AdditionPredictor:
    """The predictor of the trained keys.

    Raises:
        ConfigError: without pictures to choose by, or with the test split where the settings do not say so, or the other way.
    """
    config = with_templates(config, examples)
    recipe = config.recipe
    cache = filled(TipAdapterF(model, config, examples.class_names, seed=seed), examples, recipe.views)
    chooses = config.chooses or recipe.select == "best"
    val = to_choose_by(examples, config, cache.kind) if chooses else None
    facts: dict[str, Any] = {}
    if val is not None and config.chooses:
        facts["untrained"] = cache.choose(val, config)
    fit_addition(cache, examples.train, recipe, val=val, seed=seed, folder=folder, progress=progress)
    if val is not None and config.chooses:
        facts |= cache.choose(val, config)
    predictor = cache.predictor(config.templates)
    predictor.facts |= facts
    return predictor
