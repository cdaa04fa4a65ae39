"""Tensors in the files of several processes, each with some rows of every tensor, and back from any of their rows."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from ostension.errors import CheckpointError
from ostension.train.rows import Rows
from ostension.world import World

SlicedRows = Mapping[str, Mapping[str, Rows]]  # by file and name, of tensors of which a process holds some rows only


def part_name(name: str, rank: int, size: int) -> str:
    """The file of the tensors `name`, or of one process's part of them."""
    return f"{name}.safetensors" if size == 1 else f"{name}.{rank:05d}-of-{size:05d}.safetensors"


def index_of(tensors: Mapping[str, Mapping[str, Tensor]], rows: SlicedRows, size: int) -> dict[str, Any]:
    """Which rows of every tensor are in which part: {file: {tensor: {"shape": [...], "parts": [[file, start, stop], ...]}}}.

    A tensor without rows is in the first part, as if it had one.
    """
    index: dict[str, Any] = {}
    for name, group in tensors.items():
        index[name] = {}
        for key, value in group.items():
            sliced = rows.get(name, {}).get(key)
            shape = list(value.shape) if sliced is None else [sliced.total, *value.shape[1:]]
            cuts = [Rows.of(shape[0] if shape else 1, rank, size) for rank in range(size)]
            parts = [[part_name(name, rank, size), cut.start, cut.stop] for rank, cut in enumerate(cuts) if len(cut)]
            index[name][key] = {"shape": shape, "parts": parts}
    return index


def own_rows(group: Mapping[str, Tensor], rows: Mapping[str, Rows], world: World) -> dict[str, Tensor]:
    """What this process writes: its slices as they are, of what all have an equal part."""
    own = {}
    for key, value in group.items():
        cut = rows.get(key) or Rows.of(len(value) if value.ndim else 1, world.rank, world.size)
        if len(cut):
            own[key] = value if key in rows or not value.ndim else value[cut.start : cut.stop]
    return own


class PartFiles:
    """The safetensors files of a checkpoint, each opened once."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack):
        self.folder, self._stack = folder, stack
        self._open: dict[str, Any] = {}

    def file(self, name: str) -> Any:
        if Path(name).name != name:
            raise CheckpointError(f"names the file {name!r} outside its folder", source=self.folder)
        if name not in self._open:
            self._open[name] = self._stack.enter_context(safetensors.safe_open(self.folder / name, framework="pt"))
        return self._open[name]

    def whole(self, name: str, rows: Mapping[str, Rows]) -> dict[str, Tensor]:
        """The tensors of a file that one process wrote."""
        file = self.file(f"{name}.safetensors")
        found = {}
        for key in file.keys():  # noqa: SIM118  # not a mapping
            cut = rows.get(key)
            found[key] = file.get_tensor(key) if cut is None else file.get_slice(key)[cut.start : cut.stop]
        return found

    def assembled(self, index: Mapping[str, Any], rows: Mapping[str, Rows]) -> dict[str, Tensor]:
        """The tensors that several processes wrote, put together from their rows."""
        found = {}
        for key, entry in index.items():
            shape, parts = entry["shape"], entry["parts"]
            if not shape:
                found[key] = self.file(parts[0][0]).get_tensor(key)
                continue
            start, stop = (0, shape[0]) if key not in rows else (rows[key].start, rows[key].stop)
            # From an empty range some file still has to say the dtype.
            pieces = [self.file(parts[0][0]).get_slice(key)[0:0]]
            at = start
            for name, first, last in sorted(parts, key=lambda part: part[1]):
                if first <= at < min(last, stop):
                    pieces.append(self.file(name).get_slice(key)[at - first : min(last, stop) - first])
                    at = min(last, stop)
            if at != stop or list(pieces[-1].shape[1:]) != shape[1:]:
                raise CheckpointError(f"the rows of {key!r} are not complete", source=self.folder)
            found[key] = torch.cat(pieces)
        return found
