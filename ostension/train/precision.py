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

import contextlib
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ostension.config import require
from ostension.errors import CheckpointError
from ostension.train.rows import Rows

NORM_BLOCK = 2**18  # numbers: 1 MB in float32, which stays in the cache


class Masters:
    """The float32 weights of a model whose own may be low-precision copies.

    With `dtype` float32 (or float64) the model's parameters are the masters and nothing is copied.

    Attributes:
        weights: the model's parameters by name.
        masters: the tensor that the optimiser moves, by the same names; the parameter itself where not copied.
        copies: the parameters that are rounded from a master of their own.
        rounded: the names of bfloat16 weights that have no float32 master: the optimiser rounds them stochastically.
        gradients: of the step, by name, as the backward pass left them; in float32 or in the weight's own dtype.

    Args:
        unmastered: modules whose matrices are to be `rounded` where `dtype` is bfloat16. Their gains and biases keep
            masters, which cost next to nothing, and whose values near 1 would be rounded by 0.4 % at a time.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, unmastered: Iterable[nn.Module] = ()):
        self.model, self.dtype = model, dtype
        self.gradients: dict[str, Tensor] = {}
        self.weights: dict[str, nn.Parameter] = dict(model.named_parameters())
        kept = kept_in_float32(model)
        full = dtype if dtype == torch.float64 else torch.float32
        matrices = {weight for module in unmastered for weight in module.parameters() if weight.ndim > 1}
        self.rounded = {name for name, weight in self.weights.items() if weight in matrices and dtype == torch.bfloat16}
        self.masters: dict[str, Tensor] = {}
        for name, weight in self.weights.items():
            weight.data = weight.data.to(full)
            self.masters[name] = weight
            if dtype != full and weight.ndim and name not in kept:
                if name not in self.rounded:
                    self.masters[name] = weight.detach().clone()
                weight.data = weight.data.to(dtype)
        self.copies = {name: weight for name, weight in self.weights.items() if self.masters[name] is not weight}
        for module in model.modules():
            for buffer in module.buffers(recurse=False):
                if buffer.is_floating_point():
                    buffer.data = buffer.data.to(full if isinstance(module, _BatchNorm) else dtype)

    def trainable(self) -> Iterator[tuple[str, Tensor]]:
        """Names and masters of the weights that require gradients."""
        return ((name, master) for name, master in self.masters.items() if self.weights[name].requires_grad)

    def collect_gradients(self) -> None:
        """Take the gradients of the last backward pass from the weights."""
        self.gradients = {}
        for name, _ in self.trainable():
            weight = self.weights[name]
            if weight.grad is not None:
                self.gradients[name], weight.grad = weight.grad, None

    def hold(self) -> contextlib.AbstractContextManager[None]:
        """What is entered around all passes back through the model but the last one of a step (see `step`)."""
        return contextlib.nullcontext()

    def norm(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The global norm of tensors shaped as the masters of these names, such as their gradients."""
        return global_norm(tensors.values())

    def largest(self, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The largest of the values that were found for the masters of these names, where several hold parts of a tensor."""
        return values

    def rows(self) -> Mapping[str, Rows]:
        """Of masters that are slices of larger tensors: which rows they are."""
        return {}

    def release(self) -> None:
        """Called when the run is over, whatever happened."""

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the model's weights."""
        if self.copies:
            torch._foreach_copy_(list(self.copies.values()), [self.masters[name] for name in self.copies])

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

    @contextlib.contextmanager
    def lent(self, state: Mapping[str, Tensor]) -> Iterator[None]:
        """The model computes with the values of `state`, rounded to its own types, and gets its own bits back afterwards."""
        tensors = {**self.weights, **dict(self.model.named_buffers())}
        own = {name: tensors[name].detach().clone() for name in state}

        def give(values: Mapping[str, Tensor]) -> None:
            with torch.no_grad():  # through `.data` the folded convolutions would not see the change (model.fused)
                for name, value in values.items():
                    tensors[name].copy_(value)

        try:
            give(state)
            yield
        finally:
            give(own)

    @torch.no_grad()
    def restore_float32(self, state: Mapping[str, Tensor] | None = None) -> None:
        """Give the model its full-precision weights (or those of `state`, an average) in place of the copies."""
        for name, weight in self.weights.items():
            value = (self.masters[name] if state is None else state[name]).detach()
            weight.data = value.to(_wide(value), copy=True)
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
        self.tensors = {name: value.to(_wide(value), copy=True) for name, value in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` updates."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, live in self._live.items():
            self.tensors[name].lerp_(live.to(_wide(live)), 1 - decay)

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


def global_norm(tensors: Iterable[Tensor]) -> Tensor:
    """The norm of all numbers together, 0-d, in float32 or wider; low-precision numbers are widened some at a time."""
    norms = []
    for tensor in tensors:
        wide = _wide(tensor)
        parts = (tensor,) if tensor.dtype == wide else tensor.detach().flatten().split(NORM_BLOCK)
        norms += [torch.linalg.vector_norm(part.to(wide)) for part in parts]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def kept_in_float32(model: nn.Module) -> set[str]:
    """The names of the weights that are never low-precision copies, scalars left aside: those of batch norms."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        for name, _ in module.named_parameters(recurse=False)
    }


def _wide(tensor: Tensor) -> torch.dtype:
    """The dtype to compute in with what is stored like this."""
    return torch.promote_types(tensor.dtype, torch.float32)
