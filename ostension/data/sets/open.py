"""`open_set`: a labelled set from its files, in the form that a record names or that the files show."""

from __future__ import annotations

import glob
from collections.abc import Callable
from pathlib import Path

from ostension.data.sets.arrays import ArraySet
from ostension.data.sets.arrow import ArrowSet, is_saved_folder
from ostension.data.sets.base import LabelledSet
from ostension.data.sets.drawn import DrawnTexts
from ostension.data.sets.folder import FolderSet
from ostension.data.sets.karpathy import KarpathySet
from ostension.data.sets.shards import ShardSet
from ostension.data.sets.shipped import EMBEDDED, open_embedded
from ostension.data.sets.table import TableSet
from ostension.data.sets.written import WrittenSet
from ostension.data.task_parts import Source, SourceKind
from ostension.errors import DataError

LABEL_TABLES = ("labels.csv", "labels.tsv", "metadata.csv")
_SUFFIXES: dict[str, SourceKind] = {
    ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".npz": "npz", ".tar": "shards",
}  # fmt: skip


def open_set(
    location: Path, source: Source | None = None, *, several: bool = False, videos: bool = False
) -> LabelledSet:
    """The labelled set at `location`.

    Args:
        location: a file or a folder; for shards also a pattern.
        source: how to read it; without it that is seen from the files.
        several: whether a sample may have several labels.
        videos: whether files of videos in a folder are samples.

    Raises:
        DataError, ConfigError, LimitError: if it cannot be read, naming the file and the sample.
        MissingExtraError: for a form whose package is not installed.
    """
    kind = source.kind if source is not None else kind_of(location)
    if kind != "embedded" and kind != "shards" and not location.exists():
        raise DataError("no such file or folder", source=location, expected="labelled data")
    if kind == "folder" and videos:
        return FolderSet(location, source.levels if source else None, videos=True)
    return _OPENERS[kind](location, source, several)


def kind_of(location: Path) -> SourceKind:
    """The form of the data at `location`, from its names.

    Raises:
        DataError: if it has none that is known.
    """
    if location.suffix.lower() in _SUFFIXES and not location.is_dir():
        return _SUFFIXES[location.suffix.lower()]
    if str(location) in EMBEDDED and not location.exists():
        return "embedded"
    if not location.exists():
        raise DataError("no such file or folder", source=location, expected="labelled data")
    if not location.is_dir():
        raise DataError("a file of no known form", source=location, expected="a folder, or " + ", ".join(_SUFFIXES))
    if is_saved_folder(location):
        return "hf"
    if any((location / name).is_file() for name in LABEL_TABLES):
        return "csv"
    for pattern, kind in (("*.tar", "shards"), ("*.parquet", "parquet")):
        if any(path.is_file() for path in location.rglob(pattern)):
            return kind  # type: ignore[return-value]
    return "folder"


def _open_table(location: Path, source: Source | None, several: bool) -> LabelledSet:
    if location.is_dir():
        location = next(location / name for name in LABEL_TABLES if (location / name).is_file())
    return TableSet(location, source, several=several)


def _open_shards(location: Path, source: Source | None, several: bool) -> LabelledSet:
    if location.is_dir():
        shards = sorted(location.rglob("*.tar"))
    else:
        shards = [location] if location.exists() else sorted(map(Path, glob.glob(str(location))))
    if not shards:
        raise DataError("no tar shard", source=location)
    return ShardSet(shards, source, several=several)


_OPENERS: dict[str, Callable[[Path, Source | None, bool], LabelledSet]] = {
    "folder": lambda location, source, several: FolderSet(location, source.levels if source else None),
    "csv": _open_table,
    "parquet": lambda location, source, several: ArrowSet(location, source, several=several),
    "hf": lambda location, source, several: ArrowSet(location, source, several=several),
    "shards": _open_shards,
    "npz": lambda location, source, several: ArraySet(location, source, several=several),
    "karpathy": lambda location, source, several: KarpathySet(location, source.images if source else None),
    "text": lambda location, source, several: DrawnTexts(location),
    "written": lambda location, source, several: WrittenSet(location),
    "embedded": lambda location, source, several: open_embedded(location.name),
}
