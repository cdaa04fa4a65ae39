"""Pairs from tables (CSV, TSV) of image paths and captions, and from folders of images with caption files beside them."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ostension.data.pairs import (
    IMAGE_SUFFIXES,
    MAX_IMAGE_BYTES,
    MAX_TEXT_BYTES,
    Pair,
    Summary,
    check_index,
    image_digest,
)
from ostension.errors import ConfigError, DataError, LimitError, unknown_name
from ostension.files import sha256_json

# Names by which tables call their columns; "filepath" and "title" are open_clip's.
IMAGE_COLUMNS = ("filepath", "image", "image_path", "path", "file", "file_name", "filename")
TEXT_COLUMNS = ("title", "caption", "text", "captions")


class Table:
    """The pairs of a CSV or TSV file with a header line, one a row; image paths are relative to the table's folder.

    Args:
        path: the table, UTF-8; tabs separate where its name ends in .tsv, commas otherwise.
        image_column, text_column: columns by name; found among the usual names if not given.

    Raises:
        DataError: if the table cannot be read, or a row has another number of fields.
        ConfigError: if a column is not there, or cannot be told.
    """

    def __init__(self, path: str | os.PathLike, *, image_column: str | None = None, text_column: str | None = None):
        self.path = Path(path)
        rows = _read_table(self.path)
        header = next(rows, None)
        if header is None:
            raise DataError("an empty table", source=self.path, expected="a header line and one row for each pair")
        columns = header[1]
        image = _find_column(columns, image_column, IMAGE_COLUMNS, "image", self.path)
        text = _find_column(columns, text_column, TEXT_COLUMNS, "text", self.path)
        others = [(name, at) for at, name in enumerate(columns) if at not in (image, text)]
        self._rows: list[tuple[int, str, str, dict[str, str]]] = []
        self._rejects: dict[str, int] = {}
        for line, row in rows:
            if len(row) != len(columns):
                what = f"line {line} has {len(row)} fields"
                raise DataError(what, source=self.path, expected=f"{len(columns)}, as the header has")
            reason = "no image" if not row[image].strip() else "no text" if not row[text].strip() else None
            if reason:
                self._rejects[reason] = self._rejects.get(reason, 0) + 1
                continue
            self._rows.append((line, row[image].strip(), row[text].strip(), {name: row[at] for name, at in others}))
        if not self._rows:
            raise DataError("no row with an image and a text", source=self.path)
        self._sha256 = hashlib.sha256(self.path.read_bytes()).hexdigest()

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, index: int) -> str:
        check_index(index, len(self))
        return f"{self.path.name}:{self._rows[index][0]}"

    def read(self, index: int) -> Pair:
        check_index(index, len(self))
        line, image, text, meta = self._rows[index]
        source = f"{self.path} line {line}"
        if len(text) > MAX_TEXT_BYTES:
            raise LimitError(f"text of {len(text)} letters", source=source, expected=f"at most {MAX_TEXT_BYTES}")
        return Pair(key=self.key(index), image=_read_image(self.path.parent / image, source), texts=(text,), meta=dict(meta))

    def fingerprint(self) -> str:
        """A hash of the table; of the images, their paths and sizes."""
        sizes = [_size(self.path.parent / image) for _, image, _, _ in self._rows]
        return sha256_json(["table", self._sha256, sizes])

    def image_digests(self) -> np.ndarray:
        return np.array([image_digest(self.read(index).image) for index in range(len(self))], dtype=np.uint64)

    def summary(self) -> Summary:
        size = sum(max(0, _size(self.path.parent / image)) for _, image, _, _ in self._rows)
        return Summary(num_pairs=len(self), num_bytes=size, rejects=dict(self._rejects))


class CaptionFolder:
    """The pairs of a folder (and the folders in it): each image NAME.jpg with NAME.txt, one caption a line.

    Raises:
        DataError: if there is no such pair.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        names = sorted(_walk(self.folder))
        images: dict[str, str] = {}
        self._rejects: dict[str, int] = {}
        for name in names:
            stem, _, suffix = name.rpartition(".")
            if suffix.lower() in IMAGE_SUFFIXES:
                if stem in images:
                    self._reject("a second image of one name")
                else:
                    images[stem] = name
        texts = {name.removesuffix(".txt") for name in names if name.endswith(".txt")}
        for _ in images.keys() - texts:
            self._reject("image without text")
        for _ in texts - images.keys():
            self._reject("text without image")
        self._pairs = [(image, f"{stem}.txt") for stem, image in sorted(images.items()) if stem in texts]
        if not self._pairs:
            raise DataError(
                f"no image with a caption beside it ({len(images)} images, {len(texts)} texts)",
                source=self.folder,
                expected="NAME.jpg and NAME.txt, or tar shards",
            )

    def __len__(self) -> int:
        return len(self._pairs)

    def key(self, index: int) -> str:
        check_index(index, len(self))
        return self._pairs[index][0]

    def read(self, index: int) -> Pair:
        check_index(index, len(self))
        image, text = (self.folder / name for name in self._pairs[index])
        if _size(text) > MAX_TEXT_BYTES:
            raise LimitError(f"text of {_size(text)} bytes", source=text, expected=f"at most {MAX_TEXT_BYTES}")
        try:
            lines = text.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"text is not UTF-8 at byte {error.start}", source=text) from None
        except OSError as error:
            raise DataError(f"cannot be read: {(error.strerror or '').lower()}", source=text) from None
        captions = tuple(line.strip() for line in lines if line.strip())
        if not captions:
            raise DataError("text is empty", source=text)
        return Pair(key=self.key(index), image=_read_image(image, image), texts=captions, meta={})

    def fingerprint(self) -> str:
        """A hash of the names and sizes of all files, and of the captions."""
        captions = [hashlib.sha256((self.folder / text).read_bytes()).hexdigest() for _, text in self._pairs]
        return sha256_json(["folder", [[image, _size(self.folder / image)] for image, _ in self._pairs], captions])

    def image_digests(self) -> np.ndarray:
        return np.array([image_digest((self.folder / image).read_bytes()) for image, _ in self._pairs], dtype=np.uint64)

    def summary(self) -> Summary:
        size = sum(max(0, _size(self.folder / name)) for pair in self._pairs for name in pair)
        return Summary(num_pairs=len(self), num_bytes=size, rejects=dict(self._rejects))

    def _reject(self, reason: str) -> None:
        self._rejects[reason] = self._rejects.get(reason, 0) + 1


def _walk(folder: Path) -> Iterator[str]:
    """The files below `folder` by relative path; hidden ones are passed over."""
    for current, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if not name.startswith("."):
                yield (Path(current) / name).relative_to(folder).as_posix()


def _read_table(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table with their line numbers; empty lines are passed over."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as handle:
            # Tabs separate bare fields: a quote in a caption is a quote.
            if path.suffix.lower() == ".tsv":
                reader = csv.reader(handle, delimiter="\t", quoting=csv.QUOTE_NONE)
            else:
                reader = csv.reader(handle, strict=True)
            for row in reader:
                if row:
                    yield reader.line_num, row
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at byte {error.start}", source=path, expected="a table in UTF-8") from None
    except csv.Error as error:
        raise DataError(f"not a table: {error}", source=path) from None
    except OSError as error:
        raise DataError(f"cannot be read: {(error.strerror or '').lower()}", source=path) from None


def _find_column(columns: list[str], wanted: str | None, usual: tuple[str, ...], what: str, path: Path) -> int:
    if wanted is not None:
        if wanted not in columns:
            raise unknown_name(f"{what} column", wanted, columns, source=path)
        return columns.index(wanted)
    found = [name for name in usual if name in columns]
    if not found:
        listed = ", ".join(map(repr, columns))
        raise ConfigError(f"no {what} column among {listed}", source=path, expected=f"one of {', '.join(map(repr, usual))}")
    return columns.index(found[0])


def _read_image(path: Path, source: object) -> bytes:
    size = _size(path)
    if size > MAX_IMAGE_BYTES:
        raise LimitError(f"image of {size} bytes", source=source, expected=f"at most {MAX_IMAGE_BYTES}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"image {path.name!r} cannot be read: {(error.strerror or '').lower()}", source=source) from None


def _size(path: Path) -> int:
    """A file's size, -1 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return -1
