"""The lineage of candidates: where each comes from and what every stage found and decided, as one table.

A work folder keeps a file a part for each stage; here they are joined by row. Columns, in this order:

    id            unique and lasting: part times size plus row
    source_key    where the sample lies in the source;  place: its position there (-1 without pictures)
    url, meta     what the source says besides (meta is JSON)
    source_texts  captions as they were read
    match.queries and so on: each stage's columns, null for rows that did not reach it

Of a stage that ran twice the later one has the plain name, as in `Work.columns`; the earlier is "01-filter.x".

Letters: n rows of a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ostension.curate.base import DROPPED, TEXTS
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
            names = zip(_NAMES, _FROM_SOURCE, strict=True) if entry.number == 0 else self._own(entry, schema.names)
            fields += [(new, schema.field(old).type) for new, old in names]
        return arrow.schema([*fields, (CAPTIONS, arrow.list_(arrow.string()))])

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
        arrow = require_extra("pyarrow", EXTRA)
        size = self.work.facts.part_size
        columns = {"id": arrow.array(np.int64(number) * size + rows.astype(np.int64))}
        captions: Any = None
        for entry in self.entries:
            table = read_part(entry.part(number))
            taken = table.take(_places(table["row"].to_numpy(), rows, entry, number)).combine_chunks()
            names = zip(_NAMES, _FROM_SOURCE, strict=True) if entry.number == 0 else self._own(entry, table.column_names)
            columns.update({new: taken[old] for new, old in names})
            if TEXTS in table.column_names:
                captions = taken[TEXTS]
        return arrow.table(columns), captions

    def _own(self, entry: Entry, names: Sequence[str]) -> list[tuple[str, str]]:
        """The lineage's and a stage's own names of its columns."""
        return [(f"{self._prefix[entry.number]}.{name}", name) for name in names if name not in ("row", DROPPED)]


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


def find_key(work: Work, key: str) -> Sequence[tuple[int, int]]:
    """The parts and rows with a source key; reads the keys of all parts."""
    import pyarrow.compute as compute

    found = []
    for number in range(work.num_parts):
        table = read_part(work.entries[0].part(number), ["row", "key"])
        hits = table.filter(compute.equal(table["key"], key))
        found += [(number, row) for row in hits["row"].to_pylist()]
    return found
