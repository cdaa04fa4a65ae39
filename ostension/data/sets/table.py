"""Labelled pictures listed in a table: image paths, labels, and perhaps splits and groups, one row a sample."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path
from typing import Any

from ostension.data.sets.base import LABEL_COLUMNS, SPLIT_COLUMNS, LabelledSet, label_texts, read_picture_file
from ostension.data.task_parts import Source, check_inside
from ostension.errors import ConfigError, DataError, unknown_name

IMAGE_COLUMNS = ("filepath", "image", "image_path", "path", "file", "file_name", "filename", "image_id", "img")


class TableSet(LabelledSet):
    """The rows of a CSV or TSV file with a header line; every column that is nothing else is a field.

    With captions (`source.texts`) the rows of one picture are one sample.

    Args:
        path: the table, UTF-8; tabs separate where its name ends in .tsv.
        source: columns, where they are not called as usual, and the folder below the table's that paths are relative to.
        several: whether a label may be several with | between them.

    Raises:
        DataError: for a table that cannot be read, a row of another length, a sample without a label, a path that leaves
            the folder.
    """

    def __init__(self, path: Path, source: Source | None = None, *, several: bool = False):
        source = source or Source(kind="csv")
        header, rows = _read(path)
        image = find_column(header, source.image, IMAGE_COLUMNS, "image", path)
        label = None if source.texts else find_column(header, source.label, LABEL_COLUMNS, "label", path)
        split = find_column(header, source.split, SPLIT_COLUMNS, "split", path, optional=True)
        name = image if source.id is None else find_column(header, source.id, (), "id", path)
        assert image is not None and name is not None
        texts = find_column(header, source.texts, (), "text", path) if source.texts else None
        used = {image, label, split, name, texts}
        self._folder = path.parent / (source.images or "")
        self._images: list[str] = []
        labels = []
        for line, row in rows:
            where = f"{path} line {line}"
            if len(row) != len(header):
                raise DataError(f"line {line} has {len(row)} fields", source=path, expected=f"{len(header)}, as the header has")
            try:
                check_inside(row[image], "the image's path")
            except ConfigError as error:  # the table is data
                raise DataError(error.what, source=where, expected=error.expected) from None
            self._images.append(row[image])
            labels.append(() if label is None else label_texts(row[label], where, several=several))
        super().__init__(
            path,
            [row[name] for _, row in rows],
            labels,
            splits=None if split is None else [row[split] for _, row in rows],
            fields={column: [row[at] for _, row in rows] for at, column in enumerate(header) if at not in used},
            texts=None if texts is None else [(row[texts],) for _, row in rows],
        )
        if texts is not None:
            self._join()
        self._sha256 = hashlib.sha256(path.read_bytes()).hexdigest()

    def _join(self) -> None:
        """Make one sample of the rows of one picture, with all their captions; its other columns are those of the first."""
        assert self.texts is not None
        first: dict[str, int] = {}
        captions: dict[str, list[str]] = {}
        for row, (name, texts) in enumerate(zip(self.ids, self.texts, strict=True)):
            first.setdefault(name, row)
            captions.setdefault(name, []).extend(texts)
        rows = list(first.values())
        self.ids, self.texts = list(first), [tuple(texts) for texts in captions.values()]
        self.labels, self._images = [self.labels[row] for row in rows], [self._images[row] for row in rows]
        self.splits = None if self.splits is None else [self.splits[row] for row in rows]
        self.fields = {name: [values[row] for row in rows] for name, values in self.fields.items()}

    def image(self, index: int) -> bytes:
        return read_picture_file(self._folder / self._images[index])

    def content(self) -> list[Any]:
        return [self._sha256, [_size(self._folder / name) for name in self._images]]


def find_column(
    columns: list[str], wanted: str | None, usual: tuple[str, ...], what: str, path: Path, *, optional: bool = False
) -> int | None:
    """The position of a column, by its name or the usual names."""
    if wanted is not None:
        if wanted not in columns:
            raise unknown_name(f"{what} column", wanted, columns, source=path)
        return columns.index(wanted)
    found = [name for name in usual if name in columns]
    if not found and not optional:
        listed = ", ".join(map(repr, columns))
        raise ConfigError(f"no {what} column among {listed}", source=path, expected=f"one of {', '.join(map(repr, usual))}")
    return columns.index(found[0]) if found else None


def _read(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as handle:
            tabs = path.suffix.lower() == ".tsv"
            reader = csv.reader(handle, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(handle, strict=True)
            rows = [(reader.line_num, row) for row in reader if row]
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at byte {error.start}", source=path, expected="a table in UTF-8") from None
    except csv.Error as error:
        raise DataError(f"not a table: {error}", source=path) from None
    except OSError as error:
        raise DataError(f"cannot be read: {(error.strerror or '').lower()}", source=path) from None
    if not rows:
        raise DataError("an empty table", source=path, expected="a header line and one row for each sample")
    return rows[0][1], rows[1:]


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1
