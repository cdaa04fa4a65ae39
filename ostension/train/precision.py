"""Low-precision weights over float32 masters, and the running average of the masters.

Processors and GPUs with bfloat16 units multiply two to four times faster in it, but an update of one thousandth of a
weight is lost in its eight bits. So the towers compute with bfloat16 copies, the optimiser moves float32 masters, and the
copies are rounded from them after every step; only masters are ever saved. Autocast, the usual way, casts every weight
anew in every call and keeps neither the speed nor the memory (measured: 1.7 times open_clip's float32 step against 2.1
without any cast and 3.0 with low-precision weights, captions cut to length in the last two).

What stays in float32: scalars (`logit_scale` has a gradient that must be exact and a range that ends at 100), and batch
norm with its running statistics, which move by hundredths of themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ostension.config import require
from ostension.errors import CheckpointError


class Masters:
    """The float32 weights of a model whose own may be low-precision copies.

    With `dtype` float32 (or float64) the model's parameters are the masters and nothing is copied.

    Attributes:
        weights: the model's parameters by name.
        masters: the float32 tensor that the optimiser moves, by the same names; the parameter itself where not copied.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        self.model, self.dtype = model, dtype
        self.weights: dict[str, nn.Parameter] = dict(model.named_parameters())
        kept = _kept_in_float32(model)
        full = dtype if dtype == torch.float64 else torch.float32
        self.masters: dict[str, Tensor] = {}
        for name, weight in self.weights.items():
            weight.data = weight.data.to(full)
            self.masters[name] = weight
            if dtype != full and weight.ndim and name not in kept:
                self.masters[name] = weight.detach().clone()
                weight.data = weight.data.to(dtype)
        for module in model.modules():
            for buffer in module.buffers(recurse=False):
                if buffer.is_floating_point():
                    buffer.data = buffer.data.to(full if isinstance(module, _BatchNorm) else dtype)

    def trainable(self) -> Iterator[tuple[str, Tensor]]:
        """Names and masters of the weights that require gradients."""
        return ((name, master) for name, master in self.masters.items() if self.weights[name].requires_grad)

    def collect_gradients(self) -> list[Tensor]:
        """Give every master the gradient of its copy, in float32; the list of them."""
        found = []
        for name, master in self.trainable():
            weight = self.weights[name]
            if master is not weight:
                master.grad = None if weight.grad is None else weight.grad.float()
                weight.grad = None
            if master.grad is not None:
                found.append(master.grad)
        return found

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the model's weights."""
        pairs = [(self.weights[name], master) for name, master in self.masters.items() if master is not self.weights[name]]
        if pairs:
            torch._foreach_copy_([weight for weight, _ in pairs], [master for _, master in pairs])

    def state(self) -> dict[str, Tensor]:
        """Masters and buffers by their names in the model, for saving; views, not copies."""
        return {name: master.detach() for name, master in self.masters.items()} | dict(self.model.named_buffers())

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor], source: object = None) -> None:
        """Take masters and buffers from `state`, and round the model's weights from them.

        Raises:
            CheckpointError: if the names or the shapes are not those of this model.
        """
        copy_exactly(self.state(), state, source)
        self.publish()

    @torch.no_grad()
    def restore_float32(self, state: Mapping[str, Tensor] | None = None) -> None:
        """Give the model its full-precision weights (or those of `state`, an average) in place of the copies."""
        for name, weight in self.weights.items():
            weight.data = (self.masters[name] if state is None else state[name]).detach().clone()
            weight.grad = None
        for name, buffer in self.model.named_buffers():
            if state is not None and name in state:
                buffer.copy_(state[name])


class Average:
    """A running average of the masters and the floating-point buffers: a <- d a + (1 - d) w after every step.

    The decay d grows with the steps as (1 + t) / (10 + t) up to `decay`, so that the first weights are forgotten.
    """

    def __init__(self, masters: Masters, decay: float):
        require(0 < decay < 1, "average", decay, "between 0 and 1, near 1")
        self.decay = decay
        self._live = {name: value for name, value in masters.state().items() if value.is_floating_point()}
        self.tensors = {name: value.clone() for name, value in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` updates."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.tensors.values()), list(self._live.values()), 1 - decay)

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor], source: object = None) -> None:
        """Take the average from `state`."""
        copy_exactly(self.tensors, state, source)


def copy_exactly(targets: Mapping[str, Tensor], state: Mapping[str, Tensor], source: object) -> None:
    """Copy each tensor of `state` into the target of its name.

    Raises:
        CheckpointError: naming the first name that is missing or unknown, or whose shape or dtype is another.
    """
    for name in [*targets, *state]:
        if name not in state or name not in targets:
            word = "is missing" if name not in state else "is not part of this model"
            raise CheckpointError(f"the tensor {name!r} {word}", source=source, expected="the state of a run of the same model")
        if state[name].shape != targets[name].shape or state[name].dtype != targets[name].dtype:
            raise CheckpointError(
                f"the tensor {name!r} is {state[name].dtype} of shape {tuple(state[name].shape)}",
                source=source,
                expected=f"{targets[name].dtype} of shape {tuple(targets[name].shape)}",
            )
    for name, target in targets.items():
        target.copy_(state[name])


def _kept_in_float32(model: nn.Module) -> set[str]:
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        for name, _ in module.named_parameters(recurse=False)
    }
