"""Arrays with a line for each pair (offsets, counts, names), in a file that is read through a memory map.

Such arrays can be larger than everything else that a process holds. They lie in a safetensors file in the cache folder (or
beside a shard), so that a second opening costs nothing, and processes that read them share the pages of one file: what is
sent to a worker is the path.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ostension.errors import DataError
from ostension.files import atomic_path, sha256_json

_ENTRY = "ostension_arrays"
_DTYPES = {"U8": "u1", "I32": "<i4", "I64": "<i8", "U64": "<u8"}


class MappedArrays:
    """Named arrays and JSON facts in one file; picklable as its path.

    Raises:
        DataError: if the file is torn, or is not of the kind asked for.
    """

    def __init__(self, path: Path, kind: str):
        self.path, self.kind = path, kind
        self._arrays, self.facts = _read(path, kind)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.kind)


def write_arrays(path: Path, kind: str, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Write arrays and facts atomically; the same ones give the same bytes."""
    from safetensors.numpy import save_file

    entry = json.dumps({"kind": kind, **facts}, sort_keys=True)  # one entry: the order of several is not fixed
    little = {name: np.ascontiguousarray(values, values.dtype.newbyteorder("<")) for name, values in arrays.items()}
    with atomic_path(path) as temporary:
        save_file(little, temporary, metadata={_ENTRY: entry})


def cached_arrays(kind: str, key: Any, make: Callable[[], tuple[Mapping[str, np.ndarray], Mapping[str, Any]]]) -> MappedArrays:
    """The arrays kept under `key` (a JSON tree that names the content they were made from), made if there are none yet.

    Raises:
        DataError: if the cache folder cannot be written.
    """
    path = cache_folder("arrays") / f"{sha256_json([kind, key])[:32]}.arrays"
    found = _kept(path, kind)
    if found is not None:
        return found
    with one_at_a_time(path.name):
        found = _kept(path, kind)
        if found is not None:
            return found
        arrays, facts = make()
        try:
            write_arrays(path, kind, arrays, facts)
        except OSError as error:
            raise cannot_write(path, error) from None
        return MappedArrays(path, kind)


def _kept(path: Path, kind: str) -> MappedArrays | None:
    """What the cache holds; a torn file in it is made again."""
    try:
        return MappedArrays(path, kind) if path.is_file() else None
    except DataError:
        return None


@contextlib.contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """While entered, no other process or thread of this machine makes what `name` stands for; where locks cannot be, nothing.

    The processes of a run open the same data at the same moment; the first makes the index, the others find it.
    """
    import fcntl

    with contextlib.ExitStack() as stack:
        try:
            cache_folder("locks").mkdir(parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context(open(cache_folder("locks") / name, "w")), fcntl.LOCK_EX)
        except OSError:
            pass
        yield


def cannot_write(path: Path, error: OSError) -> DataError:
    """The error for an index that can be kept nowhere."""
    fix = "name a folder in the variable OSTENSION_CACHE"
    return DataError(f"the index cannot be written ({error})", source=path, fix=fix)


def cache_folder(part: str) -> Path:
    """Where things that can be made again are kept: OSTENSION_CACHE, or `ostension` in the user's cache folder."""
    base = os.environ.get("OSTENSION_CACHE")
    if base:
        return Path(base) / part
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ostension" / part


def joined_texts(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Strings as their UTF-8 bytes, one after the other, and the end of each; see `text_at`."""
    encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
    return np.frombuffer(b"".join(encoded), dtype=np.uint8), np.cumsum([len(one) for one in encoded], dtype=np.int64)


def text_at(letters: np.ndarray, ends: np.ndarray, row: int) -> str:
    """String number `row` of `joined_texts`."""
    start = int(ends[row - 1]) if row else 0
    return bytes(letters[start : int(ends[row])]).decode("utf-8", "surrogateescape")


def _read(path: Path, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    fix = "delete it: it will be made again"
    try:
        with safe_open(path, framework="np") as handle:  # checks that the header covers the file without overlap
            facts = json.loads((handle.metadata() or {}).get(_ENTRY, "{}"))
        raw = np.memmap(path, dtype=np.uint8, mode="r")
        (length,) = struct.unpack("<Q", raw[:8].tobytes())
        header = json.loads(raw[8 : 8 + length].tobytes())
    except (SafetensorError, OSError, ValueError, struct.error) as error:
        raise DataError(f"cannot be read as an index ({error})", source=path, fix=fix) from None
    if not isinstance(facts, dict) or facts.pop("kind", None) != kind:
        raise DataError("an index of another kind or version", source=path, fix=fix)
    arrays = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        dtype = np.dtype(_DTYPES.get(entry["dtype"], "V"))
        if dtype.kind == "V":
            raise DataError(f"an index with numbers of type {entry['dtype']}", source=path, fix=fix)
        arrays[name] = raw[8 + length + start : 8 + length + end].view(dtype).reshape(entry["shape"])
    return arrays, facts
