"""The state dict inside a training checkpoint: the right entry, without the prefixes that wrappers add."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ostension.errors import CheckpointError

# Where training code of the field keeps the weights, in the order in which we look. open_clip: "state_dict", with
# averaged weights in "state_dict_ema".
_WEIGHTS = ("state_dict", "model_state_dict", "model", "module")
_AVERAGED = ("state_dict_ema", "model_ema", "ema")
# DistributedDataParallel and torch.compile put their own name in front of every parameter.
_WRAPPER = "module."
_COMPILED = "_orig_mod."


def unwrap(tree: Mapping[str, Any], path: Path, *, ema: bool = False) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors by plain name, and notes on what was taken off or left out.

    Args:
        tree: what a container holds: tensors by name, or a checkpoint with the weights under one of its keys.
        ema: take the averaged weights of a checkpoint that has both.

    Raises:
        CheckpointError: if there are no weights, no averaged ones when asked for, or two names become one.
    """
    notes: list[str] = []
    state = _pick(tree, path, ema, notes)
    others = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(
            f"the entry {others[0]!r} is a {type(state[others[0]]).__name__}", source=path, expected="a tensor under every name"
        )
    if not state:
        raise CheckpointError("holds no tensors", source=path, expected="the weights of a model")
    names = list(state)
    plain = names
    while all(name.startswith(_WRAPPER) for name in plain):
        plain = [name.removeprefix(_WRAPPER) for name in plain]
    plain = [name.replace(_COMPILED, "") for name in plain]
    # A compiled model that was then wrapped has the names the other way round.
    while all(name.startswith(_WRAPPER) for name in plain):
        plain = [name.removeprefix(_WRAPPER) for name in plain]
    if plain != names:
        notes.append("took off the prefixes that DistributedDataParallel or torch.compile add")
    if len(set(plain)) != len(plain):
        twice = next(name for name in plain if plain.count(name) > 1)
        raise CheckpointError(f"two tensors are both called {twice!r} without their wrappers' prefixes", source=path)
    return dict(zip(plain, state.values(), strict=True)), notes


def _pick(tree: Mapping[str, Any], path: Path, ema: bool, notes: list[str]) -> Mapping[str, Any]:
    averaged = next((key for key in _AVERAGED if isinstance(tree.get(key), Mapping)), None)
    weights = next((key for key in _WEIGHTS if isinstance(tree.get(key), Mapping)), None)
    if ema:
        if averaged is None:
            raise CheckpointError(
                "has no averaged weights", source=path, expected=f"one of {', '.join(_AVERAGED)}", fix="leave out ema"
            )
        notes.append(f"took the averaged weights from {averaged!r}")
        return tree[averaged]
    if weights is not None:
        notes.append(f"took the weights from {weights!r}")
        if averaged is not None:
            notes.append(f"left the averaged weights in {averaged!r} (ema=True takes them)")
        return tree[weights]
    if averaged is not None and not any(isinstance(value, Tensor) for value in tree.values()):
        raise CheckpointError(f"holds only averaged weights ({averaged!r})", source=path, fix="ask for them: ema=True, --ema")
    return tree
