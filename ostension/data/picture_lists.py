"""Pictures to embed, with whatever is known of them: folders with or without captions, lists of files, lists of URLs.

These are `PairSource`s; unlike the sources of training pairs they ask for no captions, and what cannot be read is a sample that
fails when it is read, so that it is counted and listed and never passed over.
"""

from __future__ import annotations

import abc
import csv
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ostension.data.fetch import FetchPolicy, fetch
from ostension.data.pairs import (
    IMAGE_SUFFIXES,
    MAX_TEXT_BYTES,
    Pair,
    PairSource,
    Summary,
    check_index,
    image_digest,
    read_image,
    size_of,
)
from ostension.data.tables import TEXT_COLUMNS
from ostension.errors import DataError, LimitError, require_extra
from ostension.files import sha256_json

URL_COLUMNS = ("url", "image_url", "URL")
ID_COLUMNS = ("id", "key", "filepath", "file_name", "filename", "file", "path", "image", "url")
WEB = ("http://", "https://")


class Listed(abc.ABC):
    """Samples by key, each read by itself."""

    def __init__(self, keys: Sequence[str]):
        self._keys = list(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        check_index(index, len(self))
        return self._keys[index]

    @abc.abstractmethod
    def read(self, index: int) -> Pair:
        """A sample."""

    def fingerprint(self) -> str:
        """A hash of the keys."""
        return sha256_json([type(self).__name__, self._keys])

    def image_digests(self) -> np.ndarray:
        return np.array([image_digest(self.read(index).image) for index in range(len(self))], dtype=np.uint64)


class PictureTree(Listed):
    """All pictures in a folder and in the folders within, by their paths, with the captions of NAME.txt (one a line) and the
    fields of NAME.json where there are such files.

    Hidden files and folders are passed over. A folder within that cannot be read is a sample that cannot be read.

    Raises:
        DataError: if the folder cannot be read or has no picture.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        keys: list[str] = []
        self._closed: dict[str, str] = {}
        self._texts: set[str] = set()
        self._facts: set[str] = set()
        self._others = 0

        def closed(error: OSError) -> None:
            path = Path(error.filename)
            if path == self.folder:
                raise DataError(f"cannot be read: {error.strerror}", source=self.folder) from None
            self._closed[f"{path.relative_to(self.folder).as_posix()}/"] = f"the folder cannot be read ({error.strerror})"

        for current, folders, files in os.walk(self.folder, onerror=closed):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            below = Path(current).relative_to(self.folder)
            for name in files:
                stem, _, suffix = name.rpartition(".")
                path = (below / name).as_posix()
                if name.startswith("."):
                    continue
                if suffix.lower() in IMAGE_SUFFIXES:
                    keys.append(path)
                elif suffix in ("txt", "json"):
                    (self._texts if suffix == "txt" else self._facts).add((below / stem).as_posix())
                else:
                    self._others += 1
        if not keys and not self._closed:
            raise DataError("no picture", source=self.folder, expected=f"files named {', '.join(sorted(IMAGE_SUFFIXES))}")
        super().__init__(sorted([*keys, *self._closed]))

    def read(self, index: int) -> Pair:
        name = self.key(index)
        if name in self._closed:
            raise DataError(self._closed[name], source=self.folder / name)
        stem = name.rpartition(".")[0]
        texts = _lines(self.folder / f"{stem}.txt") if stem in self._texts else ()
        meta = _fields(self.folder / f"{stem}.json") if stem in self._facts else {}
        return Pair(key=name, image=read_image(self.folder / name, self.folder / name), texts=texts, meta=meta)

    def summary(self) -> Summary:
        num_bytes = sum(max(0, size_of(self.folder / name)) for name in self._keys)
        return Summary(num_pairs=len(self), num_bytes=num_bytes, rejects={"no picture by its name": self._others})


class PictureFiles(Listed):
    """Files by their paths, relative ones below `folder`; those that are listed twice count once."""

    def __init__(self, paths: Iterable[str], folder: Path):
        self.folder = folder
        super().__init__(dict.fromkeys(paths))  # type: ignore[arg-type]

    def read(self, index: int) -> Pair:
        name = self.key(index)
        path = self.folder / name
        if not path.is_file():
            raise DataError("this is a folder" if path.is_dir() else "no such file", source=path)
        return Pair(key=name, image=read_image(path, path), texts=(), meta={})

    def summary(self) -> Summary:
        num_bytes = sum(max(0, size_of(self.folder / name)) for name in self._keys)
        return Summary(num_pairs=len(self), num_bytes=num_bytes, rejects={})


class Urls(Listed):
    """Pictures at web addresses, which are their keys, with captions and fields; an address that comes twice counts once.

    They are read when they are asked for, each within the limits of a policy. Nothing is known of their bytes before.
    """

    known_by_id = True

    def __init__(self, rows: Iterable[tuple[str, tuple[str, ...], Mapping[str, Any]]], policy: FetchPolicy):
        self.policy = policy
        self._rows: dict[str, tuple[tuple[str, ...], Mapping[str, Any]]] = {}
        for url, texts, fields in rows:
            self._rows.setdefault(url, (texts, fields))
        super().__init__(list(self._rows))

    def read(self, index: int) -> Pair:
        url = self.key(index)
        texts, fields = self._rows[url]
        return Pair(key=url, image=fetch(url, policy=self.policy), texts=texts, meta=dict(fields))

    def summary(self) -> Summary:
        return Summary(num_pairs=len(self), num_bytes=0, rejects={})


class WithFields:
    """A source with more fields for its samples, by key; fields of the same name are replaced.

    Raises:
        DataError: if none of the samples has any.
    """

    def __init__(self, source: PairSource, fields: Mapping[str, Mapping[str, Any]], name: object):
        self.source, self._fields, self._name = source, fields, name
        missing = sum(source.key(index) not in fields for index in range(len(source)))
        if missing == len(source):
            theirs, ours = next(iter(fields), "none"), source.key(0)
            what = f"its ids are those of no sample (it has {theirs!r}, the source {ours!r})"
            raise DataError(
                what, source=name, expected=f"a column {', '.join(map(repr, ID_COLUMNS[:3]))} with the samples' ids"
            )
        self.without = missing

    def __len__(self) -> int:
        return len(self.source)

    def __getattr__(self, name: str) -> Any:
        if name == "source":  # while it is being unpickled
            raise AttributeError(name)
        return getattr(self.source, name)

    def key(self, index: int) -> str:
        return self.source.key(index)

    def read(self, index: int) -> Pair:
        pair = self.source.read(index)
        meta = {**pair.meta, **self._fields.get(pair.key, {})}
        return Pair(key=pair.key, image=pair.image, texts=pair.texts, meta=meta, weights=pair.weights)


def read_rows(path: Path, *, binary: bool = True) -> list[dict[str, Any]]:
    """The rows of a CSV, TSV or Parquet table by column; what is empty is left out.

    Args:
        binary: also read columns of bytes, which are pictures mostly.

    Raises:
        DataError: if it cannot be read, or a row has another number of fields than the header.
        MissingExtraError: if Parquet needs a package that is not installed.
    """
    if path.suffix.lower() == ".parquet":
        arrow, parquet = require_extra("pyarrow", "data"), require_extra("pyarrow.parquet", "data")
        try:
            schema = parquet.read_schema(path)
            plain = [
                one.name for one in schema if not (arrow.types.is_binary(one.type) or arrow.types.is_large_binary(one.type))
            ]
            rows = parquet.read_table(path, columns=None if binary else plain).to_pylist()
        except (arrow.ArrowException, OSError) as error:
            raise DataError(f"cannot be read as Parquet ({str(error).splitlines()[0]})", source=path) from None
    else:
        rows = []
        try:
            with open(path, encoding="utf-8-sig", newline="") as handle:
                reader = csv.DictReader(handle, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
                for row in reader:
                    if None in row or None in row.values():
                        expected = f"{len(reader.fieldnames or ())} fields, as the header has"
                        raise DataError(f"line {reader.line_num} has another number of fields", source=path, expected=expected)
                    rows.append(row)
        except (csv.Error, UnicodeDecodeError, OSError) as error:
            raise DataError(f"cannot be read as a table ({error})", source=path, expected="UTF-8 and a header line") from None
    if not rows:
        raise DataError("a table without rows", source=path)
    return [{name: value for name, value in row.items() if value not in (None, "")} for row in rows]


def fields_by_id(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of a table by their ids (the first of `ID_COLUMNS` that it has).

    Raises:
        DataError: if it has no such column, or an id comes twice.
    """
    rows = read_rows(path)
    columns = dict.fromkeys(name for row in rows for name in row)
    column = next((name for name in ID_COLUMNS if name in columns), None)
    if column is None:
        expected = f"one of {', '.join(ID_COLUMNS)}"
        raise DataError(f"no column of ids among {', '.join(columns)}", source=path, expected=expected)
    found: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(rows):
        name = str(row.pop(column, ""))
        if not name or name in found:
            raise DataError(f"row {number + 1} has {'an id that comes twice' if name else 'no id'}", source=path)
        found[name] = row
    return found


def urls_in_table(path: Path, policy: FetchPolicy) -> Urls | None:
    """The pictures of a table with a column of web addresses; None where it has none."""
    if not any(name in URL_COLUMNS for name in _columns(path)):
        return None
    rows = read_rows(path)
    column = next(name for name in URL_COLUMNS if any(name in row for row in rows))
    texts = next((name for name in TEXT_COLUMNS if any(name in row for row in rows)), "")
    listed = []
    for row in rows:
        url, text = row.pop(column, None), row.pop(texts, None)
        if url is not None:
            spoken = tuple(map(str, text)) if isinstance(text, list) else () if text is None else (str(text),)
            listed.append((str(url), spoken, row))
    return Urls(listed, policy)


def _columns(path: Path) -> list[str]:
    """The names of a table's columns; none where it cannot be read, which whoever reads it says better."""
    try:
        if path.suffix.lower() == ".parquet":
            return require_extra("pyarrow.parquet", "data").read_schema(path).names
        with open(path, encoding="utf-8-sig", newline="") as handle:
            return next(csv.reader(handle, delimiter="\t" if path.suffix.lower() == ".tsv" else ","), [])
    except (OSError, ValueError):
        return []


def listed(lines: Iterable[str], folder: Path, policy: FetchPolicy, source: object) -> PictureFiles | Urls:
    """The pictures of a list: a path or a web address a line, after a tab perhaps a caption for an address.

    Raises:
        DataError: for an empty list, or one with both.
    """
    entries = [line.rstrip("\r\n") for line in lines if line.strip()]
    web = [entry.strip().startswith(WEB) for entry in entries]
    if not entries:
        raise DataError("no file and no web address", source=source, expected="one a line")
    if not any(web):
        return PictureFiles(entries, folder)
    if not all(web):
        place = web.index(not web[0]) + 1
        raise DataError(f"web addresses and paths in one list (entry {place})", source=source, fix="make two lists of it")
    split = [entry.strip().partition("\t") for entry in entries]
    return Urls(((url.strip(), (text.strip(),) if text.strip() else (), {}) for url, _, text in split), policy)


def _lines(path: Path) -> tuple[str, ...]:
    if size_of(path) > MAX_TEXT_BYTES:
        raise LimitError(f"text of {size_of(path)} bytes", source=path, expected=f"at most {MAX_TEXT_BYTES}")
    try:
        return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (UnicodeDecodeError, OSError):
        raise DataError("the text beside it is not UTF-8 or cannot be read", source=path) from None


def _fields(path: Path) -> dict[str, Any]:
    if size_of(path) > MAX_TEXT_BYTES:
        raise LimitError(f"fields of {size_of(path)} bytes", source=path, expected=f"at most {MAX_TEXT_BYTES}")
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError):
        raise DataError("the JSON beside it cannot be read", source=path) from None
    if not isinstance(tree, dict):
        raise DataError("the JSON beside it is no object", source=path)
    return tree
