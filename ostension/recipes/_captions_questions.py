"""What a model of the ImageNet-Captions study is asked: the class of held-out things, in both distributions, by two heads.

The own head is what the model was trained for: its classifier for cross-entropy, prompts of the class names for CLIP. The
linear head is logistic regression on the image embeddings of the pictures that the run learned from, its strength chosen on
things that are left out.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import torch

from ostension.evals.linear_probe import choose_strength
from ostension.model.clip import CLIP
from ostension.model.predictor import Predictor
from ostension.recipes._captions_batches import StudyBatchesConfig
from ostension.recipes._captions_data import study_set
from ostension.recipes._emoji_evaluation import pictures
from ostension.train.labels import NAME, label_logits
from ostension.train.logistic import fit_logistic

FOLDS = 2
HEADS = ("own", "linear")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyQuestionsConfig:
    """Accuracy on held-out things.

    Attributes:
        batches: as in training.
        templates: of the prompts.
        linear: whether a linear head is fitted too.
    """

    kind: Literal["study"] = "study"
    batches: StudyBatchesConfig
    templates: tuple[str, ...] = ("{}",)
    linear: bool = True

    def build(self, model: CLIP) -> StudyQuestions:
        return StudyQuestions(self, model)


class StudyQuestions:
    """Asks a model; `right` says for each head which pictures it named rightly.

    Attributes:
        shifted, thing: of each picture that is asked.
    """

    def __init__(self, config: StudyQuestionsConfig, model: CLIP):
        self.config, study = config, study_set(config.batches.data)
        batches = config.batches.build(model)
        self.classes, self.asked, self.learned = study.classes, study.asked, batches.rows
        self.shifted, self.thing = study.shifted[self.asked], study.thing[self.asked]
        self.target, self.study = study.target, study
        self._pixels: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def right(self, model: CLIP) -> dict[str, np.ndarray]:
        """(n,) for each head."""
        images = self._images(model, "asked", self.asked)
        embedded = model.embed_images(images, batch_size=256).float().cpu().numpy()
        if NAME in model._modules:
            blocks = [label_logits(model, block.to(model.device)).cpu() for block in images.split(256)]
            own = torch.cat(blocks).numpy()
        else:
            words = Predictor.zero_shot(model, list(self.classes), self.config.templates).weights
            own = embedded @ words.float().cpu().numpy().T
        found = {"own": own.argmax(axis=1)}
        if self.config.linear:
            rows = model.embed_images(self._images(model, "learned", self.learned), batch_size=256).float().cpu().numpy()
            labels = self.target[self.learned]
            strength, _ = choose_strength(rows, labels, self.study.thing[self.learned] % FOLDS)
            fit = fit_logistic(rows, labels, len(self.classes), [strength])
            found["linear"] = fit.logits_of(0, torch.from_numpy(embedded)).argmax(dim=1).numpy()
        return {head: predicted == self.target[self.asked] for head, predicted in found.items()}

    def __call__(self, model: CLIP, step: int) -> dict[str, float]:
        return self.shares(self.right(model))

    def shares(self, right: dict[str, np.ndarray]) -> dict[str, float]:
        """Accuracy in the original and in the shifted distribution by each head."""
        found: dict[str, float] = {}
        for head, hits in right.items():
            found[f"{head}/original"] = float(hits[~self.shifted].mean())
            found[f"{head}/shifted"] = float(hits[self.shifted].mean())
        return {**found, "samples": len(self.asked), "classes": len(self.classes)}

    def _images(self, model: CLIP, name: str, rows: np.ndarray) -> torch.Tensor:
        """Preprocessed once a run."""
        if name not in self._pixels:
            self._pixels[name] = model.transform.batch(pictures(self.study, rows))  # type: ignore[arg-type]
        return self._pixels[name]
