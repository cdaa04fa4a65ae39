"""How a layout's tensors become ours and back: one `Entry` a parameter, and the check that names what is wrong.

A layout is a function from our parameter name to an `Entry`. Reading and writing, the check for missing, unexpected and
misshapen tensors, and the table of known names all follow from it.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ostension.errors import CheckpointError, nearest
from ostension.model.config import ModelConfig

Read = Callable[[Sequence[Tensor]], Tensor]
Write = Callable[[Tensor], Sequence[Tensor]]
# Entries that some exporters add and nobody needs: position numbers, the causal mask, the integers of OpenAI's archives.
_IGNORED = re.compile(r"(^|\.)(position_ids|attn_mask)$|^(input_resolution|context_length|vocab_size)$")
# Batch counters of batch norm: unused in evaluation, and absent where a tower was frozen.
_COUNTER = "num_batches_tracked"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One of our parameters and the tensors that it is made of in a layout.

    Attributes:
        read: the parameter, of the tensors `theirs` (in a view where possible).
        write: the tensors `theirs`, of the parameter; the inverse of `read`.
    """

    ours: str
    theirs: tuple[str, ...]
    read: Read
    write: Write


Layout = Callable[[str], Entry]


def same(ours: str, theirs: str) -> Entry:
    """The same tensor under another name."""
    return Entry(ours, (theirs,), lambda tensors: tensors[0], lambda tensor: (tensor,))


def transposed(ours: str, theirs: str) -> Entry:
    """A matrix whose two dimensions change places."""
    return Entry(ours, (theirs,), lambda tensors: tensors[0].t(), lambda tensor: (tensor.t(),))


def led(ours: str, theirs: str) -> Entry:
    """A tensor that carries an extra first dimension of 1."""
    return Entry(ours, (theirs,), lambda tensors: tensors[0].squeeze(0), lambda tensor: (tensor[None],))


def scalar(ours: str, theirs: str, shape: tuple[int, ...] = ()) -> Entry:
    """A single number, whatever number of dimensions it comes with."""

    def read(tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0].reshape(()) if tensors[0].numel() == 1 else tensors[0]

    return Entry(ours, (theirs,), read, lambda tensor: (tensor.reshape(shape),))


def fused(ours: str, theirs: tuple[str, ...], parts: tuple[int, ...]) -> Entry:
    """Several tensors laid end to end along the first dimension, in the proportions `parts`."""

    def write(tensor: Tensor) -> Sequence[Tensor]:
        unit = tensor.shape[0] // sum(parts)
        return tensor.split([unit * part for part in parts])

    return Entry(ours, theirs, lambda tensors: torch.cat(list(tensors)), write)


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every entry of the state dict, without making the model."""
    from ostension.model.clip import CLIP

    try:
        with torch.device("meta"):
            return {name: tuple(tensor.shape) for name, tensor in CLIP(config).state_dict().items()}
    except RuntimeError as error:  # torch counts bytes in 64 bits, also where it allocates none
        raise CheckpointError(f"the configuration's sizes are past all limits ({str(error).splitlines()[0]})") from None


def to_ours(
    state: Mapping[str, Tensor],
    layout: Layout,
    config: ModelConfig,
    path: Path,
    kind: str,
    finish: Callable[[str, Tensor], Tensor],
) -> dict[str, Tensor]:
    """The state dict under our names, complete and in the expected shapes.

    Args:
        state: tensors under the layout's names.
        kind: the layout's name, for messages.
        finish: what is done with each tensor as soon as it is made (a cast), before the next one.

    Raises:
        CheckpointError: naming the missing, unexpected or misshapen tensors, both shapes, and the nearest known name.
    """
    layers = max(config.text.depth, config.vision.depth)
    if layers > len(state):  # before a model of that depth is made, which takes time even without memory
        raise CheckpointError(f"the configuration has {layers} layers and the file {len(state)} tensors", source=path)
    shapes = expected_shapes(config)
    entries = {name: layout(name) for name in shapes}
    known = {theirs for entry in entries.values() for theirs in entry.theirs}
    missing = [
        theirs for entry in entries.values() for theirs in entry.theirs if theirs not in state and not theirs.endswith(_COUNTER)
    ]
    extra = [name for name in state if name not in known and not ignored(name)]
    if missing or extra:
        raise CheckpointError(_difference(missing, extra, known), source=path, expected=f"the tensors of the {kind} layout")
    ours: dict[str, Tensor] = {}
    for name, entry in entries.items():
        if name.endswith(_COUNTER):
            ours[name] = finish(name, state.get(entry.theirs[0], torch.zeros((), dtype=torch.int64)).reshape(()))
            continue
        wanted = _their_shapes(entry, shapes[name])
        for theirs, shape in zip(entry.theirs, wanted, strict=True):
            found = tuple(state[theirs].shape)
            if found != shape and not (shapes[name] == () and state[theirs].numel() == 1):
                raise CheckpointError(
                    f"the tensor {theirs!r} has the shape {found}",
                    source=path,
                    expected=f"{shape} for this architecture ({kind} layout)",
                )
            if not state[theirs].is_floating_point():
                raise CheckpointError(
                    f"the tensor {theirs!r} holds {state[theirs].dtype}", source=path, expected="floating-point numbers"
                )
        ours[name] = finish(name, entry.read([state[theirs] for theirs in entry.theirs]))
    return ours


def to_theirs(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Our state dict under the names of a layout, each tensor contiguous and on its own."""
    theirs: dict[str, Tensor] = {}
    for name, tensor in state.items():
        entry = layout(name)
        for other, part in zip(entry.theirs, entry.write(tensor), strict=True):
            theirs[other] = part.contiguous()
    return theirs


def ignored(name: str) -> bool:
    """Whether an entry of a state dict carries nothing."""
    return bool(_IGNORED.search(name))


def need(state: Mapping[str, Tensor], name: str, path: Path, kind: str, dims: int | None = None) -> Tensor:
    """The tensor that the architecture is read from.

    Raises:
        CheckpointError: if it is missing, naming the nearest name that is there, or has another number of dimensions.
    """
    if name not in state:
        raise CheckpointError(
            f"the tensor {name!r} is missing{_renamed(name, state)}", source=path, expected=f"the tensors of the {kind} layout"
        )
    if dims is not None and state[name].ndim != dims:
        raise CheckpointError(
            f"the tensor {name!r} has the shape {tuple(state[name].shape)}",
            source=path,
            expected=f"{dims} dimensions ({kind} layout)",
        )
    return state[name]


def count_layers(state: Iterable[str], pattern: str) -> int:
    """How many different numbers stand where `pattern` has its group."""
    expression = re.compile(pattern)
    return len({match[1] for name in state if (match := expression.match(name))})


def _their_shapes(entry: Entry, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [tuple(part.shape) for part in entry.write(torch.empty(shape, device="meta"))]


def _difference(missing: list[str], extra: list[str], known: Iterable[str]) -> str:
    parts = []
    if missing:
        parts.append(f"{_count(missing)} missing: {_first(missing)}{_renamed(missing[0], extra)}")
    if extra:
        text = f"{_count(extra)} unexpected: {_first(extra)}"
        if not missing:
            text += f" (nearest known: {nearest(extra[0], known, 1)[0]!r})"
        parts.append(text)
    return ", ".join(parts)


def _count(names: list[str]) -> str:
    return "1 tensor is" if len(names) == 1 else f"{len(names)} tensors are"


def _first(names: list[str], count: int = 3) -> str:
    return ", ".join(repr(name) for name in names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def _renamed(name: str, candidates: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(candidates), n=1)
    return f" (nearest in the file: {close[0]!r})" if close else ""
