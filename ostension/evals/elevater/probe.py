"""Probes on frozen rows by stochastic gradient descent, any number of trials side by side.

A trial is a learning rate and a weight decay. All trials see the same batches in the same order and start from the same
head, so one matrix product serves them all, and what is done to the rows (batch norm, unit length) is done once. A trial
whose numbers overflow is dropped and says so; it cannot touch the others, whose columns are their own.

One step is torch's SGD: v <- m v + (g + d W), W <- W - l v. `train_one` is the plain reference, one trial through `Head`,
autograd and `torch.optim.SGD`; a test holds the two together in float64.

Letters: N rows, B batch, D width, C classes, T trials.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ostension.config import require
from ostension.evals.elevater.heads import Head, HeadConfig, Start, loss_of
from ostension.runtime import torch_generator
from ostension.shapes import Float, Int

MOMENTUM = 0.9
NORM_MOMENTUM, NORM_EPSILON = 0.1, 1e-5  # torch's batch norm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting of the optimiser."""

    learning_rate: float
    weight_decay: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and in what batches: `epochs` of shuffled batches, the last one smaller; a batch of one image is skipped."""

    epochs: int
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self):
        require(self.epochs >= 1, "epochs", self.epochs, "1 or more")
        require(self.batch_size >= 2, "batch_size", self.batch_size, "2 or more")


class Probes:
    """Heads of all trials, with what they share: weights (T, C, D), biases (T, C), logarithms of scales (T,).

    `alive` says which trials still have finite numbers, `ended` at which epoch each of the others lost them.
    """

    def __init__(self, config: HeadConfig, start: Start, trials: Sequence[Trial]):
        self.config, self.trials = config, tuple(trials)
        count, width = len(self.trials), start.weight.shape[1]
        self.dtype = start.weight.dtype
        self.weight = start.weight.repeat(count, 1, 1)
        self.bias = start.bias.repeat(count, 1)
        self.log_scale = torch.full((count,), start.log_scale, dtype=self.dtype)
        self.speeds = [torch.zeros_like(part) for part in (self.weight, self.bias, self.log_scale)]
        self.rates = torch.tensor([trial.learning_rate for trial in self.trials], dtype=self.dtype)
        self.decays = torch.tensor([trial.weight_decay for trial in self.trials], dtype=self.dtype)
        self.mean, self.variance = torch.zeros(width, dtype=self.dtype), torch.ones(width, dtype=self.dtype)
        self.places = torch.arange(count)  # which trial each row of the tensors is
        self.ended: dict[int, int] = {}

    @property
    def alive(self) -> list[int]:
        """Trials whose numbers are finite."""
        return self.places.tolist()

    def prepare(self, rows: Float[Tensor, "B D"], *, training: bool) -> Float[Tensor, "B D"]:
        """What the heads see of rows; in training the running statistics move."""
        if self.config.batch_norm:
            mean, variance = self.mean, self.variance
            if training:
                mean, variance = rows.mean(0), rows.var(0, correction=0)
                self.mean.lerp_(mean, NORM_MOMENTUM)
                self.variance.lerp_(variance * (len(rows) / (len(rows) - 1)), NORM_MOMENTUM)
            rows = (rows - mean) * (variance + NORM_EPSILON).rsqrt()
        return F.normalize(rows, dim=-1) if self.config.normalize else rows

    def step(self, rows: Float[Tensor, "B D"], targets: Tensor) -> None:
        """One step of every trial that is alive, on one batch."""
        inputs = self.prepare(rows, training=True)
        count, classes, width = self.weight.shape
        scale = self.log_scale.exp()
        logits = (inputs @ self.weight.view(-1, width).T).view(len(rows), count, classes) + self.bias
        logits *= scale[:, None]
        if targets.ndim == 1:
            slope = logits.softmax(-1)
            slope[torch.arange(len(rows)), :, targets] -= 1
            slope /= len(rows)
        else:
            slope = (logits.sigmoid() - targets[:, None, :].to(self.dtype)) / targets.numel()
        along_scale = (slope * logits).sum((0, 2)) if self.config.train_scale else None
        slope *= scale[:, None]
        # One product adds the gradient to the speed: weights are the only part whose size matters, and passes over memory cost.
        self.speeds[0].view(-1, width).addmm_(slope.view(len(rows), -1).T, inputs, beta=MOMENTUM)
        self._move(self.weight, self.speeds[0])
        self._move(self.bias, self.speeds[1].mul_(MOMENTUM).add_(slope.sum(0)))
        if along_scale is not None:
            self._move(self.log_scale, self.speeds[2].mul_(MOMENTUM).add_(along_scale))

    def _move(self, value: Tensor, speed: Tensor) -> None:
        """Add the decay to the speed, and move."""
        shape = (-1,) + (1,) * (value.ndim - 1)
        speed.addcmul_(value, self.decays.view(shape))
        value.addcmul_(speed, self.rates.view(shape), value=-1)

    def drop_broken(self, epoch: int) -> None:
        """Take out the trials whose numbers are not finite any more, so that nobody waits for them."""
        sums = self.weight.abs().sum((1, 2)) + self.bias.abs().sum(1) + self.log_scale.abs()
        good = sums.isfinite()
        if good.all():
            return
        self.ended |= dict.fromkeys(self.places[~good].tolist(), epoch)
        self.weight, self.bias, self.log_scale = self.weight[good], self.bias[good], self.log_scale[good]
        self.speeds = [speed[good] for speed in self.speeds]
        self.rates, self.decays, self.places = self.rates[good], self.decays[good], self.places[good]

    @torch.no_grad()
    def logits(self, rows: Float[Tensor, "B D"], trial: int) -> Float[Tensor, "B C"]:
        """The logits of one trial that is alive."""
        place = self.alive.index(trial)
        inputs = self.prepare(rows, training=False)
        return self.log_scale[place].exp() * (inputs @ self.weight[place].T + self.bias[place])


@torch.no_grad()
def train_probes(
    config: HeadConfig,
    start: Start,
    trials: Sequence[Trial],
    rows: Float[Tensor, "N D"],
    targets: Tensor,
    train: TrainConfig,
    after_epoch: Callable[[Probes, int], None] | None = None,
) -> Probes:
    """The heads of all trials after training.

    Args:
        targets: (N,) classes, or (N, C) of 0 and 1.
        after_epoch: told after each epoch, with its number from 1.
    """
    probes = Probes(config, start, trials)
    for epoch in range(1, train.epochs + 1):
        for batch in batches(len(rows), train, epoch):
            probes.step(rows[batch], targets[batch])
        probes.drop_broken(epoch)
        if not probes.alive:
            break
        if after_epoch is not None:
            after_epoch(probes, epoch)
    return probes


def train_one(
    config: HeadConfig, start: Start, trial: Trial, rows: Float[Tensor, "N D"], targets: Tensor, train: TrainConfig
) -> Head:
    """One trial the plain way; what `train_probes` must equal."""
    head = Head(config, start).to(start.weight.dtype).train()
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=trial.learning_rate, momentum=MOMENTUM, weight_decay=trial.weight_decay)
    for epoch in range(1, train.epochs + 1):
        for batch in batches(len(rows), train, epoch):
            optimizer.zero_grad()
            loss_of(head(rows[batch]), targets[batch]).backward()
            optimizer.step()
    return head.eval()


def batches(count: int, train: TrainConfig, epoch: int) -> list[Int[Tensor, " B"]]:
    """The positions of an epoch's batches, the same for every trial."""
    order = torch.randperm(count, generator=torch_generator(train.seed, "elevater", "order", epoch))
    return [batch for batch in order.split(train.batch_size) if len(batch) > 1]
