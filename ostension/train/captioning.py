"""The objective "captioning": the contrastive loss and, with it, the next token of each caption, as in CoCa.

    L = w_con L_contrastive + w_cap L_caption,        w_con = 1, w_cap = 2 in the paper                       (1)

Where this departs from the paper is at the head of `model.captioner`. The captioning loss needs no other pairs, so it is
the `own` of a piece of the batch: pieces and processes average it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from ostension.config import require, to_tree
from ostension.formats.parts import save_with_part
from ostension.losses import LossConfig
from ostension.model.captioner import NAME, Captioner, CaptionModel
from ostension.model.clip import CLIP
from ostension.model.decoder import DecoderConfig
from ostension.train.batches import Batch
from ostension.train.objective import Contrastive, Embedded, StepLoss, over_processes


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptioningConfig:
    """Contrast and caption.

    Attributes:
        loss: the contrastive part.
        decoder: of the captions, on the text tower's states.
        contrastive_weight, caption_weight: of the two losses in equation (1).
        seed: of the decoder's first weights.
    """

    kind: Literal["captioning"] = "captioning"
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    decoder: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)
    contrastive_weight: float = 1.0
    caption_weight: float = 2.0
    seed: int = 0

    def __post_init__(self):
        for key in ("contrastive_weight", "caption_weight"):
            require(getattr(self, key) > 0, f"objective.{key}", getattr(self, key), "more than 0")

    def build(self, model: CLIP) -> Captioning:
        return Captioning(model, self)


class Captioning(Contrastive):
    """Trains a model and the captioner that is put on it.

    While it trains, the captioner is a module of the model, so that both share one list of weights, by the names that they
    have without it. The folder that is saved is a model's folder, with the captioner beside it.
    """

    def __init__(self, model: CLIP, config: CaptioningConfig):
        super().__init__(model, config.loss)
        self.settings = config
        self.captioner = Captioner(config.decoder, model, seed=config.seed)
        model.add_module(NAME, self.captioner)

    def embed(self, batch: Batch) -> Embedded:
        """Unit rows for the contrast, and the captioning loss of these pairs; one pass through each tower."""
        reads = self.captioner.config.reads
        image = self.model.image_features(batch.images, (reads, "embedding"))
        text = self.model.text_features(batch.tokens, ("tokens", "embedding"))
        ends = self.model.text.ends(batch.tokens)
        losses = self.captioner.loss(text["tokens"], self.captioner.places(image[reads]), batch.tokens, ends)
        rows = {"image": unit(image["embedding"]), "text": unit(text["embedding"])}
        return Embedded(rows=rows, own=losses.mean())

    def loss(self, embedded: Embedded, groups: Tensor | None) -> StepLoss:
        assert embedded.own is not None
        contrast, caption = super().loss(embedded, groups), over_processes(embedded.own)
        total = self.settings.contrastive_weight * contrast.loss + self.settings.caption_weight * caption
        parts = {"contrastive_loss": contrast.loss.detach(), "caption_loss": caption.detach()}
        return StepLoss(total, {**contrast.measured, **parts})

    def identity(self) -> Mapping[str, object]:
        return to_tree(self.settings)

    def save(self, folder: Path) -> None:
        with taken_off(self.model, NAME):
            save_with_part(self.model, folder, NAME, self.captioner, to_tree(self.settings.decoder), overwrite=True)

    def caption_model(self) -> CaptionModel:
        """What says captions."""
        return CaptionModel(self.model, self.captioner)


@contextmanager
def taken_off(model: CLIP, *names: str) -> Iterator[None]:
    """The model without the parts that an objective put on it, such as its captioner, for as long as it is entered."""
    parts = {name: model._modules.pop(name) for name in names}
    try:
        yield
    finally:
        model._modules.update(parts)


def unit(rows: Tensor) -> Tensor:
    """Rows of length 1, in float32 or wider."""
    return F.normalize(rows if rows.dtype.itemsize == 8 else rows.float(), dim=-1)
