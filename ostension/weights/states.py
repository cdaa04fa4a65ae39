"""State dicts in memory, combined by the kernel that combines files: with the same numbers, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ostension.errors import CheckpointError
from ostension.weights.kernel import Mixed, Source, block_of, spans, used


class StateSource:
    """A state dict as the kernel's source."""

    def __init__(self, name: str, state: Mapping[str, Tensor]):
        self.name = self.digest = name
        self.dtypes = {key: value.dtype for key, value in state.items()}
        self.shapes = {key: tuple(value.shape) for key, value in state.items()}
        self._state = state

    def read(self, name: str, start: int, stop: int) -> Tensor:
        return self._state[name].detach().reshape(-1)[start:stop].cpu()


@torch.no_grad()
def mixed_state(states: Sequence[Mapping[str, Tensor]], coefficients: Sequence[float]) -> dict[str, Tensor]:
    """sum_i c_i w_i of every tensor, in float64 within; a coefficient of 1 alone gives that state, to the bit.

    Raises:
        CheckpointError: for states with other tensors or shapes than the first, or for numbers that are not finite.
    """
    sources: list[Source] = [StateSource(f"state {number}", state) for number, state in enumerate(states)]
    check_same_tensors(sources)
    output, made = Mixed(tuple(map(float, coefficients))), {}
    members = used(sources, output)
    for name, first in states[0].items():
        whole = torch.empty(first.numel(), dtype=first.dtype)
        for start, stop in spans(first.numel(), len(sources)):
            blocks = {index: sources[index].read(name, start, stop) for index in members}
            whole[start:stop] = block_of(sources, output, name, blocks, first.dtype)
        made[name] = whole.view(first.shape).to(first.device)
    return made


def check_same_tensors(sources: Sequence[Source]) -> None:
    """Raise unless all have the tensors of the first, in its shapes.

    Raises:
        CheckpointError: naming the first tensor that is missing or has another shape.
    """
    first = sources[0].shapes
    for source in sources[1:]:
        for name in sorted({*first, *source.shapes}):
            wanted, found = first.get(name), source.shapes.get(name)
            if wanted != found:
                raise CheckpointError(
                    f"the tensor {name!r} is {found or 'missing'}", source=source.name,
                    expected=f"{'none' if wanted is None else wanted}, as in {sources[0].name}",
                    fix="models of one architecture",
                )  # fmt: skip
