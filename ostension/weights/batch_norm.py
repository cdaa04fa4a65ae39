"""Statistics of batch normalisation for averaged weights, estimated anew: forward passes over pictures, without gradients.

The running mean and variance of a layer describe what comes into it. Those of averaged models describe what came into other
models' layers, and the average of such networks often answers at random until they are estimated again.

In one pass every layer normalises with its batch's own statistics, as in training, and what comes into it is summed up:

    mean = sum_b n_b m_b / n        var = [sum_b n_b (v_b + m_b^2) / n - mean^2] n / (n - 1)

over all positions of all pictures, in float64. Of the first layer these are exact whatever the batches; with all pictures in
one batch, those of every layer are. Weights and all other tensors stay as they are.

Source: stochastic weight averaging (arXiv 1803.05407), section 3.2; torch's `update_bn`, which averages the batches' variances
and so leaves out how far the batches' means lie apart.

Letters: B batch, K channels, S side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ostension.errors import ConfigError, DataError
from ostension.model.clip import CLIP
from ostension.weights.kernel import Output
from ostension.weights.sources import live_model, weight_file
from ostension.weights.tensor_file import TensorFile


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures to estimate on.

    Attributes:
        batches: batches (B, 3, S, S), preprocessed as a model wants them and where it is; the same at each call.
        record: what they are, for the provenance.
    """

    batches: Callable[[CLIP], Iterable[Tensor]]
    record: Mapping[str, Any]


def layers(model: CLIP) -> dict[str, _BatchNorm]:
    """The layers of a model that have running statistics, by name."""
    return {
        name: part for name, part in model.named_modules() if isinstance(part, _BatchNorm) and part.running_mean is not None
    }  # fmt: skip


@torch.no_grad()
def estimate(model: CLIP, pictures: Pictures) -> int:
    """Estimate the statistics of a model's image tower in place; gives the number of pictures.

    Raises:
        ConfigError: for a model without batch normalisation.
        DataError: for no pictures, or so few that a layer sees one number a channel.
    """
    found = {name: part for name, part in layers(model).items() if name.startswith("visual.")}
    if not found:
        raise ConfigError(f"{model.config.name} has no batch normalisation", fix="leave --recalibrate out")
    totals = {name: _Totals() for name in found}
    modes = {name: (part.training, part.momentum) for name, part in found.items()}
    hooks = [part.register_forward_pre_hook(totals[name].take) for name, part in found.items()]
    was_training, count, batches = model.training, 0, 0
    model.eval()
    try:
        for part in found.values():
            part.train()
            part.momentum = 0.0  # the layer itself changes nothing
        for images in pictures.batches(model):
            model.encode_image(images)
            count, batches = count + len(images), batches + 1
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
        for name, part in found.items():
            part.training, part.momentum = modes[name]
    if not count:
        raise DataError("there are no pictures to estimate batch normalisation on")
    for name, part in found.items():
        mean, variance = totals[name].result(name)
        assert part.running_mean is not None and part.running_var is not None and part.num_batches_tracked is not None
        part.running_mean.copy_(mean)
        part.running_var.copy_(variance)
        part.num_batches_tracked.fill_(batches)
    return count


def recalibrating(pictures: Pictures) -> Callable[[Output, Path], dict[str, Any]]:
    """What estimates the statistics in the file of a folder of averaged weights; copied ones keep theirs."""

    def finish(output: Output, folder: Path) -> dict[str, Any]:
        if output.only is not None:
            return {}
        model = live_model(folder)
        count = estimate(model, pictures)
        state = model.state_dict()
        names = [f"{name}.{part}" for name in layers(model) for part in ("running_mean", "running_var", "num_batches_tracked")]
        with TensorFile(folder / weight_file(folder)) as file:
            file.replace({name: state[name].cpu() for name in names if name in file.shapes})
        return {"batch_norm": {**pictures.record, "pictures": count}}

    return finish


class _Totals:
    """What came into a layer, summed in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.means: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def take(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].float()
        variance, mean = torch.var_mean(x, dim=[0, *range(2, x.ndim)], correction=0)  # (K,) each
        number, wide = x.numel() // x.shape[1], mean.double()
        self.count += number
        self.means = self.means + number * wide
        self.squares = self.squares + number * (variance.double() + wide.square())

    def result(self, name: str) -> tuple[Tensor, Tensor]:
        if self.count < 2:
            raise DataError(f"the layer {name} sees {self.count} numbers a channel", expected="two or more, of more pictures")
        mean = torch.as_tensor(self.means / self.count)
        variance = (self.squares / self.count - mean.square()).clamp_min(0)
        return mean, variance * (self.count / (self.count - 1))
