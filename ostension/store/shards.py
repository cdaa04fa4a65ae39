"""One shard: a matrix of rows in an `.npy` file and what is known of each row in an `.arrays` file beside it.

The matrix is raw little-endian float16 or float32 after numpy's short header, so everything reads it. The sidecar holds
columns of texts (their UTF-8 bytes, and where each ends) and of whole numbers, and is read through a memory map too.

Letters: n rows of a shard, E embedding.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ostension.data.arrays import MappedArrays, joined_texts, text_at, write_arrays
from ostension.errors import DataError
from ostension.files import atomic_path, sha256_file

KIND = "store rows 1"
ROWS, SIDECAR = ".npy", ".arrays"
Column = Sequence[str] | np.ndarray
Reject = tuple[str, str] | tuple[str, str, int]
_NAME = re.compile(r"[a-z][a-z0-9_]*")
UNIT = 1e-5  # float32 rows that were scaled to unit length are off by less
HALF_UNIT = 1e-3  # float16 numbers are off by 2^-11 of themselves at most, and so is the length of a row of them
SPAN = 4096  # rows that are checked in float64 at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """A shard as the manifest names it."""

    name: str
    rows: int
    rows_bytes: int
    rows_sha256: str
    sidecar_bytes: int
    sidecar_sha256: str
    rejects: int = 0


def checked_rows(
    rows: Any, *, width: int | None, stored: str, unit: bool, source: object, names: Sequence[str] | None = None
) -> np.ndarray:
    """(n, E) rows as they are stored: contiguous, little-endian, in the dtype of the set.

    float16, bfloat16, float32 and float64 are taken and rounded to the set's dtype; any layout in memory is taken. With
    `unit`, rows that are not of unit length are scaled to it, in float64 before rounding; float16 rows that are as long as
    rounding leaves them stay as they are in a float16 set, so that a stored row can be stored again.

    Raises:
        DataError: for another shape or width, numbers that are not floating point, NaN, infinity, a row of zeros, and
            numbers past the range of float16; names the row.
    """

    def refuse(bad: Any, start: int, what: str) -> None:
        if bad.any():
            row = start + int(bad.argmax())
            name = f" ({names[row]})" if names is not None and row < len(names) else ""
            raise DataError(f"row {row}{name} {what}", source=source, expected="finite rows with a direction")

    if hasattr(rows, "detach"):
        tensor = rows.detach().cpu()
        rows = (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
    rows = np.asarray(rows)
    if rows.ndim != 2 or rows.shape[1] == 0 or (width is not None and rows.shape[1] != width):
        expected = f"(n, {width})" if width is not None else "(n, E)"
        raise DataError(f"rows of shape {rows.shape}", source=source, expected=expected)
    if rows.dtype.kind != "f":
        raise DataError(f"rows of type {rows.dtype}", source=source, expected="floating point")
    out = np.empty(rows.shape, dtype=np.dtype(stored).newbyteorder("<"))
    tolerance = HALF_UNIT if stored == "float16" and rows.dtype == np.float16 else UNIT
    for start in range(0, len(rows), SPAN):
        part = rows[start : start + SPAN].astype(np.float64)
        refuse(np.logical_not(np.isfinite(part).all(axis=1)), start, "has a number that is not finite")
        length = np.sqrt((part * part).sum(axis=1))
        refuse(length == 0, start, "is all zeros, which has no direction")
        if unit:
            off = np.abs(length - 1) > tolerance
            part[off] /= length[off, None]
        with np.errstate(over="ignore"):
            out[start : start + SPAN] = part
        refuse(~np.isfinite(out[start : start + SPAN]).all(axis=1), start, f"has a number past the range of {stored}")
    return out


def checked_columns(columns: Mapping[str, Column], count: int, source: object) -> dict[str, Column]:
    """Columns as they are stored: lists of texts, or int64 or uint64.

    Raises:
        DataError: for a column of another length or type, or a name that is none.
    """
    found: dict[str, Column] = {}
    for name, values in columns.items():
        if not _NAME.fullmatch(name):
            raise DataError(f"a column called {name!r}", source=source, expected="lower-case letters, digits and _")
        if len(values) != count:
            raise DataError(f"column {name!r} has {len(values)} values", source=source, expected=f"{count}, one a row")
        if isinstance(values, np.ndarray) and values.dtype.kind in "iu":
            found[name] = values.astype(np.uint64 if values.dtype == np.uint64 else np.int64)
        elif all(isinstance(value, str) for value in values):
            found[name] = [str(value) for value in values]
        else:
            what = f"column {name!r} is of another type"
            raise DataError(what, source=source, expected="texts, or whole numbers in an array")
    return found


def write_shard(
    folder: Path, name: str, rows: np.ndarray, columns: Mapping[str, Column], rejects: Sequence[Reject] = ()
) -> Shard:
    """Write a shard's two files, each whole or not at all; nothing knows of them before the manifest does.

    A reject is a sample's key, the reason, and, where it was read, the digest of its bytes.

    Raises:
        DataError: if the disk does not take them.
    """
    arrays: dict[str, np.ndarray] = {}
    for column, values in columns.items():
        if isinstance(values, np.ndarray):
            arrays[column] = values
        else:
            arrays[f"{column}.letters"], arrays[f"{column}.ends"] = joined_texts(values)
    from safetensors import SafetensorError

    matrix, sidecar = folder / (name + ROWS), folder / (name + SIDECAR)
    try:
        with atomic_path(matrix) as temporary, open(temporary, "wb") as handle:
            np.save(handle, rows)
        write_arrays(sidecar, KIND, arrays, {"rows": len(rows), "rejects": [list(reject) for reject in rejects]})
        return Shard(
            name=name,
            rows=len(rows),
            rows_bytes=matrix.stat().st_size,
            rows_sha256=sha256_file(matrix),
            sidecar_bytes=sidecar.stat().st_size,
            sidecar_sha256=sha256_file(sidecar),
            rejects=len(rejects),
        )
    except (OSError, SafetensorError) as error:  # safetensors has a name of its own for a full disk
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(f"cannot be written: {why}", source=folder, fix="make room, then run it again") from None


def open_rows(folder: Path, shard: Shard, width: int, stored: str) -> np.ndarray:
    """The (n, E) matrix of a shard, mapped into memory.

    Raises:
        DataError: if the file is missing, damaged, or of another shape than the manifest says.
    """
    path = folder / (shard.name + ROWS)
    _check_size(path, shard.rows_bytes)
    if shard.rows == 0:  # nothing cannot be mapped
        return np.zeros((0, width), np.dtype(stored).newbyteorder("<"))
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot be read as a matrix ({error})", source=path) from None
    if rows.shape != (shard.rows, width) or rows.dtype != np.dtype(stored).newbyteorder("<"):
        what = f"rows of shape {rows.shape} and type {rows.dtype}"
        raise DataError(what, source=path, expected=f"{(shard.rows, width)} and {stored}")
    return np.asarray(rows)  # a plain view of the map: slices of a memmap are slow to make


class Sidecar:
    """What is known of each row of a shard.

    Raises:
        DataError: if the file is missing, damaged, or of another count than the manifest says.
    """

    def __init__(self, folder: Path, shard: Shard):
        path = folder / (shard.name + SIDECAR)
        _check_size(path, shard.sidecar_bytes)
        self._arrays = MappedArrays(path, KIND)
        if self._arrays.facts.get("rows") != shard.rows:
            raise DataError(f"{self._arrays.facts.get('rows')} rows", source=path, expected=f"{shard.rows} by the manifest")
        self.rejects: list[tuple[str, str, int]] = []
        for key, reason, *digest in self._arrays.facts["rejects"]:
            self.rejects.append((str(key), str(reason), int(digest[0]) if digest else 0))

    def column(self, name: str, rows: Sequence[int]) -> list[str] | np.ndarray:
        """Values of some rows; raises a `KeyError` for a column that is not there."""
        try:
            letters, ends = self._arrays[f"{name}.letters"], self._arrays[f"{name}.ends"]
        except KeyError:
            return np.array(self._arrays[name][np.asarray(rows, dtype=np.int64)])
        return [text_at(letters, ends, int(row)) for row in rows]


def _check_size(path: Path, size: int) -> None:
    try:
        found = os.stat(path).st_size
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", source=path, fix="open the set again") from None
    if found != size:
        raise DataError(f"has {found} bytes", source=path, expected=f"{size} by the manifest")
