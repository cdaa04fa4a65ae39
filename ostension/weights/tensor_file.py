"""A safetensors file that is read in parts, with `pread` into a buffer, and summed while it is read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ostension.errors import CheckpointError
from ostension.formats import containers
from ostension.formats.quick_sum import QuickSum

# safetensors' names of types; what is not here is refused.
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class TensorFile:
    """A safetensors file whose tensors are read in parts.

    Attributes:
        dtypes, shapes: by name.
        metadata: the texts of the header.
    """

    def __init__(self, path: Path):
        if containers.identify(path) != "safetensors":  # looks at the header and the size, too
            raise CheckpointError("is no safetensors file", source=path)
        self.path = path
        with open(path, "rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(length))
        self.metadata: dict[str, str] = header.pop("__metadata__", {})
        self.dtypes: dict[str, torch.dtype] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._offsets: dict[str, int] = {}
        for name, entry in header.items():
            kind, shape, (start, end) = entry.get("dtype"), tuple(entry.get("shape", ())), entry["data_offsets"]
            if kind not in DTYPES:
                raise CheckpointError(f"the tensor {name!r} holds {kind}", source=path, expected=", ".join(DTYPES))
            if end - start != torch.Size(shape).numel() * DTYPES[kind].itemsize:
                raise CheckpointError(f"the tensor {name!r} is of another size than its shape", source=path)
            self.dtypes[name], self.shapes[name], self._offsets[name] = DTYPES[kind], shape, 8 + length + start
        self._buffer = bytearray()
        self._sum: QuickSum | None = None
        self._next = 8 + length
        self._file = open(path, "rb", buffering=0)  # closed by `close`

    def follow(self) -> None:
        """Sum what is read from here on, as long as it is the file from front to back; `followed` gives the sum."""
        self._sum = QuickSum()
        self._sum.update(os.pread(self._file.fileno(), self._next, 0))

    def followed(self) -> str | None:
        """The quick sum of the file, if all of it was read, in order; None otherwise."""
        whole = self._sum is not None and self._next == os.fstat(self._file.fileno()).st_size
        return self._sum.value() if whole and self._sum is not None else None

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements `start` to `stop` of a flattened tensor, valid until the next call.

        Raises:
            CheckpointError: if the file has become shorter since it was opened, or cannot be read.
        """
        dtype = self.dtypes[name]
        size, offset = (stop - start) * dtype.itemsize, self._offsets[name] + start * dtype.itemsize
        if not size:
            return torch.empty(0, dtype=dtype)
        shift = word_shift(offset, dtype)
        if len(self._buffer) < size + 8:
            self._buffer = bytearray(size + 8)
        view = memoryview(self._buffer)[shift : shift + size]
        done = 0
        while done < size:
            try:
                count = os.preadv(self._file.fileno(), [view[done:]], offset + done)
            except OSError as error:
                raise CheckpointError(f"cannot be read: {error.strerror}", source=self.path) from None
            if count == 0:
                raise CheckpointError(f"ends in the middle of the tensor {name!r}", source=self.path, fix="copy it again")
            done += count
        if self._sum is not None and offset == self._next:
            self._sum.update(view)
            self._next += size
        return torch.frombuffer(self._buffer, dtype=dtype, count=stop - start, offset=shift)

    def replace(self, tensors: Mapping[str, Tensor]) -> None:
        """Write other numbers in the place of some tensors', in the types that the file has them in."""
        with open(self.path, "r+b") as handle:
            for name, tensor in tensors.items():
                assert tuple(tensor.shape) == self.shapes[name]
                handle.seek(self._offsets[name])
                handle.write(tensor.to(self.dtypes[name]).contiguous().view(-1).view(torch.uint8).numpy().tobytes())

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()


def word_shift(place: int, dtype: torch.dtype) -> int:
    """How far from a multiple of 8 bytes elements from a place of a file should lie in memory.

    A file's words of 8 bytes, which `QuickSum` takes, are then the memory's; unless elements would lie across their places.
    """
    return place % 8 if place % dtype.itemsize == 0 else 0
