"""The work folder of a curation: the candidates in parts, and for each stage a file a part.

    WORK/curation.json                       the source, the part size, how many rows
    WORK/00-candidates/part-00000.parquet    row, dropped, key, texts, url, meta, place
    WORK/01-match/stage.json                 name, settings, identity: written first
    WORK/01-match/part-00000.parquet         row, dropped, and the stage's own columns, a row for each row that it was given
    WORK/01-match/done.json                  counts by reason, facts: written last

A part file is whole or absent, so what is there is done. A stage's identity holds that of the stage before it: parts of other
settings cannot be mistaken for its own. The lineage of a pair is the join of these files by part and row.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ostension.config import changed_keys, from_tree, to_tree
from ostension.curate.base import DROPPED, TEXTS, Columns, Part, Stage, load_stage
from ostension.data.layout import Layout
from ostension.data.pairs import PairSource
from ostension.errors import ConfigError, DataError, require_extra, unknown_name
from ostension.files import LOCK_NAME, PARTIAL_SUFFIX, atomic_path, read_json, sha256_json, write_json

FACTS, STAGE, DONE = "curation.json", "stage.json", "done.json"
CANDIDATES = "candidates"
FORMAT = 1
PART_SIZE = 10_000
EXTRA = "curate"
_FOLDER = re.compile(r"(\d{2})-([a-z0-9-]+)")
# Of each page a checksum, so that a flipped bit is found when it is read.
PARQUET = {"compression": "zstd", "write_statistics": False, "store_schema": False, "write_page_checksum": True}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What a work folder is of.

    Attributes:
        format: of the folder.
        source: what was typed, for `data.open.open_pairs` or the reader of captions.
        pictures: whether the source holds pictures.
        layout: of the source.
        part_size: rows a part.
        fingerprint: of the source.
    """

    format: int
    source: tuple[str, ...]
    pictures: bool
    layout: Layout
    part_size: int
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class Entry:
    """A stage's folder.

    Attributes:
        number: its place in the chain, the candidates being 0.
        name: of the stage.
        folder: where its parts lie.
        settings: as a tree.
        identity: a hash of everything that its parts depend on.
    """

    number: int
    name: str
    folder: Path
    settings: Mapping[str, Any]
    identity: str

    @property
    def done(self) -> bool:
        return (self.folder / DONE).is_file()

    def counts(self) -> dict[str, Any]:
        """What it ended in: {"rows", "kept", "parts", "reasons", "texts", "text_reasons", "seconds", "facts"}.

        Raises:
            DataError: if it has not ended.
        """
        if not self.done:
            raise DataError(f"the stage {self.name!r} has not ended", source=self.folder, fix="run its command again")
        found = read_json(self.folder / DONE)
        kinds = {"rows": int, "kept": int, "parts": int, "texts": int, "reasons": dict, "text_reasons": dict}
        if not isinstance(found, dict) or any(type(found.get(name)) is not kind for name, kind in kinds.items()):
            fix = "remove the file and run the stage again: its parts are kept"
            raise DataError("no counts of a stage", source=self.folder / DONE, expected=", ".join(kinds), fix=fix)
        return found

    def part(self, number: int, kind: str = "part") -> Path:
        """The file of a part; `kind` is "mapped" for what a first pass made."""
        return self.folder / f"{kind}-{number:05d}.parquet"

    def stage(self) -> Stage:
        """The stage with its settings."""
        kind = load_stage(self.name)
        return kind(from_tree(kind.config_type, self.settings, source=self.folder / STAGE))


class Work:
    """An opened work folder.

    Raises:
        DataError: if it is none, or of another format.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not (self.folder / FACTS).is_file():
            raise DataError("no work folder of a curation", source=self.folder, expected=f"one with {FACTS} in it")
        tree = read_json(self.folder / FACTS)
        if not isinstance(tree, Mapping) or tree.get("format") != FORMAT:
            found = tree.get("format") if isinstance(tree, Mapping) else None
            raise DataError(f"format {found!r}", source=self.folder / FACTS, expected=f"{FORMAT}, which this version writes")
        self.facts = from_tree(Facts, tree, source=self.folder / FACTS)
        self._tree = tree

    @classmethod
    def create(cls, folder: str | Path, facts: Facts) -> Work:
        """The work folder of these facts, made if it is not there.

        Raises:
            DataError: if there is one of another source.
        """
        folder = Path(folder)
        if (folder / FACTS).is_file():
            work = cls(folder)
            # The same source may be called by another path.
            changed = changed_keys(
                to_tree(dataclasses.replace(work.facts, source=())), to_tree(dataclasses.replace(facts, source=()))
            )
            if changed:
                what = "source" if "fingerprint" in changed else next(iter(changed)).replace("_", " ")
                raise DataError(
                    f"made of another {what}", source=folder, expected=" ".join(work.facts.source), fix="use another -o"
                )
            return work
        if folder.is_dir() and not is_vacant(folder):
            raise DataError("not empty, and no work folder", source=folder, fix="use another -o")
        with writing(folder):
            write_json(folder / FACTS, to_tree(facts))
        return cls(folder)

    @staticmethod
    def is_one(folder: str | Path) -> bool:
        return (Path(folder) / FACTS).is_file()

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The candidates and the stages in their order.

        Raises:
            DataError: if a folder between them is missing, or one is not what the ones before it make of it.
        """
        found = []
        for path in sorted(self.folder.iterdir()):
            if (match := _FOLDER.fullmatch(path.name)) and (path / STAGE).is_file():
                tree = read_json(path / STAGE)
                found.append((int(match[1]), match[2], path, tree))
        entries: list[Entry] = []
        for number, name, path, tree in found:
            previous = entries[-1].identity if entries else self.root
            try:
                entry = Entry(number, name, path, tree["settings"], tree["identity"])
                whole = number == len(entries) and entry.identity == identity(previous, name, entry.settings, tree["inputs"])
            except (KeyError, TypeError):
                whole = False
            if not whole:
                raise DataError(
                    "does not follow from the stages before it", source=path, fix="remove it and what comes after it"
                )
            entries.append(entry)
        return tuple(entries)

    @property
    def root(self) -> str:
        """The identity that the candidates begin from: of what is written, which settings of later versions do not change."""
        return sha256_json(self._tree)

    def add(self, name: str, settings: Mapping[str, Any], inputs: Mapping[str, Any], place: int | None = None) -> Entry:
        """The entry of a stage: one that is there with the same settings, else a new one after all that are there.

        Args:
            place: where in the chain it has to be.

        Raises:
            DataError: if another stage is at its place, or the last one has not ended.
        """
        entries = self.entries
        known = entries if place is None else entries[place : place + 1]
        for entry in known:
            before = entries[entry.number - 1].identity if entry.number else self.root
            if entry.name == name and entry.identity == identity(before, name, settings, inputs):
                return entry
        if place is not None and known:
            other = known[0]
            what = f"has {other.name!r} where {name!r} is wanted"
            if other.name == name:
                changed = changed_keys(other.settings, dict(settings))
                listed = ", ".join(f"{key}: {old!r}, now {new!r}" for key, (old, new) in changed.items())
                what = f"has {name!r} with other settings ({listed or 'what they point to has changed'})"
            raise DataError(what, source=self.folder, fix=f"remove {other.folder} and what comes after it, or use another -o")
        if entries and not entries[-1].done:
            last = entries[-1]
            fix = f"run it again with its settings, or remove {last.folder}"
            raise DataError(f"the stage {last.name!r} has not ended", source=self.folder, fix=fix)
        if len(entries) > 99:
            raise ConfigError("more than 99 stages", source=self.folder)
        found = identity(entries[-1].identity if entries else self.root, name, settings, inputs)
        entry = Entry(len(entries), name, self.folder / f"{len(entries):02d}-{name}", settings, found)
        tree = {"name": name, "settings": dict(settings), "inputs": dict(inputs), "identity": found}
        with writing(entry.folder):
            write_json(entry.folder / STAGE, tree)
        return entry

    @property
    def num_parts(self) -> int:
        return int(self.entries[0].counts()["parts"])

    @functools.cached_property
    def source(self) -> PairSource:
        """The opened source of pictures.

        Raises:
            DataError: if it has changed since.
        """
        from ostension.data.open import open_pairs

        source = open_pairs(self.facts.source, layout=self.facts.layout)
        if source.fingerprint() != self.facts.fingerprint:
            raise DataError("has changed since it was read", source=" ".join(self.facts.source), fix="begin a new work folder")
        return source

    def part(self, number: int, upto: int | None = None) -> Part:
        """The rows of a part that live after the first `upto` entries; by default after all."""
        entries = self.entries[:upto]
        rows = alive(entries[-1].part(number))

        @functools.cache
        def holders() -> dict[str, Entry]:
            return self.columns(len(entries))

        def read(name: str) -> Any:
            return self._column(holders(), number, rows, name)

        def picture(place: int) -> bytes:
            return self.source.read(place).image

        return Part(number, rows, self.facts.part_size, read, picture, f"{self.folder} part {number}")

    def parts(self, upto: int | None = None) -> Iterator[Part]:
        """All parts in order."""
        for number in range(self.num_parts):
            yield self.part(number, upto)

    def columns(self, upto: int | None = None) -> dict[str, Entry]:
        """The columns that there are, with the entry that has each: "key", "texts", "match.queries", "filter.dropped".

        Of a stage that is there twice, "filter.x" is of the later one; "texts" is of the last entry that has it.
        """
        found: dict[str, Entry] = {}
        for entry in self.entries[:upto]:
            for name in schema_names(entry.part(0)):
                if name == TEXTS or entry.number == 0:
                    found[name] = entry
                if name not in ("row", TEXTS) and entry.number:
                    found[f"{entry.name}.{name}"] = entry
        return found

    def _column(self, holders: Mapping[str, Entry], number: int, rows: np.ndarray, name: str) -> Any:
        if name not in holders:
            stage = name.partition(".")[0]
            fix = f"run `ostension curate {stage}` before" if "." in name else None
            raise unknown_name("column", name, holders, source=self.folder, fix=fix)
        entry = holders[name]
        table = read_part(entry.part(number), ["row", name.removeprefix(f"{entry.name}.") if entry.number else name])
        places = np.searchsorted(table["row"].to_numpy(), rows)
        return table.column(1).combine_chunks().take(places)


def identity(previous: str, name: str, settings: Mapping[str, Any], inputs: Mapping[str, Any]) -> str:
    """A hash of everything that a stage's parts depend on."""
    return sha256_json({"previous": previous, "name": name, "settings": settings, "inputs": inputs})


def alive(path: Path) -> np.ndarray:
    """(n,) int32 rows that a part file has not dropped."""
    table = read_part(path, ["row", DROPPED])
    return table["row"].to_numpy()[table[DROPPED].is_null().to_numpy()]


def read_part(path: Path, columns: Sequence[str] | None = None) -> Any:
    """Columns of a part file as a pyarrow table.

    Raises:
        DataError: if it is missing or damaged.
    """
    parquet = require_extra("pyarrow.parquet", EXTRA)
    with _damage(path):
        table = parquet.read_table(
            path, columns=columns, use_threads=False, partitioning=None, page_checksum_verification=True
        )  # fmt: skip
    for name, kind in _KINDS.items():
        if name in table.column_names and str(table.schema.field(name).type) != kind:
            what = f"damaged: {name} holds {table.schema.field(name).type}, not {kind}"
            raise DataError(what, source=path, fix="remove the file and run the stage again")
    return table


def schema_of(path: Path) -> Any:
    """The pyarrow schema of a part file."""
    parquet = require_extra("pyarrow.parquet", EXTRA)
    with _damage(path):
        return parquet.read_schema(path)


def schema_names(path: Path) -> list[str]:
    """The columns of a part file."""
    return list(schema_of(path).names)


# What every part file has; anything else was not written by us, or not by this version.
_KINDS = {"row": "int32", DROPPED: "string"}


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    arrow = require_extra("pyarrow", EXTRA)
    try:
        yield
    except FileNotFoundError:
        raise DataError("no such part", source=path, fix="run the stage again") from None
    except (arrow.ArrowException, OSError, KeyError) as error:
        first = str(error).split("\n", 1)[0]
        raise DataError(f"damaged: {first}", source=path, fix="remove the file and run the stage again") from None


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """While entered, what the system says of a file that cannot be written becomes one line.

    Raises:
        DataError: if the disk is full, or the folder may not be written to.
    """
    try:
        yield
    except OSError as error:
        what = f"cannot be written: {(error.strerror or str(error)).lower()}"
        raise DataError(what, source=path, fix="make room or free the way, and run the command again: it goes on") from None


def is_vacant(folder: Path) -> bool:
    """Whether a folder is not there, or holds nothing but a lock and what a killed run left half written."""
    if not folder.exists():
        return True
    leftovers = lambda path: path.name == LOCK_NAME or (path.name.startswith(".") and path.name.endswith(PARTIAL_SUFFIX))
    return folder.is_dir() and all(map(leftovers, folder.iterdir()))


def sweep(*folders: Path) -> None:
    """Remove what a killed run left half written; the caller holds the folders."""
    for folder in folders:
        for path in folder.glob(f".*{PARTIAL_SUFFIX}"):
            path.unlink(missing_ok=True)


def write_part(path: Path, rows: np.ndarray, columns: Columns, stage: str) -> None:
    """Write a part file: row, dropped and the other columns, in their order."""
    arrow, parquet = require_extra("pyarrow", EXTRA), require_extra("pyarrow.parquet", EXTRA)
    arrays = {"row": arrow.array(rows.astype(np.int32))}
    given = {DROPPED: [None] * len(rows), **columns}
    for name, values in given.items():
        kind = TYPES.get(name)
        made = (
            values if isinstance(values, (arrow.Array, arrow.ChunkedArray)) else arrow.array(values, type=kind and kind(arrow))
        )
        assert len(made) == len(rows), f"{stage}.{name}: {len(made)} values for {len(rows)} rows"
        arrays[name] = made
    with writing(path), atomic_path(path) as temporary:
        parquet.write_table(arrow.table(arrays), temporary, **PARQUET)


# Types that a column of nothing but empty values would not have.
TYPES = {
    DROPPED: lambda arrow: arrow.string(),
    TEXTS: lambda arrow: arrow.list_(arrow.string()),
    "text_reasons": lambda arrow: arrow.list_(arrow.string()),
    "key": lambda arrow: arrow.string(),
    "url": lambda arrow: arrow.string(),
    "meta": lambda arrow: arrow.string(),
    "place": lambda arrow: arrow.int64(),
}


def settings_of(stage: Stage) -> dict[str, Any]:
    """Its settings as a plain tree, as they are read back."""
    return json.loads(json.dumps(to_tree(stage.config)))
