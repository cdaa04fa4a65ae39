"""Captions to embed as rows of their own: of a list, of a table, or those of pictures.

A caption is a sample like a picture: its id is what a table calls it, PICTURE#NUMBER where a picture has several, or what it
says itself; its bytes are its UTF-8.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ostension.data.pairs import Pair, PairSource, Summary
from ostension.data.picture_lists import ID_COLUMNS, Listed, read_rows
from ostension.data.tables import TEXT_COLUMNS
from ostension.errors import DataError, LimitError, unknown_name
from ostension.files import sha256_json

Row = tuple[str, str, Mapping[str, Any]]  # id, caption, fields


class Captions(Listed):
    """Captions by their ids, with fields; what comes twice under one id with the same words counts once.

    Args:
        problems: samples that could not be read, by their ids, with the reasons.

    Raises:
        DataError: for no caption, or two different ones with one id.
    """

    kind = "texts"

    def __init__(self, rows: Iterable[Row], source: object, problems: Mapping[str, str] | None = None):
        self._rows: dict[str, tuple[str, Mapping[str, Any]]] = {}
        self._source, self._problems = source, dict(problems or {})
        for name, text, fields in rows:
            if self._rows.setdefault(name, (text, fields))[0] != text:
                raise DataError(f"two captions have the id {name!r}", source=source, expected="every id once")
        super().__init__([*self._rows, *self._problems])
        if not self._rows:
            raise DataError("no caption", source=source, expected="texts that are not empty")

    def read(self, index: int) -> Pair:
        name = self.key(index)
        if name in self._problems:
            raise DataError(self._problems[name], source=name)
        text, fields = self._rows[name]
        return Pair(key=name, image=text.encode("utf-8", "surrogateescape"), texts=(text,), meta=dict(fields))

    def fingerprint(self) -> str:
        """A hash of the ids and the captions."""
        return sha256_json(["captions", [[name, text] for name, (text, _) in self._rows.items()]])

    def summary(self) -> Summary:
        num_bytes = sum(len(text) for text, _ in self._rows.values())
        return Summary(num_pairs=len(self), num_bytes=num_bytes, rejects={})


def captions_in_lines(lines: Iterable[str], source: object) -> Captions:
    """The captions of a list with one a line, each its own id."""
    return Captions(((line.strip(), line.strip(), {}) for line in lines if line.strip()), source)


def captions_in_table(path: Path, columns: Sequence[str] = ()) -> Captions:
    """The captions of a CSV, TSV or Parquet table, with its other columns as fields.

    Args:
        columns: those with captions; by default the first usual one. A value may be a list of captions.

    Raises:
        ConfigError: for a column that the table does not have.
        DataError: if it cannot be read, or has no captions.
    """
    rows = read_rows(path, binary=False)
    known = list(dict.fromkeys(name for row in rows for name in row))
    unknown = next((name for name in columns if name not in known), None)
    if unknown is not None:
        raise unknown_name("column", unknown, known, source=path)
    wanted = list(columns) or [name for name in TEXT_COLUMNS if name in known][:1]
    if not wanted:
        usual = ", ".join(map(repr, TEXT_COLUMNS))
        raise DataError(f"no column of captions among {', '.join(known)}", source=path, expected=usual, fix="or --text-columns")
    ids = next((name for name in ID_COLUMNS if name not in wanted and _names_rows([row.get(name) for row in rows])), None)
    found: list[Row] = []
    for row in rows:
        spoken = [text for name in wanted for text in _texts(row.pop(name, None))]
        name = None if ids is None else str(row.pop(ids))
        found += [(one, text, row) for one, text in _named(name, spoken)]
    return Captions(found, path)


def captions_of(source: PairSource, place: object) -> Captions:
    """The captions of pictures; one of several has a number behind the picture's id."""
    rows: list[Row] = []
    problems: dict[str, str] = {}
    for index in range(len(source)):
        try:
            pair = source.read(index)
        except (DataError, LimitError) as error:
            problems[source.key(index)] = error.what
            continue
        rows += [(one, text, pair.meta) for one, text in _named(pair.key, _texts(list(pair.texts)))]
    return Captions(rows, place, problems)


def _texts(value: Any) -> list[str]:
    """The captions in a value, without those that are empty or were there before."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return list(dict.fromkeys(text for one in values if one is not None and (text := str(one).strip())))


def _named(name: str | None, texts: Sequence[str]) -> list[tuple[str, str]]:
    if name is None:
        return [(text, text) for text in texts]
    return [(name if len(texts) == 1 else f"{name}#{number}", text) for number, text in enumerate(texts)]


def _names_rows(values: Sequence[Any]) -> bool:
    return all(isinstance(value, (str, int)) for value in values) and len(set(map(str, values))) == len(values)
