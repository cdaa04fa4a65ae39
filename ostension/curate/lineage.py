"""The lineage of candidates: where each comes from and what every stage found and decided, as one table.

A work folder keeps a file a part for each stage; here they are joined by row. Columns, in this order:

    id            unique and lasting: part times size plus row
    source_key    where the sample lies in the source;  place: its position there (-1 without pictures)
    url, meta     what the source says besides (meta is JSON)
    source_texts  captions as they were read
    match.queries and so on: each stage's columns, null for rows that did not reach it

    match.queries_text            what the numbers in such a column stand for, where the stage says it (`Stage.numbers`)

Of a stage that ran twice the later one has the plain name, as in `Work.columns`; the earlier is "01-filter.x".

Letters: n rows of a part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ostension.curate.base import DROPPED, TEXTS, load_stage
from ostension.curate.work import EXTRA, Entry, Work, alive, read_part, schema_of
from ostension.errors import DataError, require_extra

_FROM_SOURCE = ("key", "place", "url", "meta", TEXTS)  # of the candidates
_NAMES = ("source_key", "place", "url", "meta", "source_texts")
CAPTIONS = "captions"


class Lineage:
    """The joined parts of a work folder.

    Args:
        work: the folder.
        upto: entries to join, the candidates being the first; all by default.

    Raises:
        DataError: if one of them has not ended.
    """

    def __init__(self, work: Work, upto: int | None = None):
        self.work, self.entries = work, work.entries[:upto]
        for entry in self.entries:
            entry.counts()
        later = {entry.name: entry.number for entry in self.entries}
        self._tables: dict[tuple[int, str], Any] = {}
        self._prefix = {
            entry.number: entry.name if later[entry.name] == entry.number else entry.folder.name for entry in self.entries
        }

    def alive(self, number: int) -> np.ndarray:
        """(n,) int32 rows of a part that no stage dropped."""
        return alive(self.entries[-1].part(number))

    def schema(self, number: int) -> Any:
        """The pyarrow schema of `kept` of a part. Where a column has nothing but nulls, its type is null."""
        arrow = require_extra("pyarrow", EXTRA)
        fields = [("id", arrow.int64())]
        for entry in self.entries:
            schema = schema_of(entry.part(number))
            fields += [(new, schema.field(old).type) for new, old in self._own(entry, schema.names)]
            fields += [(f"{new}_text", arrow.list_(arrow.string())) for new, _ in self._numbered(entry, schema.names)]
        return arrow.schema([*fields, (CAPTIONS, arrow.list_(arrow.string()))])

    def name_of(self, entry: Entry) -> str:
        """What the names of a stage's columns begin with."""
        return self._prefix[entry.number]

    def rows(self, number: int, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Some rows of a part, kept or dropped, as Python values, with the last captions that each has."""
        table, captions = self._join(number, np.asarray(rows, np.int32))
        return table.append_column(CAPTIONS, captions).to_pylist()

    def decision(self, number: int, row: int) -> tuple[str | None, str | None]:
        """The stage that dropped a row, and why; None where it is kept."""
        for entry in self.entries:
            table = read_part(entry.part(number), ["row", DROPPED])
            place = int(np.searchsorted(table["row"].to_numpy(), row))
            reason = table[DROPPED][place].as_py() if place < len(table) else None
            if reason is not None:
                return self._prefix[entry.number], reason
        return None, None

    def kept(self, number: int, rows: np.ndarray) -> Any:
        """The lineage of rows that no stage dropped, as a pyarrow table, with their last captions in "captions"."""
        table, captions = self._join(number, rows)
        return table.append_column(CAPTIONS, captions)

    def dropped(self, number: int, rows: np.ndarray | None = None) -> Any:
        """The lineage of rows that were dropped, by default of all, with the stage in "dropped_by" and why in "dropped"."""
        arrow = require_extra("pyarrow", EXTRA)
        found: dict[int, tuple[str, str]] = {}
        for entry in self.entries:
            part = read_part(entry.part(number), ["row", DROPPED])
            gone = part.filter(part[DROPPED].is_valid())
            for row, reason in zip(gone["row"].to_pylist(), gone[DROPPED].to_pylist(), strict=True):
                found[row] = (entry.name, reason)
        rows = np.array(sorted(found), np.int32) if rows is None else rows
        table, _ = self._join(number, rows)
        decisions = [found[row] for row in rows.tolist()]
        for place, name in enumerate(("dropped_by", DROPPED)):
            table = table.append_column(name, arrow.array([decision[place] for decision in decisions], arrow.string()))
        return table

    def _join(self, number: int, rows: np.ndarray) -> tuple[Any, Any]:
        arrow, compute = require_extra("pyarrow", EXTRA), require_extra("pyarrow.compute", EXTRA)
        size = self.work.facts.part_size
        columns = {"id": arrow.array(np.int64(number) * size + rows.astype(np.int64))}
        captions: Any = None
        for entry in self.entries:
            table = read_part(entry.part(number))
            taken = table.take(_places(table["row"].to_numpy(), rows, entry, number)).combine_chunks()
            columns.update({new: taken[old] for new, old in self._own(entry, table.column_names)})
            for new, old in self._numbered(entry, table.column_names):
                columns[f"{new}_text"] = _named(taken[old], self._names(entry, old))
            if TEXTS in table.column_names:  # rows that did not get here keep those that they had
                captions = taken[TEXTS] if captions is None else compute.coalesce(taken[TEXTS], captions)
        return arrow.table(columns), captions

    def _own(self, entry: Entry, names: Sequence[str]) -> list[tuple[str, str]]:
        """The lineage's and a stage's own names of its columns."""
        if entry.number == 0:
            return list(zip(_NAMES, _FROM_SOURCE, strict=True))
        return [(f"{self._prefix[entry.number]}.{name}", name) for name in names if name not in ("row", DROPPED)]

    def _numbered(self, entry: Entry, names: Sequence[str]) -> list[tuple[str, str]]:
        """Those of them that hold numbers of something."""
        numbers = load_stage(entry.name).numbers if entry.number else {}
        return [(new, old) for new, old in self._own(entry, names) if old in numbers]

    def _names(self, entry: Entry, column: str) -> Any:
        """What the numbers in a column stand for, as a pyarrow array."""
        found = self._tables.get((entry.number, column))
        if found is None:
            file, name = load_stage(entry.name).numbers[column]
            found = self._tables[entry.number, column] = read_part(entry.folder / file, [name])[name].combine_chunks()
        return found


def _named(lists: Any, names: Any) -> Any:
    """Lists of numbers as lists of what they stand for."""
    arrow, compute = require_extra("pyarrow", EXTRA), require_extra("pyarrow.compute", EXTRA)
    lists = lists.combine_chunks() if isinstance(lists, arrow.ChunkedArray) else lists
    ends = np.cumsum(compute.fill_null(compute.list_value_length(lists), 0).to_numpy(zero_copy_only=False))
    offsets = arrow.array(np.concatenate([[0], ends]), arrow.int32())
    return arrow.ListArray.from_arrays(offsets, names.take(lists.flatten()), mask=lists.is_null())


def _places(have: np.ndarray, rows: np.ndarray, entry: Entry, number: int) -> Any:
    """Where `rows` lie in a part that has the rows `have`; null where it was not given them."""
    arrow = require_extra("pyarrow", EXTRA)
    if len(have) > 1 and not (np.diff(have) > 0).all():
        raise DataError(
            "damaged: its rows are not in order", source=entry.part(number), fix="remove it and run the stage again"
        )
    places = np.searchsorted(have, rows)
    there = np.zeros(len(rows), bool)
    inside = places < len(have)
    there[inside] = have[places[inside]] == rows[inside]
    return arrow.array(places, mask=~there)


def followed(folder: Path, key: str) -> list[dict[str, Any]]:
    """All that is known of the candidates with a key, in a work folder or in what `curate write` wrote, as JSON trees.

    Raises:
        DataError: if there is none, or the folder is neither.
    """
    compute = require_extra("pyarrow.compute", EXTRA)
    if Work.is_one(folder):
        work = Work(folder)
        entries = [entry for entry in work.entries if entry.done]
        lineage, found = Lineage(work, len(entries)), []
        for number in range(work.num_parts):
            table = read_part(entries[0].part(number), ["row", "key"])
            rows = table.filter(compute.equal(table["key"], key))["row"].to_pylist()
            for row, one in zip(rows, lineage.rows(number, rows), strict=True):
                dropper, reason = lineage.decision(number, row)
                decided = {"decision": "kept"} if dropper is None else {"dropped_by": dropper, "dropped": reason}
                found.append({**one, **decided})
        said = "as in the Parquet or the report, such as 00012/000120007"
    elif (folder / "manifest.json").is_file():
        path = folder / f"{key[:5]}.parquet"
        table = read_part(path) if path.is_file() else None
        keyed = table is not None and "key" in table.column_names
        found = table.filter(compute.equal(table["key"], key)).to_pylist() if table is not None and keyed else []
        said = "the number of a shard and of a pair, such as 000120007"
    else:
        raise DataError("neither a work folder nor a finished output", source=folder, expected="what `curate` made")
    if not found:
        raise DataError(f"no candidate has the key {key!r}", source=folder, expected=said)
    return [{name: plain(value) for name, value in one.items() if value is not None} for one in found]


def plain(value: Any) -> Any:
    """A value that JSON can hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, bytes):
        return value.hex()
    return value if isinstance(value, (str, int, bool)) or value is None else str(value)
