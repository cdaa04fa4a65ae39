"""The objectives "language-model" and "bag-prediction": the words of a picture predicted, and not picked from the batch.

With the bag-of-words text tower under the paper's own objective (`model.towers.bag_of_words`) they are the three baselines
of CLIP's Figure 2. All take the image tower that the run's model has, with its first weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor

from ostension.config import to_tree
from ostension.errors import ConfigError
from ostension.formats.word_models import save_word_model
from ostension.model.clip import CLIP
from ostension.model.word_models import BagPredictor, LanguageModel, LanguageModelConfig, WordModel
from ostension.train.batches import Batch
from ostension.train.objective import Embedded, Objective, StepLoss, over_processes


@dataclasses.dataclass(frozen=True, kw_only=True)
class NextTokenConfig:
    """The next token of each caption from those before it and the picture."""

    kind: Literal["language-model"] = "language-model"
    head: LanguageModelConfig = dataclasses.field(default_factory=LanguageModelConfig)
    seed: int = 0

    def build(self, model: CLIP) -> Prediction:
        return Prediction(LanguageModel(model, self.head, seed=self.seed), to_tree(self))


@dataclasses.dataclass(frozen=True, kw_only=True)
class BagPredictionConfig:
    """The words of each caption from the picture, all at once."""

    kind: Literal["bag-prediction"] = "bag-prediction"
    seed: int = 0

    def build(self, model: CLIP) -> Prediction:
        return Prediction(BagPredictor(model, seed=self.seed), to_tree(self))


class Prediction(Objective):
    """The mean loss of a word model; pairs do not meet each other in it."""

    def __init__(self, model: WordModel, settings: Mapping[str, object]):
        self.module = self.words = model
        # Evaluations of a run with this objective are given a word model; a run asks a model for its settings only.
        self.model = model  # type: ignore[assignment]
        self.settings = settings

    def embed(self, batch: Batch) -> Embedded:
        losses = self.words.losses(batch.images, batch.tokens)
        return Embedded(rows={}, own=losses.mean())

    def loss(self, embedded: Embedded, groups: Tensor | None) -> StepLoss:
        assert embedded.own is not None
        return StepLoss(over_processes(embedded.own), {})

    def check(self) -> None:
        if self.words.config.init_logit_bias is not None:
            raise ConfigError("a model that predicts words has no logits over pairs", expected="no init_logit_bias")

    def identity(self) -> Mapping[str, object]:
        return self.settings

    def save(self, folder: Path) -> None:
        save_word_model(self.words, folder, overwrite=True)
