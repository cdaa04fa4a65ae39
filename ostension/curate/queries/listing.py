"""A query list: texts in order, where each came from, and the files that hold such lists."""

from __future__ import annotations

import collections
import csv
import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ostension.errors import DataError, require_extra
from ostension.files import atomic_path, read_json, sha256_json

EXTRA = "curate"
COLUMNS = ("query", "origin", "count", "score", "rank")
NAMES = ("query", "text", "entry", "name")  # by which tables call their queries
UNKNOWN = "list"  # the origin of queries of which nothing is known
# MetaCLIP's multilingual metadata is a table from entry to one of these letters; integers have none.
_METACLIP = {"": "integers", "w": "wordnet", "u": "words", "b": "bigrams", "t": "titles"}
_METADATA = b"ostension"
MAX_LETTERS = 1_000


@dataclasses.dataclass(frozen=True)
class Queries:
    """Different texts in a fixed order; the place of one is its number everywhere.

    Attributes:
        texts: the queries.
        origins: of each, the group that it came from ("words", "bigrams", "titles", "wordnet", "integers", "list", ...).
        counts: how often each was seen in the corpus (views for titles); -1 where nothing was counted.
        scores: what its group ranks by beside the count (bi-grams); nan where there is nothing.
        ranks: place in its group, from 1.
        facts: how the list was made: settings, corpora with hashes, counts of each group, thresholds in force.

    Raises:
        DataError: for texts that can be no queries (see `check`), or columns of another length.
    """

    texts: list[str]
    origins: list[str]
    counts: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.int64))
    scores: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0))
    ranks: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.int64))
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    source: object = dataclasses.field(default=None, compare=False, repr=False)

    def __post_init__(self):
        check(self.texts, self.source)
        if not len(self.counts):
            object.__setattr__(self, "counts", np.full(len(self.texts), -1, np.int64))
        if not len(self.scores):
            object.__setattr__(self, "scores", np.full(len(self.texts), np.nan))
        if not len(self.ranks):
            object.__setattr__(self, "ranks", _ranks(self.origins))
        for name in ("origins", "counts", "scores", "ranks"):
            if len(getattr(self, name)) != len(self.texts):
                what = f"{len(self.texts)} queries and {len(getattr(self, name))} {name}"
                raise DataError(what, source=self.source, expected="as many of both")

    def __len__(self) -> int:
        return len(self.texts)

    def fingerprint(self) -> str:
        """A hash of the texts in their order, which is all that matching depends on."""
        return sha256_json(["queries", self.texts])

    def by_origin(self) -> dict[str, int]:
        """How many queries each group gave, in the order in which the groups come."""
        return dict(collections.Counter(self.origins))

    def save(self, path: str | os.PathLike) -> None:
        """Write the list as Parquet; the facts lie in the schema's metadata, as JSON under "ostension"."""
        pa = require_extra("pyarrow", EXTRA)
        parquet = require_extra("pyarrow.parquet", EXTRA)
        columns = {
            "query": pa.array(self.texts, pa.string()),
            "origin": pa.array(self.origins, pa.string()).dictionary_encode(),
            "count": pa.array(self.counts, pa.int64(), mask=np.asarray(self.counts) < 0),
            "score": pa.array(self.scores, pa.float64(), mask=np.isnan(self.scores)),
            "rank": pa.array(self.ranks, pa.int64()),
        }
        facts = json.dumps(self.facts, ensure_ascii=False, sort_keys=True, allow_nan=False).encode("utf-8")
        table = pa.table(columns).replace_schema_metadata({_METADATA: facts})
        with atomic_path(path) as temporary:
            parquet.write_table(table, temporary, compression="zstd")


def read_queries(path: str | os.PathLike, *, clean: bool = False) -> Queries:
    """The queries in a file.

    Args:
        path: .parquet (as `ostension curate queries` writes it, or any with a column of queries), .txt (a query a line),
            .json (a list, as MetaCLIP's metadata.json, or its table from entry to origin), .csv or .tsv with a header.
        clean: mend what can be mended: white space becomes single spaces, empty and repeated ones go. By default a list has
            to be clean, for two lists that differ in what was mended silently are hard to tell apart.

    Raises:
        DataError: if the file cannot be read, or holds something that can be no query; one line says what and where.
        MissingExtraError: for Parquet without pyarrow.
    """
    path = Path(path)
    readers = {".parquet": _read_parquet, ".txt": _read_lines, ".json": _read_json, ".csv": _read_table, ".tsv": _read_table}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"a list of queries ending in {path.suffix!r}", source=path, expected=", ".join(readers))
    if not path.is_file():
        raise DataError("no such file", source=path, expected="a list of queries")
    columns = reader(path)
    if clean:
        columns = cleaned(columns)
    return Queries(**columns, source=path)


def check(texts: Sequence[str], source: object) -> None:
    """Refuse what can be no list of queries, naming the first that is wrong and how many are.

    Raises:
        DataError: for an empty list; empty, repeated or very long queries; white space that is not one space between two
            words; control characters.
    """
    if not texts:
        raise DataError("no queries", source=source, expected="at least one")
    kinds = {
        "empty queries": lambda text: not text.strip(),
        "queries with control characters": has_controls,
        "queries with white space at the ends or twice": lambda text: text != " ".join(text.split()),
        f"queries of more than {MAX_LETTERS} letters": lambda text: len(text) > MAX_LETTERS,
    }
    wrong = {kind: [place for place, text in enumerate(texts) if is_wrong(text)] for kind, is_wrong in kinds.items()}
    seen: dict[str, int] = {}
    repeated = [place for place, text in enumerate(texts) if seen.setdefault(text, place) != place]
    for kind, places in {**wrong, "repeated queries": repeated}.items():
        if places:
            first = f"the first is number {places[0] + 1}, {texts[places[0]][:80]!r}"
            again = f", which is number {seen[texts[places[0]]] + 1} too" if kind == "repeated queries" else ""
            fix = "mend the list, or read it with clean=True (`ostension curate queries --add` does)"
            raise DataError(f"{len(places):,} {kind}; {first}{again}", source=source, fix=fix)


def cleaned(columns: Mapping[str, Any]) -> dict[str, Any]:
    """The columns without queries that are empty, too long, hold control characters or were there before; spaces single."""
    texts = [" ".join(text.split()) for text in columns["texts"]]
    seen: set[str] = set()
    kept = []
    for place, text in enumerate(texts):
        if text and text not in seen and not has_controls(text) and len(text) <= MAX_LETTERS:
            seen.add(text)
            kept.append(place)
    found: dict[str, Any] = {"texts": [texts[place] for place in kept]}
    for name, values in columns.items():
        if isinstance(values, np.ndarray):
            found[name] = values[kept]
        elif isinstance(values, list) and name != "texts":
            found[name] = [values[place] for place in kept]
        elif name != "texts":
            found[name] = values
    return found


def has_controls(text: str) -> bool:
    """Whether a text has control characters; white space among them is the matter of another rule."""
    return not text.isprintable() and any((ord(one) < 32 or 127 <= ord(one) < 160) and not one.isspace() for one in text)


def _ranks(origins: Iterable[str]) -> np.ndarray:
    counts: collections.Counter[str] = collections.Counter()
    ranks = []
    for origin in origins:
        counts[origin] += 1
        ranks.append(counts[origin])
    return np.array(ranks, np.int64)


def _as_list(texts: list[Any], path: Path) -> dict[str, Any]:
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"query number {place + 1} is {str(text)[:80]!r}, not a text", source=path)
    return {"texts": texts, "origins": [UNKNOWN] * len(texts)}


def _read_lines(path: Path) -> dict[str, Any]:
    lines = _text_of(path).split("\n")
    return _as_list([line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)], path)


def _read_json(path: Path) -> dict[str, Any]:
    tree = read_json(path)
    if isinstance(tree, dict) and all(isinstance(value, str) for value in tree.values()):
        found = _as_list(list(tree), path)
        return {**found, "origins": [_METACLIP.get(value, value) for value in tree.values()]}
    if not isinstance(tree, list):
        expected = "a list of texts, or a table from text to origin"
        raise DataError(f"a JSON {type(tree).__name__}", source=path, expected=expected)
    return _as_list(tree, path)


def _read_table(path: Path) -> dict[str, Any]:
    tabs = path.suffix.lower() == ".tsv"
    lines = _text_of(path).splitlines()
    try:
        rows = list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(lines, strict=True))
    except csv.Error as error:
        raise DataError(f"not a table: {error}", source=path) from None
    header = rows[0] if rows else []
    column = header.index(_column(header, path))
    if any(len(row) != len(header) for row in rows):
        line = next(number for number, row in enumerate(rows) if len(row) != len(header))
        what = f"row {line + 1} has {len(rows[line])} fields"
        raise DataError(what, source=path, expected=f"{len(header)}, as the header has")
    found = _as_list([row[column] for row in rows[1:]], path)
    if "origin" in header:
        found["origins"] = [row[header.index("origin")] for row in rows[1:]]
    return found


def _read_parquet(path: Path) -> dict[str, Any]:
    parquet = require_extra("pyarrow.parquet", EXTRA)
    arrow = require_extra("pyarrow", EXTRA)
    try:
        table = parquet.read_table(path)
    except (OSError, arrow.ArrowInvalid) as error:
        raise DataError(f"cannot be read as Parquet: {error}", source=path) from None
    found = _as_list(table[_column(table.column_names, path)].to_pylist(), path)
    if "origin" in table.column_names:
        found["origins"] = table["origin"].to_pylist()
    for name, empty, key in (("count", -1, "counts"), ("score", float("nan"), "scores"), ("rank", -1, "ranks")):
        if name in table.column_names:
            found[key] = table[name].combine_chunks().fill_null(empty).to_numpy(zero_copy_only=False)
    facts = (table.schema.metadata or {}).get(_METADATA)
    return {**found, "facts": json.loads(facts)} if facts else found


def _column(names: Sequence[str], path: Path) -> str:
    for name in NAMES:
        if name in names:
            return name
    expected = f"one of {', '.join(map(repr, NAMES))}"
    raise DataError(f"no column of queries among {', '.join(map(repr, names)) or 'none'}", source=path, expected=expected)


def _text_of(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at byte {error.start}", source=path, expected="a list of queries in UTF-8") from None
    except OSError as error:
        raise DataError(f"cannot be read: {(error.strerror or '').lower()}", source=path) from None
