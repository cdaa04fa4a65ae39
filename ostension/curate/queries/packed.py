"""Packed files (gzip, bzip2, xz, Zstandard) as streams of bytes, told by their first bytes, not by their names."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from pathlib import Path
from typing import IO, Any

from ostension.errors import DataError, require_extra

MAX_LINE = 64_000_000  # bytes of a single text
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def is_packed(path: Path) -> bool:
    """Whether a file is packed in a way that can be read here.

    Raises:
        DataError: if it cannot be read.
    """
    return _kind(path) is not None


def unpacked(path: Path) -> IO[bytes]:
    """The bytes of a file, unpacked while they are read; torn files end in a `DataError` that names them."""
    return io.BufferedReader(_Guarded(path), 1 << 20)  # type: ignore[return-value,type-var]


def _kind(path: Path) -> str | None:
    try:
        with open(path, "rb") as handle:
            head = handle.read(8)
    except OSError as error:
        raise DataError(f"cannot be read: {(error.strerror or '').lower()}", source=path) from None
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)


def _opened(path: Path) -> Any:
    kind = _kind(path)
    if kind == "gzip":
        return gzip.open(path)
    if kind == "bzip2":
        return bz2.open(path)
    if kind == "xz":
        return lzma.open(path)
    if kind == "zstd":
        return require_extra("pyarrow", "curate").input_stream(str(path), compression="zstd")
    return open(path, "rb")


class _Guarded(io.RawIOBase):
    """A stream whose failures say which file is broken."""

    def __init__(self, path: Path):
        self._path, self._stream = path, _opened(path)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
            line = str(error).split("\n", 1)[0]
            raise DataError(f"torn or damaged: {line}", source=self._path, fix="fetch it again") from None
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()
