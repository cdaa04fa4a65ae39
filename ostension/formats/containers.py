"""What a weight file is, by its first bytes, and the tensors in it. No reader here runs code from a file.

Containers: "safetensors"; "torchscript" (OpenAI's archives, through the restricted reader of `torchscript`); "torch_zip"
and "torch_pickle" (`torch.save`, only with `weights_only=True`); "npz" (big_vision). Tensors are memory-mapped where the
container allows it, so reading costs nothing until a tensor is used.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ostension.errors import CheckpointError

Container = Literal["safetensors", "torchscript", "torch_zip", "torch_pickle", "npz"]
CONTAINERS = "safetensors, a torch.save file, an OpenAI TorchScript archive or a big_vision npz"
# The limit that the safetensors library itself sets; a larger header is an attack or another kind of file.
MAX_HEADER_BYTES = 100_000_000
_LFS = b"version https://git-lfs.github.com/spec/"
_MARKUP = (b"<!doctype", b"<html", b"<?xml", b"<head")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Content:
    """What a weight file holds.

    Attributes:
        tree: tensors by name, or the nested dicts of a training checkpoint that `unwrap` takes apart.
        evidence: facts about the model that only the container tells, e.g. the class of an activation module.
    """

    path: Path
    container: Container
    tree: Mapping[str, Any]
    evidence: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def identify(path: Path) -> Container:
    """The container of a file.

    Raises:
        CheckpointError: if it is missing, empty, a folder, a Git LFS pointer, a web page, cut short or of no known kind.
    """
    if path.is_dir():
        raise CheckpointError("is a folder", source=path, expected="a weight file")
    try:
        size = path.stat().st_size
        with open(path, "rb") as handle:
            head = handle.read(512)
    except FileNotFoundError:
        raise CheckpointError("no such file", source=path, expected="a weight file") from None
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", source=path) from None
    if not head:
        raise CheckpointError("is empty", source=path, expected=CONTAINERS, fix="copy or download it again")
    if head.startswith(_LFS):
        raise CheckpointError(_lfs_text(head), source=path, fix="run: git lfs pull")
    if head.lstrip().lower().startswith(_MARKUP):
        raise CheckpointError(
            "is a web page, not weights",
            source=path,
            expected=CONTAINERS,
            fix="the download gave an error page: download it again",
        )
    if head.startswith(b"PK\x03\x04"):
        return _identify_zip(path)
    if head[0] == 0x80 and len(head) > 1 and 2 <= head[1] <= 5:
        return "torch_pickle"
    if head[8:9] == b"{":
        _check_header(path, int.from_bytes(head[:8], "little"), size)
        return "safetensors"
    raise CheckpointError(f"of no known kind (it begins with {head[:12]!r}, {size} bytes)", source=path, expected=CONTAINERS)


def read(path: Path) -> Content:
    """The tensors of a file and what its container tells about the model.

    Raises:
        CheckpointError: for a file that `identify` refuses, that is damaged, or that wants to run code.
    """
    container = identify(path)
    if container == "safetensors":
        return _read_safetensors(path)
    if container == "torchscript":
        from ostension.formats.torchscript import read_archive

        tensors, evidence = read_archive(path)
        return Content(path=path, container=container, tree=tensors, evidence=evidence)
    if container == "npz":
        return Content(path=path, container=container, tree=_read_npz(path))
    return Content(path=path, container=container, tree=_read_torch(path, container))


def _identify_zip(path: Path) -> Container:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise _cut_short(path, "the zip archive has no readable directory") from None
    roots = {name.split("/", 1)[0] for name in names}
    rest = {name.split("/", 1)[1] for name in names if "/" in name}
    if len(roots) == 1 and "constants.pkl" in rest and any(name.startswith("code/") for name in rest):
        return "torchscript"
    if len(roots) == 1 and "data.pkl" in rest:
        return "torch_zip"
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    shown = ", ".join(sorted(names)[:3]) or "nothing"
    raise CheckpointError(f"a zip archive of no known kind (it holds {shown})", source=path, expected=CONTAINERS)


def _check_header(path: Path, length: int, size: int) -> None:
    """Look at what safetensors would refuse too, to say it in words."""
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"the safetensors header claims {length} bytes", source=path, expected=f"at most {MAX_HEADER_BYTES}"
        )
    if 8 + length > size:
        raise _cut_short(path, f"the safetensors header claims {length} bytes of a file of {size}")
    with open(path, "rb") as handle:
        handle.seek(8)
        header = handle.read(length)
    try:
        entries = json.loads(header)
        end = max((entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, AttributeError):
        raise CheckpointError(
            "the safetensors header is not readable JSON", source=path, fix="copy or download it again"
        ) from None
    if not isinstance(end, int) or 8 + length + end > size:
        raise _cut_short(path, f"its tensors end at byte {8 + length + end} and the file at {size}")
    if 8 + length + end < size:
        raise CheckpointError(
            f"{size - 8 - length - end} bytes follow the last tensor", source=path, fix="copy or download it again"
        )


def _read_safetensors(path: Path) -> Content:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as handle:
            # Each tensor is a view of the mapped file: pages are read on first use and can be dropped again.
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a mapping
            metadata = handle.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"not a sound safetensors file ({error})", source=path, fix="copy or download it again") from None
    return Content(path=path, container="safetensors", tree=tensors, evidence={"metadata": metadata})


def _read_torch(path: Path, container: Container) -> Mapping[str, Any]:
    try:
        # Old files make torch warn about itself, damaged ones about anything.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = torch.load(path, map_location="cpu", weights_only=True, mmap=container == "torch_zip")
    except pickle.UnpicklingError as error:
        raise CheckpointError(_pickle_text(str(error)), source=path, fix=_RESAVE) from None
    except (
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        IndexError,
        AttributeError,
        TypeError,
        AssertionError,
    ) as error:
        first = str(error).split("\n", 1)[0] or type(error).__name__
        raise _cut_short(path, f"torch cannot read it ({first})") from None
    if not isinstance(tree, Mapping):
        raise CheckpointError(f"holds a {type(tree).__name__}", source=path, expected="a dict of tensors by name")
    return tree


_RESAVE = "save the state dict alone, as safetensors, where the file was made"


def _pickle_text(message: str) -> str:
    found = re.search(r"GLOBAL (\S+)", message) or re.search(r"[Uu]nsupported (?:global|class)[: ]+(\S+)", message)
    if found:
        return f"the pickle wants to run or build {found[1]!r}, which is refused because that can execute code"
    return "the pickle holds more than tensors, which is refused because that can execute code (or it is damaged)"


def _read_npz(path: Path) -> dict[str, Tensor]:
    import numpy

    try:
        with numpy.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise CheckpointError(f"not a sound npz file ({error})", source=path, fix="copy or download it again") from None
    wrong = [name for name, array in arrays.items() if array.dtype.kind not in "fiu"]
    if wrong:
        raise CheckpointError(f"the array {wrong[0]!r} has the type {arrays[wrong[0]].dtype}", source=path, expected="numbers")
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _cut_short(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"is cut short or damaged: {why}", source=path, fix="copy or download it again")


def _lfs_text(head: bytes) -> str:
    size = re.search(rb"^size (\d+)$", head, re.MULTILINE)
    return "is a Git LFS pointer, not the weights" + (f" (those have {int(size[1])} bytes)" if size else "")
