"""What the curves of Figure 2 measure: pictures in a style that training never saw, each to be named among 64 seen names.

Pictures are drawn by the seed and dealt into groups; the names of a group are its candidates. A language model scores every
candidate for every picture, which among all 1,391 names would cost more than its training. All models are asked with the
bare name.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ostension.config import require
from ostension.evals import metrics
from ostension.model.clip import CLIP
from ostension.model.word_models import WordModel
from ostension.recipes._emoji_batches import emoji_set
from ostension.recipes._emoji_evaluation import BARE, pictures
from ostension.runtime import numpy_generator

SPLIT = "new-style-seen-names"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NamesEvaluationConfig:
    """Top-1 and top-5 accuracy on drawn pictures.

    Attributes:
        pictures: how many, each of another name.
        candidates: names in a group, from which a picture's name is to be picked.
        seed: of the draw.
        every: use every n-th concept only, for a smoke run.
    """

    kind: Literal["figure2"] = "figure2"
    pictures: int = 512
    candidates: int = 64
    seed: int = 0
    every: int = 1

    def __post_init__(self):
        for key in ("pictures", "candidates", "every"):
            require(getattr(self, key) >= 1, f"evaluation.{key}", getattr(self, key), "1 or more")
        expected = f"a multiple of the {self.candidates} candidates"
        require(self.pictures % self.candidates == 0, "evaluation.pictures", self.pictures, expected)

    def build(self, model: CLIP) -> NamesEvaluation:
        return NamesEvaluation(self, model)


class NamesEvaluation:
    """Measures a CLIP, or a model that predicts words.

    Attributes:
        names: of the pictures.
        images: (N, 3, S, S).
        candidates: C; picture n is to be named among the names from n // C * C on.
    """

    def __init__(self, config: NamesEvaluationConfig, model: CLIP):
        emoji = emoji_set(config.every)
        rows = numpy_generator(config.seed, "figure2").permutation(emoji.rows(SPLIT))[: config.pictures]
        names = emoji.names()
        self.names = [names[emoji.concept[row]] for row in rows]
        assert len(rows) == config.pictures, (len(rows), config.pictures)
        self.images, self.candidates = model.transform.batch(pictures(emoji, rows)), config.candidates

    @torch.no_grad()
    def __call__(self, model: Any, step: int) -> dict[str, float]:
        found = []
        for start in range(0, len(self.names), self.candidates):
            group = slice(start, start + self.candidates)
            scores = scores_of(model, self.images[group], self.names[group]).float().cpu().numpy()
            found.append(metrics.ranks(scores, np.arange(len(scores))))
        ranks = np.concatenate(found)
        shares = {f"top{k}": metrics.recall_at_k(ranks, k) for k in (1, 5)}
        return {**shares, "samples": len(ranks), "classes": self.candidates}


def scores_of(model: Any, images: Tensor, names: list[str]) -> Tensor:
    """(N, C) of a model that predicts words, or of a CLIP."""
    if isinstance(model, WordModel):
        return model.scores(images, model.name_tokens(names))
    return model.embed_images(images, batch_size=len(images)) @ model.class_embeddings(names, BARE).T
