"""What is known of each row of a set, looked up by field: for filters, and to show with a hit.

A field's different values are kept once, with the rows that have each, so that a filter tests each value once, whatever the
number of rows. A field is read when it is first asked for. Letters: N rows, M values of a field in all rows.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ostension.errors import DataError, unknown_name
from ostension.store.rows import BLOCK_ROWS
from ostension.store.sets import EmbeddingSet
from ostension.store.where import ALIASES

LISTS, OBJECT = ("labels", "texts"), "fields"  # columns that hold JSON lists, and the one that holds a JSON object


class _Field:
    """The different values of a field, and for each occurrence its row and which value it is."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._places: dict[tuple[type, Any], int] = {}
        self._rows: list[int] = []
        self._codes: list[int] = []

    def add(self, row: int, value: Any) -> None:
        key = (type(value), value)
        place = self._places.setdefault(key, len(self.values))
        if place == len(self.values):
            self.values.append(value)
        self._rows.append(row)
        self._codes.append(place)

    def close(self) -> None:
        self.rows, self.codes = np.array(self._rows, np.int64), np.array(self._codes, np.int64)
        del self._places, self._rows, self._codes

    def where(self, count: int, test: Callable[[Any], bool]) -> np.ndarray:
        passed = np.fromiter((test(value) for value in self.values), bool, len(self.values))
        mask = np.zeros(count, bool)
        if len(self.values):
            mask[self.rows[passed[self.codes]]] = True
        return mask


class Facts:
    """Fields of the rows of a set; several threads may ask at once."""

    def __init__(self, opened: EmbeddingSet):
        self.opened = opened
        self._fields: dict[str, _Field] | None = None  # of the JSON object
        self._columns: dict[str, _Field] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """The fields that a filter may ask for."""
        own = [name for name in self.opened.columns if name != OBJECT]
        aliases = [alias for alias, name in ALIASES.items() if name in own]
        return sorted({*own, *aliases, *self._of_object()})

    def rows_where(self, field: str, test: Callable[[Any], bool]) -> np.ndarray:
        """(N,) True where one of a row's values of a field passes a test.

        Raises:
            ConfigError: for a field that no row has, with the nearest ones.
        """
        return self._find(field).where(len(self.opened), test)

    def _find(self, name: str) -> _Field:
        with self._lock:
            if name != OBJECT and name in self.opened.columns:
                return self._column(name)
            fields = self._of_object()
            if name in fields:
                return fields[name]
            if ALIASES.get(name) in self.opened.columns:
                return self._column(ALIASES[name])
        if not len(self.opened):
            return _closed(_Field())  # nothing is known, and nothing passes
        raise unknown_name("field", name, self.names(), source=self.opened.folder)

    def _column(self, name: str) -> _Field:
        if name not in self._columns:
            found = _Field()
            for start, values in self._read(name):
                for row, value in enumerate(values, start):
                    if name in LISTS:
                        for one in _loaded(value, self.opened):
                            found.add(row, one)
                    else:
                        found.add(row, value)
            self._columns[name] = _closed(found)
        return self._columns[name]

    def _of_object(self) -> dict[str, _Field]:
        if self._fields is None:
            fields: dict[str, _Field] = {}
            if OBJECT in self.opened.columns:
                for start, values in self._read(OBJECT):
                    for row, text in enumerate(values, start):
                        for name, value in leaves(_loaded(text, self.opened), ""):
                            fields.setdefault(name, _Field()).add(row, value)
            self._fields = {name: _closed(field) for name, field in fields.items()}
        return self._fields

    def _read(self, name: str) -> Iterator[tuple[int, list[Any]]]:
        for start in range(0, len(self.opened), BLOCK_ROWS):
            values = self.opened.column(name, range(start, min(start + BLOCK_ROWS, len(self.opened))))
            yield start, values if isinstance(values, list) else values.tolist()

    def of(self, rows: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """All that is known of some rows: columns (lists as such) and the JSON fields among them, without the id."""
        rows = np.asarray(rows, dtype=np.int64)
        found: list[dict[str, Any]] = [{} for _ in rows]
        if not len(rows):
            return found
        for name in self.opened.columns:
            if name == "id":
                continue
            values = self.opened.column(name, rows)
            for entry, value in zip(found, values if isinstance(values, list) else values.tolist(), strict=True):
                if name == OBJECT:
                    for key, inner in _loaded(value, self.opened).items():
                        entry.setdefault(key, inner)  # a column of the set wins, as it does in a filter
                else:
                    entry[name] = _loaded(value, self.opened) if name in LISTS else value
        return found


def _closed(field: _Field) -> _Field:
    field.close()
    return field


def _loaded(text: str, opened: EmbeddingSet) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise DataError(f"a row's column is not JSON: {text[:40]!r}", source=opened.folder) from None


def leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Names with dots, and values, of all that is not an object or a list."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, name)
    elif value is not None:
        yield name, value
