"""The objective "nlip": contrast with targets that know of noise, and with it captions from concepts and patches from others.

    L = L_NITC + w_lm L_LM + w_ir L_IR                                                                        (1)

after NLIP (Huang et al. 2023), whose figure names the parts. How they are built here is our reading of it, in these points:

- L_NITC: the contrastive loss whose targets keep 1 - eps_i on the diagonal and give eps_i / (B - 1) to each of the others, in
  both directions (`losses`), with eps_i fitted anew each epoch after a warm-up (`train.noise`).
- L_LM: the next token of the caption, said by a decoder that reads the image's patches and the text tower's states of concepts
  and caption (`model.captioner`). Concepts stand before the caption as text.
- What the contrast reads of a text is the caption alone: a pass of its own through the text tower, without concepts, which
  were retrieved by the image and would tell it, and without image tokens, which only the decoder reads.
- L_IR: masked patches from the visible ones (`model.reconstruction`), in a pass of its own through the image tower; the
  contrast sees whole pictures.

Any of the three may be left out. L_LM and L_IR need no other pairs: they are the `own` of a piece of the batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ostension.config import require, to_tree
from ostension.errors import ConfigError
from ostension.formats.parts import save_with_part
from ostension.losses import LossConfig
from ostension.model.captioner import NAME, Captioner, CaptionModel
from ostension.model.clip import CLIP
from ostension.model.decoder import DecoderConfig
from ostension.model.reconstruction import PatchDecoder, ReconstructionConfig
from ostension.train.batches import Batch, BatchSource
from ostension.train.captioning import taken_off, unit
from ostension.train.noise import NoiseConfig, NoiseEstimates
from ostension.train.objective import Contrastive, Embedded, StepLoss, over_processes

RECONSTRUCTION = "patch_decoder"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NlipConfig:
    """What of NLIP is trained.

    Attributes:
        loss: the contrastive part.
        noise: when and how far noise is believed in; None is the plain contrastive loss.
        decoder: of the captions; None says none.
        concepts: whether the batches bring captions behind concepts, which the captioner then reads.
        caption_weight: w_lm in equation (1).
        reconstruction: of masked patches; None reconstructs none.
        reconstruction_weight: w_ir.
        seed: of the decoders' first weights.
    """

    kind: Literal["nlip"] = "nlip"
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    noise: NoiseConfig | None = dataclasses.field(default_factory=NoiseConfig)
    decoder: DecoderConfig | None = None
    concepts: bool = True
    caption_weight: float = 1.0
    reconstruction: ReconstructionConfig | None = None
    reconstruction_weight: float = 1.0
    seed: int = 0

    def __post_init__(self):
        for key in ("caption_weight", "reconstruction_weight"):
            require(getattr(self, key) > 0, f"objective.{key}", getattr(self, key), "more than 0")
        kind = self.loss.kind
        require(self.noise is None or kind == "contrastive", "objective.loss.kind", kind, "'contrastive', where noise is known")

    def build(self, model: CLIP) -> Nlip:
        return Nlip(model, self)


class Nlip(Contrastive):
    """Trains a model with the parts that its settings name; the captioner and the patch decoder are put on it meanwhile.

    The folder that is saved is a model's, with the captioner beside it. The patch decoder has served its purpose then.

    Attributes:
        estimates: of noise; None without.
        captioner, patch_decoder: None without.
    """

    def __init__(self, model: CLIP, config: NlipConfig):
        super().__init__(model, config.loss)
        self.settings = config
        self.estimates = None if config.noise is None else NoiseEstimates(config.noise)
        self.captioner = self.patch_decoder = None
        if config.decoder is not None:
            self.captioner = Captioner(config.decoder, model, seed=config.seed)
            model.add_module(NAME, self.captioner)
        if config.reconstruction is not None:
            self.patch_decoder = PatchDecoder(config.reconstruction, model.config, seed=config.seed)
            model.add_module(RECONSTRUCTION, self.patch_decoder)

    def check(self) -> None:
        """Raise a `ConfigError` where the parts cannot be trained: from features of a frozen tower there are no patches."""
        super().check()
        if self.patch_decoder is not None and self.model.frozen.image:
            raise ConfigError("objective.reconstruction has no effect on a locked image tower", expected="none")

    def before_step(self, step: int, batches: BatchSource, workers: int) -> None:
        if self.estimates is not None:
            self.noise = self.estimates.of_step(step, self.model, self._unit_rows, self.config, batches, workers)

    def embed(self, batch: Batch) -> Embedded:
        """Unit rows of whole pictures and captions alone; the losses of these pairs by themselves."""
        own: dict[str, tuple[float, Tensor]] = {}
        images, captioner = batch.images, self.captioner
        if captioner is None or images.ndim == 2:
            rows = super().embed(batch).rows
        else:
            reads = captioner.config.reads
            found = self.model.image_features(images, (reads, "embedding"))
            rows = {"image": unit(found["embedding"]), "text": self.model.encode_text(batch.tokens, normalize=True)}
            images = found[reads]
        if captioner is not None:
            if batch.images.ndim == 2:
                reads = captioner.config.reads
                require(reads == "pooled", "objective.decoder.reads", reads, "'pooled' for stored features")
            places = captioner.places(images.to(self.model.dtype))
            own["caption_loss"] = self.settings.caption_weight, self._caption_losses(batch, places)
        if self.patch_decoder is not None:
            each = self.patch_decoder.losses(self.model.visual, self.model._pixels(batch.images))
            own["reconstruction_loss"] = self.settings.reconstruction_weight, each
        if not own:
            return Embedded(rows=rows)
        total = torch.stack([weight * each.mean() for weight, each in own.values()]).sum()
        return Embedded(rows=rows, own=total, constants={name: each.detach() for name, (_, each) in own.items()})

    def loss(self, embedded: Embedded, groups: Tensor | None) -> StepLoss:
        contrast = super().loss(embedded, groups)
        told = {"contrastive_loss": contrast.loss.detach()}
        if self.estimates is not None:
            told["noise"] = contrast.loss.new_tensor(0.0 if self.noise is None else float(self.noise.mean()))
        told |= {name: over_processes(each.mean()) for name, each in embedded.constants.items()}
        total = contrast.loss if embedded.own is None else contrast.loss + over_processes(embedded.own)
        return StepLoss(total, {**contrast.measured, **told})

    def identity(self) -> Mapping[str, object]:
        return to_tree(self.settings)

    def state(self) -> dict[str, Tensor]:
        return {} if self.estimates is None else self.estimates.state()

    def load_state(self, tensors: Mapping[str, Tensor], source: object) -> None:
        if self.estimates is None:
            super().load_state(tensors, source)
        else:
            self.estimates.load(tensors, source)

    def save(self, folder: Path) -> None:
        with taken_off(self.model, *(name for name in (NAME, RECONSTRUCTION) if name in self.model._modules)):
            if self.captioner is None:
                super().save(folder)
            else:
                save_with_part(self.model, folder, NAME, self.captioner, to_tree(self.settings.decoder), overwrite=True)

    def caption_model(self) -> CaptionModel:
        """What says captions.

        Raises:
            ConfigError: for a run that trains none.
        """
        if self.captioner is None:
            raise ConfigError("objective.decoder is None", expected="a decoder, which says the captions")
        return CaptionModel(self.model, self.captioner)

    def _unit_rows(self, batch: Batch) -> tuple[Tensor, Tensor]:
        rows = super().embed(batch).rows
        return rows["image"], rows["text"]

    def _caption_losses(self, batch: Batch, places: Tensor) -> Tensor:
        """(B,), the mean over each caption's tokens, said with the image's places in view."""
        assert self.captioner is not None
        tokens, firsts = (batch.prompted, batch.firsts) if self.settings.concepts else (batch.tokens, None)
        if tokens is None:
            raise ConfigError(
                "objective.concepts is True, but the batches bring no concepts", expected="batches with `prompted` rows",
                fix="use objective.concepts=false",
            )  # fmt: skip
        states = self.model.text_features(tokens, ("tokens",))["tokens"]
        tokens = tokens.to(states.device)
        firsts = None if firsts is None else firsts.to(states.device)
        return self.captioner.loss(states, places, tokens, self.model.text.ends(tokens), firsts)
