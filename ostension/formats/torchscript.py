"""Tensors of an OpenAI TorchScript archive, without running the program that it also holds.

The archive is a zip of stored (uncompressed) records: `<root>/data.pkl` describes a tree of objects, `<root>/data/<key>`
are the raw storages. The pickle is read by an unpickler that builds an ordered dict, tensors over those storages and
inert stand-ins for every class; any other name stops it. Attribute paths in the tree are the names of the state dict.
`code/` is never opened.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import pickletools
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ostension.errors import CheckpointError

# OpenAI's archives describe some 500 tensors in well under a megabyte.
MAX_PICKLE_BYTES = 64_000_000
# A module tree of ours has some thousand nodes a few levels deep; an attack repeats or nests one without end.
MAX_DEPTH = 64
MAX_NODES = 100_000
_STORAGE_TYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_TYPED_LISTS = {"build_intlist", "build_doublelist", "build_boollist", "build_tensorlist"}


# What a damaged description can make the unpickler raise.
DAMAGE = (
    zipfile.BadZipFile, OSError, EOFError, pickle.UnpicklingError, ValueError, KeyError, IndexError, TypeError,
    AttributeError, struct.error, RecursionError, UnicodeDecodeError, OverflowError, NotImplementedError,
)


class Inert:
    """A stand-in for a TorchScript object: its class name and its attributes, nothing that runs."""

    class_name = ""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update((key, value) for key, value in state.items() if isinstance(key, str))


def read_archive(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors of the archive by attribute path, memory-mapped, and the classes of its activation modules.

    Raises:
        CheckpointError: if a record is missing, compressed, cut short or fails its checksum, or if the pickle asks for
            anything but tensors and plain objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = _Records(path, archive)
            pickled = records.text("data.pkl")
            root = _Unpickler(io.BytesIO(pickled), records).load()
    except CheckpointError:
        raise
    except DAMAGE as error:
        first = str(error).split("\n", 1)[0] or type(error).__name__
        raise CheckpointError(
            f"not a sound TorchScript archive ({first})", source=path, fix="copy or download it again"
        ) from None
    if not isinstance(root, Inert):
        raise CheckpointError(f"the archive holds a {type(root).__name__}", source=path, expected="a module")
    tensors: dict[str, Tensor] = {}
    classes: dict[str, str] = {}
    _walk(root, "", tensors, classes, path, [0])
    return tensors, {"classes": classes, "root_class": type(root).class_name}


class _Records:
    """The records of one archive, their bytes mapped once."""

    def __init__(self, path: Path, archive: zipfile.ZipFile):
        self.path = path
        self.entries = {info.filename: info for info in archive.infolist()}
        self.root = next(iter(self.entries)).split("/", 1)[0]
        size = path.stat().st_size
        # Private mapping: pages come from the file on first use, and writing to a tensor never changes the file.
        self.bytes = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
        self.storages: dict[str, Tensor] = {}

    def record(self, name: str) -> Tensor:
        """The bytes of `<root>/name`, checked against the archive's own checksum."""
        info = self.entries.get(f"{self.root}/{name}")
        if info is None:
            raise self.damaged(f"the record {name!r} is missing")
        if info.compress_type != zipfile.ZIP_STORED:
            raise self.damaged(f"the record {name!r} is compressed, which TorchScript never does")
        header = self.bytes[info.header_offset : info.header_offset + 30].numpy().tobytes()
        if header[:4] != b"PK\x03\x04":
            raise self.damaged(f"the record {name!r} has no header")
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        start = info.header_offset + 30 + name_length + extra_length
        if start + info.file_size > len(self.bytes):
            raise self.damaged(f"the record {name!r} goes past the end of the file")
        data = self.bytes[start : start + info.file_size]
        if zlib.crc32(data.numpy().data) != info.CRC:
            raise self.damaged(f"the record {name!r} fails its checksum")
        return data

    def text(self, name: str) -> bytes:
        info = self.entries.get(f"{self.root}/{name}")
        if info is not None and info.file_size > MAX_PICKLE_BYTES:
            raise CheckpointError(
                f"its {name} has {info.file_size} bytes", source=self.path, expected=f"at most {MAX_PICKLE_BYTES}"
            )
        return self.record(name).numpy().tobytes()

    def storage(self, dtype: torch.dtype, key: str, count: int) -> Tensor:
        """A flat tensor over the storage `key`."""
        if key not in self.storages:
            data = self.record(f"data/{key}")
            size = dtype.itemsize
            if len(data) < count * size or count < 0:
                raise self.damaged(f"the storage {key!r} holds {len(data)} bytes for {count} values of {dtype}")
            data = data[: count * size]
            # Records are aligned by the writer; one that is not is copied, because a view would be misaligned.
            if data.storage_offset() % size:
                data = data.clone()
            self.storages[key] = data.view(dtype)
        return self.storages[key]

    def damaged(self, why: str) -> CheckpointError:
        return CheckpointError(f"not a sound TorchScript archive: {why}", source=self.path, fix="copy or download it again")


# The C unpickler reserves memory for whatever memo index the file names; the Python one keeps a dict.
class _Unpickler(pickle._Unpickler):  # type: ignore[misc, name-defined]
    """Reads tensors and inert objects; refuses every other name."""

    # TorchScript writes protocol 2. Later protocols add nothing that it needs, and BYTEARRAY8 reserves as much memory as
    # the file says before it looks whether so many bytes follow.
    dispatch: ClassVar[dict[int, Any]] = {
        ord(opcode.code): pickle._Unpickler.dispatch[ord(opcode.code)]  # type: ignore[attr-defined]
        for opcode in pickletools.opcodes
        if opcode.proto <= 2
    }

    def __init__(self, handle: io.BytesIO, records: _Records):
        super().__init__(handle)
        self.records = records

    def find_class(self, module: str, name: str) -> Any:
        if module == "collections" and name == "OrderedDict":
            return collections.OrderedDict
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return _Rebuild(self.records)
        if module == "torch._utils" and name == "_rebuild_parameter":
            return lambda tensor, requires_grad, hooks: tensor
        if module in ("torch", "torch.cuda") and name in _STORAGE_TYPES:
            return _STORAGE_TYPES[name]
        if module == "torch.jit._pickle" and name in _TYPED_LISTS:
            return list
        if module == "torch.jit._pickle" and name == "restore_type_tag":
            return lambda value, tag: value
        if module.split(".", 1)[0] == "__torch__":
            return type("Inert", (Inert,), {"class_name": f"{module}.{name}"})
        raise CheckpointError(
            f"the pickle wants to run or build '{module}.{name}', which is refused because that can execute code",
            source=self.records.path,
            fix="use a file from a source you trust",
        )

    def persistent_load(self, pid: Any) -> Tensor:
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage" and isinstance(pid[1], torch.dtype)):
            raise self.records.damaged("a storage is described in an unknown way")
        _, dtype, key, _, count = pid
        return self.records.storage(dtype, str(key), int(count))


class _Rebuild:
    """A tensor over part of a storage, with its bounds checked."""

    def __init__(self, records: _Records):
        self.records = records

    def __call__(self, storage: Tensor, offset: int, size: tuple, stride: tuple, *unused: Any) -> Tensor:
        numbers = [offset, *size, *stride]
        if len(size) != len(stride) or not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise self.records.damaged("a tensor's shape is not made of counts")
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if math.prod(size) and last >= len(storage):
            raise self.records.damaged(f"a tensor of shape {tuple(size)} goes past its storage of {len(storage)} values")
        return torch.as_strided(storage, tuple(size), tuple(stride), storage.storage_offset() + offset)


def _walk(
    node: Inert, prefix: str, tensors: dict[str, Tensor], classes: dict[str, str], path: Path, visited: list[int]
) -> None:
    visited[0] += 1
    depth = prefix.count(".")
    if depth > MAX_DEPTH or visited[0] > MAX_NODES:
        raise CheckpointError("the archive's modules are nested or repeated without end", source=path)
    for name, value in node.__dict__.items():
        if isinstance(value, Tensor):
            tensors[prefix + name] = value
        elif isinstance(value, Inert):
            if name in ("gelu", "act", "activation"):
                classes[prefix + name] = type(value).class_name
            _walk(value, f"{prefix}{name}.", tensors, classes, path, visited)
        elif depth == 0 and isinstance(value, int) and not isinstance(value, bool):
            # OpenAI's three integers (input_resolution, context_length, vocab_size) may be plain numbers.
            tensors[name] = torch.tensor(value)
