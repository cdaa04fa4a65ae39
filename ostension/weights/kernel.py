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

import concurrent.futures
import dataclasses
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ostension.errors import CheckpointError
from ostension.weights.sink import Sink
from ostension.weights.sources import BLOCK

PIECE = 1 << 16  # elements that are summed at a time: with both terms 1 MB in float64, which stays in a core's own cache
Job = tuple[str, int, int]  # a tensor, and where a block of it starts and stops
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


def combine(sources: Sequence[Source], outputs: Sequence[Output], sinks: Sequence[Sink], dtypes: Sequence[Mapping]) -> None:
    """Write each output to its sink, reading every source once for outputs that share the order of their tensors.

    Raises:
        CheckpointError: for a number that is not finite in a source or, after narrowing, in a result; a variance below 0.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a block is too little for several, which would wait for each other and for the hashes
    try:
        _combine(sources, outputs, sinks, dtypes)
    finally:
        torch.set_num_threads(threads)


def _combine(sources: Sequence[Source], outputs: Sequence[Output], sinks: Sequence[Sink], dtypes: Sequence[Mapping]) -> None:
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, sink in enumerate(sinks):
        groups.setdefault(tuple(sink.names), []).append(index)
    for names, members in groups.items():

        def read(job: Job) -> dict[int, Tensor]:
            name, start, stop = job
            wanted = {index for member in members for index in used(sources, of_tensor(outputs[member], name))}  # noqa: B023
            return {index: sources[index].read(name, start, stop) for index in sorted(wanted) if name in sources[index].dtypes}

        jobs = ((name, *span) for name in names for span in spans(torch.Size(sources[0].shapes[name]).numel(), len(sources)))
        for (name, _, _), blocks in _ahead(jobs, read):
            for member in members:
                made = block_of(sources, of_tensor(outputs[member], name), name, blocks, dtypes[member][name])
                sinks[member].write(made)


def _ahead(jobs: Iterable[Job], read: Callable[[Job], dict[int, Tensor]]) -> Iterator[tuple[Job, dict[int, Tensor]]]:
    """Every job with its blocks, which another thread reads while the blocks before are summed."""
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="reading") as reader:
        before: tuple[Job, concurrent.futures.Future[dict[int, Tensor]]] | None = None
        for job in jobs:
            now = job, reader.submit(read, job)
            if before is not None:
                yield before[0], before[1].result()
            before = now
        if before is not None:
            yield before[0], before[1].result()


def spans(count: int, sources: int) -> Iterator[tuple[int, int]]:
    """The blocks of a tensor, as starts and stops: of many sources smaller ones, so that a soup takes the memory of a line."""
    size = max(BLOCK * 4 // max(sources, 4), 1 << 12)
    for start in range(0, count, size):
        yield start, min(start + size, count)


def block_of(
    sources: Sequence[Source], output: Mixed | Moved, name: str, blocks: Mapping[int, Tensor], dtype: torch.dtype
) -> Tensor:
    """One block of a result, its own memory.

    Args:
        blocks: the elements of each source that counts and has the tensor.
    """
    members = [index for index in used(sources, output) if index in blocks]
    if output.only is not None:
        return blocks[output.only].to(dtype, copy=True)
    if not dtype.is_floating_point:
        whole = [blocks[index] for index in ([0] if isinstance(output, Moved) else members)]
        found = whole[0].to(dtype, copy=True)
        for other in whole[1:]:
            torch.maximum(found, other.to(dtype), out=found)
        return found
    first = blocks[members[0]]
    made = torch.empty(len(first), dtype=dtype, device=first.device)
    for start in range(0, len(made), PIECE):
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
    if name.endswith("running_var") and bool((out < 0).any()):
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
    if like.device.type != "cpu":
        return torch.empty(len(like), dtype=torch.float64, device=like.device)
    kept = _KEPT.__dict__.get(use)
    if kept is None or len(kept) < len(like):
        kept = _KEPT.__dict__[use] = torch.empty(len(like), dtype=torch.float64)
    return kept[: len(like)]


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
