"""The objective "labels": cross-entropy of a linear classifier on the image tower, which CLIP is held against.

    L = -log softmax(V f + b)[y]        f (E) the image tower's embedding, V (C, E) and b (C) the classifier, y the class

The classes are the batches' groups, so that the same batches serve this objective and the contrastive one. The text tower has
no part in it; lock it (`freeze.text.locked`), or an optimiser's state is kept for nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ostension.config import require, to_tree
from ostension.errors import ConfigError
from ostension.formats.parts import save_with_part
from ostension.model.clip import CLIP
from ostension.runtime import torch_generator
from ostension.shapes import Float
from ostension.train.batches import Batch
from ostension.train.captioning import taken_off
from ostension.train.objective import Embedded, Objective, StepLoss, over_processes

NAME = "label_head"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelsConfig:
    """The class of each picture, of `classes` that the batches' groups number from 0.

    Attributes:
        classes: how many there are.
        seed: of the classifier's first weights.
    """

    kind: Literal["labels"] = "labels"
    classes: int
    seed: int = 0

    def __post_init__(self):
        require(self.classes >= 2, "objective.classes", self.classes, "2 or more")

    def build(self, model: CLIP) -> Labels:
        return Labels(model, self)


class Labels(Objective):
    """Trains the image tower of a model and the classifier that is put on it.

    While it trains, the classifier is a module of the model; the folder that is saved is a model's, with it beside.
    """

    def __init__(self, model: CLIP, config: LabelsConfig):
        self.module = self.model = model
        self.settings = config
        self.head = nn.Linear(model.config.embed_dim, config.classes)
        with torch.no_grad():
            self.head.bias.zero_()
            std = model.config.embed_dim**-0.5
            self.head.weight.normal_(std=std, generator=torch_generator(config.seed, NAME))
        model.add_module(NAME, self.head)

    def embed(self, batch: Batch) -> Embedded:
        """Logits in float32 and what they lose; pairs do not meet each other in it."""
        if batch.groups is None or batch.groups.ndim != 1:
            raise ConfigError("objective.kind is 'labels', but the batches bring no classes", expected="one group a picture")
        logits = label_logits(self.model, batch.images)
        return Embedded(rows={}, own=F.cross_entropy(logits, batch.groups.to(logits.device)))

    def loss(self, embedded: Embedded, groups: Tensor | None) -> StepLoss:
        assert embedded.own is not None
        return StepLoss(over_processes(embedded.own), {})

    def identity(self) -> Mapping[str, object]:
        return to_tree(self.settings)

    def save(self, folder: Path) -> None:
        with taken_off(self.model, NAME):
            save_with_part(self.model, folder, NAME, self.head, to_tree(self.settings), overwrite=True)


def label_logits(model: CLIP, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B C"]:
    """The classifier's logits of preprocessed pictures, in float32 or wider, of a model that is trained on labels."""
    logits = model.get_submodule(NAME)(model.encode_image(images))
    return logits if logits.dtype == torch.float64 else logits.float()
