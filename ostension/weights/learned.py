"""Learned soups: the coefficients of an average, found by gradients on held-out samples, in the memory of two models.

    W_l = sum_i a_li W_li     a_l = softmax(theta_l) over models i, for each tensor l or one for all; logits times exp(b)

W is linear in a, so one backward pass through the averaged model is enough, and the models stay on the disk:

    dL/da_li = <dL/dW_l, W_li>      dL/dtheta_li = a_li (dL/da_li - sum_j a_lj dL/da_lj)

In memory are the averaged model and its gradient. Each step reads every file twice, in blocks. theta and b begin at 0, which is
the uniform soup; b goes into `logit_scale`, or into the head where there is one.

Source: model soups, arXiv 2203.05482, appendix I, and its code (AdamW at 0.05 without decay, 5 epochs on held-out
data), which holds all models in memory.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ostension.config import require
from ostension.errors import DivergenceError
from ostension.weights.arithmetic import agreed
from ostension.weights.batch_norm import Pictures, recalibrating
from ostension.weights.kernel import ByTensor, Mixed, Output, Source, block_of, of_tensor, spans
from ostension.weights.sources import open_models, weight_file
from ostension.weights.states import check_same_tensors
from ostension.weights.tensor_file import TensorFile
from ostension.weights.writing import write

By = Literal["tensor", "model"]


class HeldOutLoss(Protocol):
    """Held-out samples with a loss that has gradients."""

    def live(self, folder: Path) -> nn.Module:
        """The model of a folder, whose parameters have the names of the files; it is trained in place of the average."""

    def batches(self, epoch: int) -> Iterable[Any]:
        """The batches of an epoch, counted from 0."""

    def loss(self, live: nn.Module, batch: Any) -> Tensor:
        """The mean loss of a batch."""


@dataclasses.dataclass(frozen=True)
class LearnedSoup:
    """What was learned.

    Attributes:
        coefficients: of each tensor, one for each model in the order given; they sum to 1.
        scale: what logits were multiplied by.
        losses: the mean loss of each epoch.
        notes: for the user.
    """

    coefficients: dict[str, tuple[float, ...]]
    scale: float
    losses: tuple[float, ...]
    notes: tuple[str, ...]


class Learner:
    """Coefficients, the live average, and their gradients.

    Args:
        sources: the models.
        live: filled with their average; all parameters that differ between models take gradients, the others none.
        by: "tensor": coefficients for each tensor; "model": the same for all.

    Attributes:
        theta: (tensors or 1, models) float64.
        log_scale: b.
    """

    def __init__(self, sources: Sequence[Source], live: nn.Module, by: By):
        self.sources, self.live, self.by = sources, live, by
        parameters = dict(live.named_parameters())
        live.requires_grad_(False)
        self.names = [name for name in parameters if name in sources[0].shapes and self._differs(name)]
        self.parameters = {name: parameters[name] for name in self.names}
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        heads = [name for name in parameters if name in ("head.weight", "head.bias")]
        self.scaled = heads or [name for name in parameters if name == "logit_scale"]
        for name in self.scaled:
            parameters[name].requires_grad_(True)
        self._all = parameters
        rows = len(self.names) if by == "tensor" else 1
        self.theta = torch.zeros(rows, len(sources), dtype=torch.float64, requires_grad=True)
        self.log_scale = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def step(self, loss: Callable[[nn.Module], Tensor]) -> float:
        """Fill the live model, and put the gradients of its loss where an optimiser looks for them."""
        self.fill()
        for parameter in self._all.values():
            parameter.grad = None
        found = loss(self.live)
        found.backward()
        self.theta.grad, self.log_scale.grad = self._gradients()
        return float(found.detach())

    @torch.no_grad()
    def fill(self) -> None:
        """Make the live model the average."""
        output = self.output()
        for name, value in self.live.state_dict().items():
            if name not in self.sources[0].shapes:
                continue
            flat, wanted = value.view(-1), of_tensor(output, name)
            for start, stop in spans(len(flat), len(self.sources)):
                blocks = {index: source.read(name, start, stop) for index, source in self._used(wanted)}
                flat[start:stop] = block_of(self.sources, wanted, name, blocks, value.dtype)
            if name == "logit_scale" and name in self.scaled:
                value += self.log_scale.item()

    def output(self) -> ByTensor:
        """The average with the coefficients as they are; `logit_scale` without b."""
        factor = float(self.log_scale.detach().exp())
        parts = {
            name: Mixed(tuple(factor * value for value in row)) if name in self.scaled and name != "logit_scale" else Mixed(row)
            for name, row in self.coefficients().items()
        }
        count = len(self.sources)
        row = next(iter(self.coefficients().values()), ())
        rest = Mixed(row) if self.by == "model" and row else Mixed((1.0,) * count, float(count))
        for name in self.scaled:
            if name != "logit_scale" and name not in parts:  # equal in all models
                parts[name] = Mixed((factor, *(0.0,) * (count - 1)))
        return ByTensor(parts, rest)

    def coefficients(self) -> dict[str, tuple[float, ...]]:
        """a by tensor."""
        rows = self.theta.detach().softmax(dim=1).tolist()
        return {name: tuple(rows[index if self.by == "tensor" else 0]) for index, name in enumerate(self.names)}

    @torch.no_grad()
    def _gradients(self) -> tuple[Tensor, Tensor]:
        factor = float(self.log_scale.exp())
        products = torch.zeros(len(self.names), len(self.sources), dtype=torch.float64)
        for row, name in enumerate(self.names):
            gradient = self.parameters[name].grad
            if gradient is None:  # the loss does not look at it
                continue
            flat = gradient.reshape(-1)
            for start, stop in spans(len(flat), len(self.sources)):
                part = flat[start:stop].cpu().double()
                for index, source in enumerate(self.sources):
                    products[row, index] += part.dot(source.read(name, start, stop).double())
            if name in self.scaled and name != "logit_scale":
                products[row] *= factor
        shares = self.theta.softmax(dim=1)
        wide = products if self.by == "tensor" else products.sum(dim=0, keepdim=True)
        theta = shares * (wide - (shares * wide).sum(dim=1, keepdim=True))
        scale = torch.zeros((), dtype=torch.float64)
        for name in self.scaled:
            value, gradient = self._all[name], self._all[name].grad
            if gradient is not None:
                scale += gradient.double().sum().cpu() if name == "logit_scale" else (gradient.double() * value).sum().cpu()
        return theta, scale

    def _used(self, output: Output) -> list[tuple[int, Source]]:
        return [(index, self.sources[index]) for index, value in enumerate(output.coefficients) if value != 0]

    def _differs(self, name: str) -> bool:
        count = torch.Size(self.sources[0].shapes[name]).numel()
        for start, stop in spans(count, len(self.sources)):
            first = self.sources[0].read(name, start, stop).clone()
            if not all(torch.equal(source.read(name, start, stop), first) for source in self.sources[1:]):
                return True
        return False


def learned_soup(
    models: Sequence[str | os.PathLike],
    target: str | os.PathLike,
    samples: HeldOutLoss,
    *,
    by: By = "tensor",
    epochs: int = 5,
    lr: float = 0.05,
    recalibrate: Pictures | None = None,
    force: bool = False,
    overwrite: bool = False,
    told: Callable[[int, float], None] | None = None,
) -> LearnedSoup:
    """Write the learned soup of models or tuned predictors; see the head of this file.

    Statistics of batch normalisation are averaged (with "model" by the learned coefficients), or estimated anew.

    Args:
        by: coefficients for each tensor, or the same for all.
        told: called with the epoch, from 1, and its mean loss.

    Raises:
        CheckpointError, ConfigError: as `arithmetic.soup`.
        DivergenceError: for a loss that is not finite.
    """
    require(len(models) >= 2, "models", [os.fspath(name) for name in models], "two or more")
    require(by in ("tensor", "model"), "by", by, "tensor or model")
    require(epochs >= 1, "epochs", epochs, "1 or more")
    require(lr > 0, "lr", lr, "more than 0")
    with open_models(models) as opened:
        check_same_tensors(opened)
        forced, notes = agreed(opened, force)
        live = samples.live(Path(models[0])).eval()
        learner = Learner(opened, live, by)
        optimizer = torch.optim.AdamW([learner.theta, learner.log_scale], lr=lr, weight_decay=0.0)
        losses = []
        for epoch in range(epochs):
            total, count = 0.0, 0
            for batch in samples.batches(epoch):
                value = learner.step(lambda model, batch=batch: samples.loss(model, batch))  # type: ignore[misc]
                if not torch.isfinite(torch.tensor(value)):
                    raise DivergenceError(f"the loss of epoch {epoch + 1} is {value}", fix="choose a lower --lr")
                optimizer.step()
                total, count = total + value, count + 1
            losses.append(total / max(count, 1))
            if told is not None:
                told(epoch + 1, losses[-1])
        coefficients, scale = learner.coefficients(), float(learner.log_scale.detach().exp())
        output, shifted = learner.output(), "logit_scale" in learner.scaled
        shift = float(learner.log_scale.detach())
        rows = learner.theta.detach().softmax(dim=1)
        mean = rows.mean(dim=0).tolist() if len(rows) else [1 / len(opened)] * len(opened)  # models without a difference
        del learner, live
        estimated = None if recalibrate is None else recalibrating(recalibrate)

        def finish(made: Output, folder: Path) -> dict[str, Any]:
            if shifted:
                with TensorFile(folder / weight_file(folder)) as file:
                    file.replace({"logit_scale": file.read("logit_scale", 0, 1).clone().double().reshape(()) + shift})
            learned = {"by": by, "epochs": epochs, "lr": lr, "scale": scale, "losses": losses, "coefficients": coefficients}
            return {"learned": learned, **({} if estimated is None else estimated(made, folder))}

        inputs = [{"coefficient": value, **model.record()} for value, model in zip(mean, opened, strict=True)]
        write("soup", opened, opened, [(output, Path(target))], [inputs], forced, notes, overwrite, finish)
    return LearnedSoup(coefficients, scale, tuple(losses), tuple(notes))
