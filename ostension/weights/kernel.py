"""The one computation behind all weight arithmetic: linear combinations of tensors, block by block, in float64.

    mixed   w = (sum_i c_i w_i) / d                 interpolation, soups
    moved   w = w_0 + sum_i s_i v_i                 task vectors; w is w_0 to the bit where the sum is 0

- Where a single model counts, with the coefficient 1, its bytes are copied: (1 - a) w + a w' with a = 0 would turn -0.0 to 0.0.
- Terms are added in the order of their files' hashes, so that the result does not depend on the order on a command line.
- Equal models give themselves: a sum of K equal floats is exact in float64, and so is its quotient by K. Where a coefficient
  is negative, or the numbers are float64 themselves, elements that are equal in all models are taken as they are.
- Whole numbers (batch counters) are not averaged: the largest counts.

Source: WiSE-FT (arXiv 2109.01903), model soups (2203.05482), task arithmetic (2212.04089); identities measured here: float32
running sums change 93 % of the bits of a soup of 72 equal models.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ostension.errors import CheckpointError
from ostension.weights.sources import BLOCK

PIECE = 1 << 17  # elements that are summed at a time: a block of a few sources; smaller ones are more calls than they save
_KEPT = threading.local()
_AFFINE = 1e-9  # how far the sum of coefficients may be from 1 and still count as 1


class Source(Protocol):
    """What can be read in blocks."""

    name: str
    digest: str
    dtypes: dict[str, torch.dtype]
    shapes: dict[str, tuple[int, ...]]

    def read(self, name: str, start: int, stop: int) -> Tensor: ...


@dataclasses.dataclass(frozen=True)
class Mixed:
    """(sum_i c_i w_i) / d over all sources."""

    coefficients: tuple[float, ...]
    divisor: float = 1.0

    @property
    def affine(self) -> bool:
        """Whether coefficients sum to 1."""
        return abs(sum(self.coefficients) / self.divisor - 1) <= _AFFINE

    @property
    def only(self) -> int | None:
        """The one source that counts, with the coefficient 1."""
        used = [index for index, value in enumerate(self.coefficients) if value != 0]
        return used[0] if len(used) == 1 and self.coefficients[used[0]] == self.divisor else None


@dataclasses.dataclass(frozen=True)
class Moved:
    """w_0 + sum_i s_i v_i: the first source, and vectors, which may lack tensors."""

    scales: tuple[float, ...]

    @property
    def coefficients(self) -> tuple[float, ...]:
        return (1.0, *self.scales)

    @property
    def only(self) -> int | None:
        return None if any(self.scales) else 0


@dataclasses.dataclass(frozen=True)
class ByTensor:
    """Combinations that differ from tensor to tensor: `parts` by name, and `rest`."""

    parts: Mapping[str, Mixed]
    rest: Mixed

    @property
    def coefficients(self) -> tuple[float, ...]:
        return self.rest.coefficients

    @property
    def only(self) -> int | None:
        return None


Output = Mixed | Moved | ByTensor


def of_tensor(output: Output, name: str) -> Mixed | Moved:
    """What an output is for one tensor."""
    return output.parts.get(name, output.rest) if isinstance(output, ByTensor) else output


def used(sources: Sequence[Source], output: Output) -> list[int]:
    """The sources that count, in the order in which they are added."""
    members = [index for index, value in enumerate(output.coefficients) if value != 0]
    return sorted(members, key=lambda index: (sources[index].digest, output.coefficients[index]))


def result_dtypes(sources: Sequence[Source], output: Output) -> dict[str, torch.dtype]:
    """The types of a result: the smallest that holds those of all models that count; a base's where vectors are added."""
    if isinstance(output, Moved):
        return dict(sources[0].dtypes)
    members = used(sources, output) or [0]
    found = dict(sources[members[0]].dtypes)
    for index in members[1:]:
        found = {name: torch.promote_types(dtype, sources[index].dtypes[name]) for name, dtype in found.items()}
    return found


def spans(count: int, sources: int) -> Iterator[tuple[int, int]]:
    """The blocks of a tensor, as starts and stops: of many sources smaller ones, so that a soup takes the memory of a line."""
    size = max(min(BLOCK, (1 << 20) // sources), 1 << 12)
    for start in range(0, count, size):
        yield start, min(start + size, count)


def block_of(
    sources: Sequence[Source],
    output: Mixed | Moved,
    name: str,
    blocks: Mapping[int, Tensor],
    dtype: torch.dtype,
    made: Tensor | None = None,
) -> Tensor:
    """One block of a result, in memory that no source has.

    Args:
        blocks: the elements of each source that counts and has the tensor.
        made: where to put it, instead of fresh memory.

    Raises:
        CheckpointError: for a number that is not finite in a source or, after narrowing, in the result; a variance below 0.
    """
    members = [index for index in used(sources, output) if index in blocks]
    first = blocks[members[0] if output.only is None else output.only]
    if made is None:
        made = torch.empty(first.numel(), dtype=dtype, device=first.device)
    if output.only is not None:
        return made.copy_(first)
    if not dtype.is_floating_point:
        whole = [blocks[index] for index in ([0] if isinstance(output, Moved) else members)]
        made.copy_(whole[0])
        for other in whole[1:]:
            torch.maximum(made, other.to(dtype), out=made)
        return made
    for start in range(0, made.numel(), PIECE):
        part = slice(start, start + PIECE)
        _combined(sources, output, name, members, {index: block[part] for index, block in blocks.items()}, made[part])
    return made


def _combined(
    sources: Sequence[Source], output: Mixed | Moved, name: str, members: Sequence[int], blocks: Mapping[int, Tensor],
    out: Tensor,
) -> None:  # fmt: skip
    """One piece of a block, into `out`."""
    result = _moved(output, members, blocks) if isinstance(output, Moved) else _mixed(output, members, blocks)
    out.copy_(result)
    # What is finite in float64 and not after narrowing overflowed; the sum of anything not finite is not finite.
    if not _finite(out):
        raise _not_finite(sources, members, name, blocks, out.dtype)
    difference = isinstance(output, Mixed) and sum(output.coefficients) == 0  # a task vector: no variance itself
    if name.endswith("running_var") and not difference and bool((out < 0).any()):
        raise CheckpointError(
            f"the variance {name!r} would be below 0 with coefficients {', '.join(f'{c:g}' for c in output.coefficients)}",
            source=sources[0].name, fix="stay between the models",
        )  # fmt: skip
    if isinstance(output, Moved):
        still = result == blocks[0].double()
        torch.where(still, blocks[0].to(out.dtype), out, out=out)  # the base's own zeros keep their sign
        return
    wide = any(blocks[index].dtype == torch.float64 for index in members)
    if output.affine and (wide or min(output.coefficients) < 0):
        first, same = blocks[members[0]], torch.ones(len(out), dtype=torch.bool)
        for index in members[1:]:
            same &= (blocks[index] == first) & (torch.signbit(blocks[index]) == torch.signbit(first))
        torch.where(same, first.to(out.dtype), out, out=out)


def _mixed(output: Mixed, members: Sequence[int], blocks: Mapping[int, Tensor]) -> Tensor:
    total = _times(blocks[members[0]], output.coefficients[members[0]], "total")
    for index in members[1:]:
        _add(total, blocks[index], output.coefficients[index])
    return total if output.divisor == 1 else total.div_(output.divisor)


def _moved(output: Moved, members: Sequence[int], blocks: Mapping[int, Tensor]) -> Tensor:
    total = _scratch(blocks[0], "total").zero_()
    for index in members:
        if index > 0:
            _add(total, blocks[index], output.coefficients[index])
    return total.add_(blocks[0])


def _add(total: Tensor, block: Tensor, coefficient: float) -> None:
    """total += coefficient * block, rounded twice: fused, two terms would give other ties in another order.

    Such ties are common: 0.65 x + 0.35 y of float32 numbers is a 20th of whole numbers.
    """
    total.add_(block if coefficient == 1 else _times(block, coefficient, "term"))


def _times(block: Tensor, coefficient: float, use: str) -> Tensor:
    product = _scratch(block, use).copy_(block)
    return product if coefficient == 1 else product.mul_(coefficient)


def _scratch(like: Tensor, use: str) -> Tensor:
    """As many numbers in float64 to work in, the same memory at each call: fresh pages cost more than the sums."""
    count = like.numel()
    if like.device.type != "cpu":
        return torch.empty(count, dtype=torch.float64, device=like.device)
    kept: Tensor | None = _KEPT.__dict__.get(use)
    if kept is None or kept.numel() < count:
        kept = _KEPT.__dict__[use] = torch.empty(count, dtype=torch.float64)
    return kept if kept.numel() == count else kept[:count]


def _finite(values: Tensor) -> bool:
    """Whether all numbers are finite; their squares are summed first, which takes a tenth of the time of asking each."""
    wide = values if values.dtype in (torch.float32, torch.float64) else values.float()
    return math.isfinite(torch.dot(wide, wide).item()) or bool(torch.isfinite(values).all())


def _not_finite(
    sources: Sequence[Source], members: Sequence[int], name: str, blocks: Mapping[int, Tensor], dtype: torch.dtype
) -> CheckpointError:
    for index in members:
        count = int((~torch.isfinite(blocks[index])).sum())
        if count:
            return CheckpointError(
                f"the tensor {name!r} holds {count} numbers that are not finite", source=sources[index].name,
                expected="weights that can be averaged",
            )  # fmt: skip
    return CheckpointError(
        f"the tensor {name!r} overflows {str(dtype).removeprefix('torch.')}",
        source=sources[0].name, fix="convert the inputs first: ostension model convert ... --dtype float32",
    )  # fmt: skip
