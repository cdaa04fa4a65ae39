"""What a run minimises: an objective holds what is trained, embeds a batch of pairs and gives the loss.

It comes in two halves. `embed` runs the towers over some pairs; `loss` needs the embeddings of all of them. Between the two
the loop can put a batch together from pieces that fit in memory, and from the parts of several processes, without the
objective knowing (see `train.step`).
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ostension.errors import CheckpointError, ConfigError
from ostension.formats.load import save as save_model
from ostension.losses import LossConfig, batch_loss
from ostension.model.clip import CLIP
from ostension.train.batches import Batch, BatchSource
from ostension.world import current


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedded:
    """Some pairs of a batch after the towers, a row each.

    Attributes:
        rows: what the loss takes gradients of, such as the unit embeddings `image` (B, E) and `text` (B, E).
        constants: what it reads without gradients, such as a teacher's embeddings.
        own: the mean over these pairs of a loss that needs no other pairs (captioning), 0-d; None where there is none.
    """

    rows: Mapping[str, Tensor]
    constants: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    own: Tensor | None = None


class StepLoss(NamedTuple):
    """The loss of a whole batch, and what else is worth logging (0-d, detached), such as the accuracy in the batch."""

    loss: Tensor
    measured: Mapping[str, Tensor]


class Objective(abc.ABC):
    """Base of all objectives.

    Attributes:
        module: everything that is trained; its state is what checkpoints hold.
        model: what the run is for, saved at its end and given to evaluations; a part of `module`, or all of it.
    """

    module: nn.Module
    model: CLIP

    def check(self) -> None:  # noqa: B027  # most have nothing to check
        """Raise a `ConfigError` if this objective cannot be trained as it is configured."""

    @abc.abstractmethod
    def embed(self, batch: Batch) -> Embedded:
        """The towers over a batch, or over a piece of one."""

    @abc.abstractmethod
    def loss(self, embedded: Embedded, groups: Tensor | None) -> StepLoss:
        """The loss of the whole batch from its embeddings and its pairs' groups (see `Batch`), `own` included."""

    def before_step(self, step: int, batches: BatchSource, workers: int) -> None:  # noqa: B027
        """Called before step `step` (from 0) is taken, with all that the run can draw; in every process."""

    def after_update(self) -> None:  # noqa: B027
        """Called after every step of the optimiser."""

    def state(self) -> dict[str, Tensor]:
        """What it knows beside the weights, the same in every process; checkpoints hold it."""
        return {}

    def load_state(self, tensors: Mapping[str, Tensor], source: object) -> None:
        """Take up what a checkpoint held.

        Raises:
            CheckpointError: for what is not this objective's.
        """
        if tensors:
            raise CheckpointError("holds a state that this objective does not have", source=source)

    @abc.abstractmethod
    def identity(self) -> Mapping[str, object]:
        """A JSON tree of the settings, for the run's record; a resumed run must have the same."""

    def save(self, folder: Path) -> None:
        """Write the trained model."""
        save_model(self.model, folder, overwrite=True)


def over_processes(own: Tensor) -> Tensor:
    """The mean of `own` over all processes, the same bits in each, with the gradient of this one's.

    Gradients of weights are averaged over the processes, so each contributes its own mean.
    """
    world = current()
    return own if world.size == 1 else world.mean(own.detach()) + (own - own.detach())


class ObjectiveConfig(Protocol):
    """A frozen dataclass with a field `kind` that says what to minimise."""

    def build(self, model: CLIP) -> Objective:
        """The objective, for a model."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastiveConfig:
    """Images and texts of a pair together, those of different pairs apart (see `losses`)."""

    kind: Literal["contrastive"] = "contrastive"
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)

    def build(self, model: CLIP) -> Contrastive:
        return Contrastive(model, self.loss)


class Contrastive(Objective):
    """The paper's objective, symmetric InfoNCE over the batch, or SigLIP's pairwise sigmoid.

    Attributes:
        noise: how likely each of this process's pairs of the step is noise (see `train.nlip`); None where nobody asks.
    """

    noise: Tensor | None = None

    def __init__(self, model: CLIP, config: LossConfig | None = None):
        self.module = self.model = model
        self.config = config or LossConfig()

    def check(self) -> None:
        if self.config.kind == "sigmoid" and self.model.logit_bias is None:
            raise ConfigError("objective.loss.kind is 'sigmoid', but the model has no bias", expected="init_logit_bias in it")

    def embed(self, batch: Batch) -> Embedded:
        """Unit rows in float32, whatever the towers compute in."""
        model, images, tokens = self.model, batch.images, batch.tokens
        # Features of frozen towers come as a matrix of numbers: (B, W) where pictures have four dimensions and tokens are ids.
        of_image, of_text = images.ndim == 2, tokens.is_floating_point()
        image = (model.project_image if of_image else model.encode_image)(images, normalize=True)
        text = (model.project_text if of_text else model.encode_text)(tokens, normalize=True)
        return Embedded(rows={"image": image, "text": text})

    def loss(self, embedded: Embedded, groups: Tensor | None) -> StepLoss:
        rows, model = embedded.rows, self.model
        found = batch_loss(
            rows["image"], rows["text"], model.scale(), config=self.config, bias=model.logit_bias, groups=groups,
            noise=self.noise,
        )  # fmt: skip
        logit_scale = model.logit_scale.detach()
        measured = {
            "image_accuracy": found.image_accuracy, "text_accuracy": found.text_accuracy,
            "logit_scale": logit_scale, "temperature": (-logit_scale).exp(),
        }  # fmt: skip
        return StepLoss(found.loss, measured)

    @torch.no_grad()
    def after_update(self) -> None:
        # Past its cap the multiplier's gradient is zero, and it could not come back.
        if self.model.config.logit_scale_cap is not None:
            self.model.logit_scale.clamp_(max=math.log(self.model.config.logit_scale_cap))

    def identity(self) -> Mapping[str, object]:
        return {"kind": "contrastive", "loss": dataclasses.asdict(self.config)}
