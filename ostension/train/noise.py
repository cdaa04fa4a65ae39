"""How likely each pair of a run is noise, found anew at the beginning of each epoch from the losses that the model gives it.

    eps_i = strength * P(noise | loss of pair i)                                                              (1)

with the mixture of `train.mixture` over all pairs of the epoch. The first `warmup_epochs` know nothing and take the plain loss.

The losses are those of the batches that the epoch is about to draw, with its very views, captions and batches: each pair is
judged by the other pairs that it is going to meet, and a source of batches needs nothing but its numbers. That costs one more
forward pass over the data. The model is in evaluation mode.

Letters: S steps of an epoch, B pairs of a batch, b of them in this process, E embedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from ostension.config import require
from ostension.errors import CheckpointError
from ostension.losses import LossConfig, pair_losses
from ostension.model.clip import CLIP
from ostension.model.modes import evaluating
from ostension.shapes import Float
from ostension.train.batches import Batch, BatchSource
from ostension.train.mixture import Mixture, fit_mixture
from ostension.train.prefetch import batches_ahead
from ostension.world import current

UnitRows = Callable[[Batch], tuple[Tensor, Tensor]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """When and how far noise is believed in.

    Attributes:
        warmup_epochs: of the plain loss, from which the first losses are taken; 0 for a run that starts from a warm model.
        strength: lambda in equation (1), the noise of a pair that surely is.
    """

    warmup_epochs: int = 1
    strength: float = 1.0

    def __post_init__(self):
        require(self.warmup_epochs >= 0, "objective.noise.warmup_epochs", self.warmup_epochs, "0 or more")
        require(0 < self.strength <= 1, "objective.noise.strength", self.strength, "more than 0, at most 1")


class NoiseEstimates:
    """What is known of the running epoch.

    Attributes:
        epoch: that `values` are of; None during the warm-up.
        values: (S, B) eps of the pairs of the epoch's steps, float64.
        mixture: that they come from; None after a restart, until the next epoch.
    """

    def __init__(self, config: NoiseConfig):
        self.config = config
        self.epoch: int | None = None
        self.values = torch.empty(0, 0, dtype=torch.float64)
        self.mixture: Mixture | None = None

    def of_step(
        self, step: int, model: CLIP, rows: UnitRows, loss: LossConfig, batches: BatchSource, workers: int = 0
    ) -> Float[Tensor, " b"] | None:
        """eps of this process's pairs of a step, fitted if it is the first of an epoch; None during the warm-up."""
        steps = max(1, batches.num_samples // batches.batch_size)
        epoch, place = divmod(step, steps)
        if epoch < self.config.warmup_epochs:
            return None
        if self.epoch != epoch:
            losses = epoch_losses(model, rows, loss, batches, epoch * steps, steps, workers)
            self.mixture = fit_mixture(losses.numpy())
            posterior = self.mixture.posterior(losses.numpy())
            self.values, self.epoch = torch.from_numpy(self.config.strength * posterior), epoch
        world = current()
        local = self.values.shape[1] // world.size
        return self.values[place, world.rank * local : (world.rank + 1) * local]

    def state(self) -> dict[str, Tensor]:
        """As tensors, for a checkpoint; nothing during the warm-up."""
        return {} if self.epoch is None else {"noise": self.values, "noise_epoch": torch.tensor(self.epoch)}

    def load(self, tensors: Mapping[str, Tensor], source: object) -> None:
        """Go on from a checkpoint's tensors.

        Raises:
            CheckpointError: for others.
        """
        if not tensors:
            self.epoch = None
            return
        if set(tensors) != {"noise", "noise_epoch"} or tensors["noise"].ndim != 2:
            raise CheckpointError("is no noise of pairs", source=source, expected="what a run of the same settings saved")
        self.values, self.epoch = tensors["noise"].to("cpu", torch.float64), int(tensors["noise_epoch"])


@torch.no_grad()
def epoch_losses(
    model: CLIP, rows: UnitRows, loss: LossConfig, batches: BatchSource, first: int, steps: int, workers: int = 0
) -> Float[Tensor, "S B"]:
    """Each pair's loss in its batch, of `steps` steps from `first` on, as the model stands; the same in every process.

    Args:
        rows: gives the unit embeddings of a batch's images and texts.
    """
    world, found = current(), []
    with evaluating(model), batches_ahead(batches, first, first + steps, workers, world) as stream:
        for drawn in stream:
            batch = drawn.to(model.device)
            groups = None if batch.groups is None else world.rows(batch.groups)
            image, text = (world.rows(side) for side in rows(batch))
            each = pair_losses(image, text, model.scale(), groups=groups, duplicates=loss.duplicates).double()
            world.from_first(each)  # processes on unlike machines would else differ in the last bits
            found.append(each.cpu())
    return torch.stack(found)


def noise_of(losses: np.ndarray, strength: float = 1.0) -> tuple[np.ndarray, Mixture]:
    """eps of each pair by equation (1), and the mixture."""
    mixture = fit_mixture(losses)
    return strength * mixture.posterior(losses), mixture
