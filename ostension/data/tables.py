"""Pairs from tables (CSV, TSV) of image paths and captions.

Of a table only the place of each row is kept, in a file that is read through a memory map (see `arrays`); a row is read
again when it is asked for. So a worker adds nothing for each pair, however many there are.
"""

from __future__ import annotations

import array
import csv
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ostension.config import to_tree
from ostension.data.arrays import MappedArrays, cached_arrays
from ostension.data.layout import USUAL, Layout, captions_of
from ostension.data.pairs import MAX_IMAGE_BYTES, MAX_TEXT_BYTES, Pair, Summary, check_index, image_digest, read_image, size_of
from ostension.data.remote import RemoteFile, read_whole
from ostension.errors import ConfigError, DataError, LimitError, unknown_name
from ostension.files import sha256_json

# Names by which tables call their columns; "filepath" and "title" are open_clip's, "image" and "caption" those of most sets
# on the hub.
IMAGE_COLUMNS = ("filepath", "image", "image_path", "path", "file", "file_name", "filename", "jpg", "img", "image_bytes")
TEXT_COLUMNS = ("title", "caption", "text", "captions", "texts", "txt")


class Table:
    """The pairs of a CSV or TSV file with a header line, one a row; image paths are relative to the table's folder.

    Args:
        path: the table, UTF-8; tabs separate where its name ends in .tsv, commas otherwise. One at a URL is copied into the
            cache folder, and its images are read from beside it.
        layout: columns by name; found among the usual names if not given.

    Raises:
        DataError: if the table cannot be read, or a row has another number of fields.
        ConfigError: if a column is not there, or cannot be told.
    """

    def __init__(self, path: str | os.PathLike | RemoteFile, *, layout: Layout = USUAL):
        self.location = path if isinstance(path, RemoteFile) else Path(path)
        self.layout = layout
        self._path = self.location.kept() if isinstance(self.location, RemoteFile) else self.location
        self._tabs = self.location.suffix.lower() == ".tsv"
        self._sha256, status = _sha256(self._path, self.location)
        self._version = (status.st_size, status.st_mtime_ns)
        key = [self._sha256, self._tabs, to_tree(layout)]
        self._rows: MappedArrays = cached_arrays("table 1", key, self._index)
        facts = self._rows.facts
        self._columns, self._image, self._texts = facts["columns"], facts["image"], facts["texts"]
        self._sizes: np.ndarray | None = None
        self._file: int | None = None

    def __len__(self) -> int:
        return len(self._rows["lines"])

    def key(self, index: int) -> str:
        check_index(index, len(self))
        return f"{self.location.name}:{self._rows['lines'][index]}"

    def read(self, index: int) -> Pair:
        check_index(index, len(self))
        source = f"{self.location} line {self._rows['lines'][index]}"
        row = self._row(index)
        cells = [row[column] for column in self._texts]
        if sum(map(len, cells)) > MAX_TEXT_BYTES:
            raise LimitError(f"text of {sum(map(len, cells))} letters", source=source, expected=f"at most {MAX_TEXT_BYTES}")
        texts, weights = captions_of(cells, self.layout, source)
        used = {self._image, *self._texts}
        meta = {name: row[column] for column, name in enumerate(self._columns) if column not in used}
        return Pair(key=self.key(index), image=self._read_image(row, source), texts=texts, meta=meta, weights=weights)

    def text_counts(self) -> np.ndarray | None:
        """How many captions each pair has; None where each has one."""
        return self._rows["counts"] if len(self._texts) > 1 or self.layout.lines else None

    def fingerprint(self) -> str:
        """A hash of the table; of the images, their paths and sizes (at a URL, their paths)."""
        sizes = [] if isinstance(self.location, RemoteFile) else [hashlib.sha256(self._image_sizes().tobytes()).hexdigest()]
        layout = [] if self.layout == USUAL else [to_tree(self.layout)]
        return sha256_json(["table", self._sha256, *sizes, *layout])

    def image_digests(self) -> np.ndarray:
        return np.array([image_digest(self.read(index).image) for index in range(len(self))], dtype=np.uint64)

    def summary(self) -> Summary:
        size = self._version[0]
        if isinstance(self.location, Path):
            size = int(np.maximum(self._image_sizes(), 0).sum())
        return Summary(num_pairs=len(self), num_bytes=size, rejects=dict(self._rows.facts["rejects"]))

    def _index(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """One pass over the table: where the rows with an image and a text lie."""
        rows = _rows_of(self._path, self._tabs, self.location)
        header = next(rows, None)
        if header is None:
            raise DataError("an empty table", source=self.location, expected="a header line and one row for each pair")
        columns = header[3]
        if not self._tabs and len(columns) == 1 and "\t" in columns[0]:
            raise ConfigError("a table with tabs between its columns", source=self.location, fix="name it .tsv")
        image = find_column(columns, self.layout.image, IMAGE_COLUMNS, "image", self.location)
        wanted = self.layout.texts or (None,)
        texts = [find_column(columns, name, TEXT_COLUMNS, "text", self.location) for name in wanted]
        found = {name: array.array("q") for name in ("lines", "starts", "ends", "counts")}
        rejects: dict[str, int] = {}
        for line, start, end, row in rows:
            if len(row) != len(columns):
                what = f"line {line} has {len(row)} fields"
                raise DataError(what, source=self.location, expected=f"{len(columns)}, as the header has")
            cells = [row[column] for column in texts]
            reason = "no image" if not row[image].strip() else "no text" if not any(map(str.strip, cells)) else None
            if reason:
                rejects[reason] = rejects.get(reason, 0) + 1
                continue
            count = len(captions_of(cells, self.layout, self.location)[0])
            for name, value in zip(found, (line, start, end, count), strict=True):
                found[name].append(value)
        if not found["lines"]:
            raise DataError("no row with an image and a text", source=self.location)
        arrays = {name: np.frombuffer(values, dtype=np.int64) for name, values in found.items()}
        return arrays, {"columns": columns, "image": image, "texts": texts, "rejects": rejects}

    def _row(self, index: int) -> list[str]:
        start, end = int(self._rows["starts"][index]), int(self._rows["ends"][index])
        raw = os.pread(self._opened(), end - start, start)
        try:
            row = next(_reader((line.decode("utf-8") for line in io.BytesIO(raw)), self._tabs))
        except (UnicodeDecodeError, csv.Error, StopIteration):
            row = []
        if len(row) != len(self._columns):
            raise DataError(f"bytes {start} to {end} are no row any more: it changed while in use", source=self.location)
        return row

    def _opened(self) -> int:
        """The table, open; in another process it is opened again and compared."""
        if self._file is None:
            self._file = os.open(self._path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            status = os.fstat(self._file)
            if (status.st_size, status.st_mtime_ns) != self._version and _sha256(self._path, self.location)[0] != self._sha256:
                raise DataError("changed while in use", source=self.location)
        return self._file

    def _read_image(self, row: list[str], source: str) -> bytes:
        name = row[self._image].strip()
        if isinstance(self.location, RemoteFile):
            return read_whole(self.location.url.rpartition("/")[0] + "/" + name, MAX_IMAGE_BYTES, source)
        return read_image(self._path.parent / name, source)

    def _image_sizes(self) -> np.ndarray:
        if self._sizes is None:
            folder = self._path.parent
            names = (self._row(index)[self._image].strip() for index in range(len(self)))
            self._sizes = np.fromiter((size_of(folder / name) for name in names), dtype=np.int64, count=len(self))
        return self._sizes

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_sizes": None}

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            os.close(self._file)  # type: ignore[arg-type]


def find_column(columns: list[str], wanted: str | None, usual: tuple[str, ...], what: str, source: object) -> int:
    """The number of a column: the one that is wanted, or the first of the usual ones that is there.

    Raises:
        ConfigError: if there is none.
    """
    if wanted is not None:
        if wanted not in columns:
            raise unknown_name(f"{what} column", wanted, columns, source=source)
        return columns.index(wanted)
    found = [name for name in usual if name in columns]
    if not found:
        listed = ", ".join(map(repr, columns))
        known = f"one of {', '.join(map(repr, usual))}"
        setting = "batches.layout.image" if what == "image" else "batches.layout.texts"
        raise ConfigError(f"no {what} column among {listed}", source=source, expected=known, fix=f"or name it in {setting}")
    return columns.index(found[0])


def _rows_of(path: Path, tabs: bool, source: object) -> Iterator[tuple[int, int, int, list[str]]]:
    """The rows of a table with line number, first byte and end; empty lines are passed over."""
    end = 0

    def lines() -> Iterator[str]:
        nonlocal end
        for raw in handle:
            try:
                text = raw.decode("utf-8") if end else raw.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                where = f"not UTF-8 at byte {end + error.start}"
                raise DataError(where, source=source, expected="a table in UTF-8") from None
            end += len(raw)
            yield text

    with open(path, "rb") as handle:
        reader = _reader(lines(), tabs)
        while True:
            start = end
            try:
                row = next(reader, None)
            except csv.Error as error:
                raise DataError(f"not a table: {error}", source=source) from None
            if row is None:
                return
            if row:
                yield reader.line_num, start, end, row


def _reader(lines: Iterator[str], tabs: bool) -> Any:
    # Tabs separate bare fields: a quote in a caption is a quote.
    return csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(lines, strict=True)


def _sha256(path: Path, source: object) -> tuple[str, os.stat_result]:
    try:
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest(), os.fstat(handle.fileno())
    except OSError as error:
        raise DataError(f"cannot be read: {(error.strerror or '').lower()}", source=source) from None
