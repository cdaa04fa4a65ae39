"""Tip-Adapter: the training pictures' features are a cache that votes beside zero-shot; nothing is trained.

    logits_c = scale f @ W_c + alpha sum_i exp(-beta (1 - f . k_i)) [c = y_i]

k_i is the unit row of the mean of picture i's embeddings over 10 random crops, taken before they are made unit rows. alpha (how
much the cache counts) and beta (how fast a vote fades) are chosen on validation pictures, from 20 x 200 pairs.
Source: Zhang et al. 2022, "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification" (arXiv:2207.09519), and its
code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ostension.adapt._cache import Cache, Voting, filled, to_choose_by
from ostension.adapt._examples import Examples
from ostension.adapt._hand_written import with_templates
from ostension.adapt.base import AdditionPredictor, Spec
from ostension.config import require
from ostension.model.clip import CLIP

SPEC = Spec(
    title="Tip-Adapter",
    paper='Zhang, Fang, Zhang, Gao, Li, Dai, Qiao, Li. "Tip-Adapter: Training-free Adaption of CLIP for Few-shot '
    'Classification". ECCV 2022, arXiv:2207.09519',
    trains="nothing; the pictures' features (N, E) are kept with their classes",
    selects=True,
    neutral={"alpha": 0.0},
    departures=(
        "alpha and beta are chosen on min(K, 4) validation pictures a class; the code has all validation pictures, and for "
        "ImageNet the test pictures (selection=test)",
        "the grid reaches as far as ImageNet's, (3, 7), on every data set; the code's reaches further on most",
        "the cosines' multiplier is the model's own; the code's is 100, which it is in OpenAI's models",
        "all templates of the task make W; the code has one a data set, and 7 for ImageNet",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Voting):
    """Settings; the defaults are the code's, for ImageNet. Those of the votes are `Voting`'s.

    Attributes:
        views: random crops that a key is the mean of; 0 takes the model's own preprocessing.
    """

    views: int = 10

    def __post_init__(self):
        super().__post_init__()
        require(self.views >= 0, "views", self.views, "0 or more")


class TipAdapter(Cache):
    """The cache, whose keys stay."""

    kind, config_type = "tip-adapter", Config

    def __init__(self, model: CLIP, config: Config, class_names: Sequence[str], *, seed: int = 0):
        super().__init__(model, config, class_names, seed=seed)
        self.register_buffer("keys", torch.empty(0, model.config.embed_dim, device=model.device))
        self.register_buffer("labels", torch.empty(0, dtype=torch.int64, device=model.device))


def fit(
    model: CLIP, examples: Examples, config: Config, *, seed: int = 0, folder: Path | None = None, progress: Any = None
) -> AdditionPredictor:
    """The predictor; `seed`, `folder` and `progress` are of methods that train, and do nothing here.

    Raises:
        ConfigError: without pictures to choose by, or with the test split where the settings do not say so, or the other way.
    """
    config = with_templates(config, examples)
    cache = filled(TipAdapter(model, config, examples.class_names, seed=seed), examples, config.views)
    found = cache.choose(to_choose_by(examples, config, cache.kind), config) if config.chooses else {}
    predictor = cache.predictor(config.templates)
    predictor.facts = found
    return predictor
