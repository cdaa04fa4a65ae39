"""What a model of NLIP's study is asked: the captions of pictures that it did not learn, and which learned pairs are noise.

Losses of the learned pairs are those of fixed batches in a fixed, shuffled order, with first captions, so that
models, epochs and runs are judged alike.

Letters: n learned pictures, m asked ones, C candidates.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ostension.config import require
from ostension.evals import metrics
from ostension.losses import pair_losses
from ostension.model.clip import CLIP
from ostension.recipes._nlip_data import nlip_set
from ostension.recipes._nlip_features import features_of
from ostension.runtime import numpy_generator
from ostension.train.mixture import Mixture, fit_mixture

SCORED = 256  # pairs that are judged together


@dataclasses.dataclass(frozen=True, kw_only=True)
class NlipQuestionsConfig:
    """Held-out accuracy and the detector of noise.

    Attributes:
        data, noise, planting, features: as the batches have them.
    """

    kind: Literal["nlip"] = "nlip"
    data: str = "emoji"
    noise: float = 0.35
    planting: int = 0
    features: Path

    def __post_init__(self):
        require(0 <= self.noise < 1, "evaluation.noise", self.noise, "a share, from 0 up to, not including, 1")

    def build(self, model: CLIP) -> NlipQuestions:
        return NlipQuestions(self, model)


class NlipQuestions:
    """Asks a model.

    Attributes:
        captions, planted: of the n learned pictures, as they are learned.
        asked, learned: features of the pictures.
    """

    def __init__(self, config: NlipQuestionsConfig, model: CLIP):
        self.set = nlip_set(config.data)
        self.captions, self.planted = self.set.planted(config.noise, config.planting)
        self.group = torch.from_numpy(np.unique([texts[0] for texts in self.captions], return_inverse=True)[1])
        self.order = numpy_generator(0, "judged together").permutation(len(self.captions))
        features = features_of(self.set, model, config.features)
        self.asked, self.learned = features[self.set.asked], features[self.set.learned]

    @torch.no_grad()
    def ranks(self, model: CLIP) -> np.ndarray:
        """(m,) the place of each asked picture's own text among the candidates, from 0."""
        images = model.project_image(self.asked, normalize=True)
        texts = model.embed_texts(self.set.candidates, truncate=True)
        return metrics.ranks((images @ texts.T).cpu().numpy(), self.set.target)

    @torch.no_grad()
    def losses(self, model: CLIP) -> np.ndarray:
        """(n,) each learned pair's contrastive loss."""
        images = model.project_image(self.learned, normalize=True)
        texts = model.embed_texts([captions[0] for captions in self.captions], truncate=True)
        found = np.empty(len(self.captions))
        for rows in np.array_split(self.order, max(1, len(self.order) // SCORED)):
            each = pair_losses(images[rows], texts[rows], model.scale(), groups=self.group[rows], duplicates="ignore")
            found[rows] = each.double().cpu().numpy()
        return found

    def __call__(self, model: CLIP, step: int) -> dict[str, float]:
        ranks = self.ranks(model)
        losses = self.losses(model)
        judged = detector(losses, self.planted, fit_mixture(losses))
        shares = {f"top{k}": metrics.recall_at_k(ranks, k) for k in (1, 5)}
        told = {f"detector/{key}": value for key, value in judged.items() if value is not None}
        return {**shares, **told, "samples": len(ranks), "classes": len(self.set.candidates)}


def detector(losses: np.ndarray, planted: np.ndarray, mixture: Mixture) -> dict[str, Any]:
    """How well noise is found: precision and recall of P(noise) > 1/2, and the area under the curve of the losses alone.

    Precision is None where nothing is called noise, and all are None without noise.
    """
    called = mixture.posterior(losses) > 0.5
    right = int((called & planted).sum())
    places = np.argsort(np.argsort(losses, kind="stable")) + 1.0
    positives, negatives = int(planted.sum()), int((~planted).sum())
    area = (places[planted].sum() - positives * (positives + 1) / 2) / (positives * negatives) if positives else None
    return {
        "precision": right / int(called.sum()) if called.any() else None,
        "recall": right / positives if positives else None,
        "area": None if area is None else float(area),
        "called": float(called.mean()),
    }
