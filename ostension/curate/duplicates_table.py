"""What is known of all candidates, in files: one pass over the parts writes them, and searches map one column at a time.

Candidates are numbered as they come; `ids` says which they are. A column is a file of plain numbers, so that what does not
take part in a search takes no memory. A detector's rows are a set of a store (`store`), whose column `place` says whose
they are. Captions are there only where those of copies are to be kept.

Letters: N candidates, E numbers a row.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ostension.errors import DataError

if TYPE_CHECKING:
    from ostension.curate.base import Part
    from ostension.store import EmbeddingSet

COLUMNS: dict[str, np.dtype] = {
    "id": np.dtype("<i8"), "seen": np.dtype("u1"), "digest": np.dtype("<u8"), "pixels": np.dtype("<u8"),
    "hash": np.dtype("<u8"), "caption": np.dtype("<u8"), "address": np.dtype("<u8"), "area": np.dtype("<i8"),
    "length": np.dtype("<i4"), "score": np.dtype("<f8"),
}  # fmt: skip
ROWS, TEXTS, STARTS = "rows", "texts.jsonl", "texts-start"


class Table:
    """The columns in a folder, each (N,) and mapped into memory when it is asked for."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __len__(self) -> int:
        return len(self["id"])

    def __getitem__(self, name: str) -> np.ndarray:
        return mapped(self.folder / name, COLUMNS[name])

    def rows(self) -> EmbeddingSet | None:
        """The detector's rows, or None if there are none."""
        from ostension.store import Store

        store = Store(self.folder / ROWS)
        keys = list(store.keys().values())
        return store.open(keys[0]) if keys else None

    def captions(self, places: Sequence[int]) -> list[list[str]]:
        """The captions of some candidates."""
        starts = mapped(self.folder / STARTS, np.dtype("<i8"))
        found = []
        with open(self.folder / TEXTS, "rb") as handle:
            for place in places:
                handle.seek(int(starts[place]))
                found.append(json.loads(handle.readline()))
        return found


def mapped(path: Path, kind: np.dtype) -> np.ndarray:
    """A file of plain numbers; nothing can be mapped of an empty one."""
    if not path.is_file():
        raise DataError("is missing", source=path, fix="remove the stage's folder and run it again")
    return np.memmap(path, kind, mode="r") if path.stat().st_size else np.zeros(0, kind)


def gather(parts: Iterable[tuple[Part, Any]], folder: Path, detector: str | None, *, texts: bool) -> Table:
    """The table of all candidates in `folder`, which is made anew.

    Args:
        parts: with what was found of each (pyarrow tables).
        detector: the hash of its weights, if there are rows.
        texts: keep the captions.
    """
    from ostension.store import SetKey, Store

    shutil.rmtree(folder, ignore_errors=True)  # of a pass that was stopped
    folder.mkdir(parents=True)
    count = 0
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(open(folder / name, "wb")) for name in COLUMNS}
        captions = stack.enter_context(_Captions(folder)) if texts else None
        rows = None
        if detector is not None:
            key = SetKey(kind="images", weights=detector, inputs={}, data=str(folder.parent.name))
            rows = stack.enter_context(Store(folder / ROWS).writer(key))
        for part, found in parts:
            for name, kind in COLUMNS.items():
                values = part.ids() if name == "id" else found[name].to_numpy()
                files[name].write(np.ascontiguousarray(values, dtype=kind).tobytes())
            if captions is not None:
                captions.add(part.texts)
            if rows is not None:
                made = unpacked(found["row_of_detector"])
                good = np.flatnonzero(made.any(axis=1))
                if len(good):
                    rows.append(made[good], place=count + good)
            count += len(part)
    return Table(folder)


def packed(rows: np.ndarray) -> Any:
    """Rows (n, E) of float16 as a column of bytes."""
    import pyarrow as pa

    made = np.ascontiguousarray(rows, dtype="<f2")
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(2 * made.shape[1]), len(made), [None, pa.py_buffer(made.tobytes())])


def unpacked(column: Any) -> np.ndarray:
    """Rows (n, E) of a column that `packed` made."""
    joined = b"".join(column.to_pylist())
    return np.frombuffer(joined, "<f2").reshape(len(column), column.type.byte_width // 2)


class _Captions:
    """A file with the captions of a candidate a line, and where each line begins."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._at = 0

    def __enter__(self) -> _Captions:
        self._lines: BinaryIO = open(self._folder / TEXTS, "wb")
        self._starts: BinaryIO = open(self._folder / STARTS, "wb")
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._starts.close()

    def add(self, texts: Iterable[Sequence[str]]) -> None:
        lines = [json.dumps(list(found)).encode() + b"\n" for found in texts]
        lengths = np.array([len(line) for line in lines], dtype=np.int64)
        self._starts.write((self._at + np.cumsum(lengths) - lengths).astype("<i8").tobytes())
        self._lines.write(b"".join(lines))
        self._at += int(lengths.sum())


def chunks(total: int, size: int = 2**20) -> Iterator[slice]:
    """Slices that cover `total` places."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
