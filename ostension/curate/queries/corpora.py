"""Corpora of any size as chunks of about equal size, each of which can be read on its own.

What is cut, and where, follows from the files and the chunk size alone. Files that can be read from anywhere (plain lines, JSON
lines, dumps, Parquet by row groups, pairs by number) are cut by looking at a few bytes around each cut; packed files and tables
with quoted lines are read through once, and each chunk of them lies in a file of its own while it is counted.
"""

from __future__ import annotations

import codecs
import collections
import csv
import dataclasses
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from ostension.curate.queries.packed import MAX_LINE, is_packed, unpacked
from ostension.data.open import EMBEDDED, expand, open_pairs
from ostension.errors import ConfigError, DataError, LimitError, require_extra, unknown_name
from ostension.files import sha256_file, sha256_json, write_bytes

Form = Literal["lines", "paragraphs", "objects", "table", "parquet", "dump", "pairs", "strings"]
EXTRA = "curate"
CHUNK_BYTES = 32_000_000
TEXT_COLUMNS = ("text", "caption", "captions", "texts", "txt", "title")
_FORMS: dict[str, Form] = {
    ".jsonl": "objects", ".ndjson": "objects", ".csv": "table", ".tsv": "table", ".parquet": "parquet", ".xml": "dump",
}  # fmt: skip
_ENDS = {
    "dump": (b"</page>",), "objects": (b"\n",), "lines": (b"\n", b".", b",", b"!", b"?"), "paragraphs": (b"\n\n", b".", b","),
}  # fmt: skip
_PAIR_BYTES = 200  # of the captions of a pair, about


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """How corpora are read.

    Attributes:
        columns: what holds the texts in tables, Parquet and JSON lines; by default the first of the usual names.
        encoding: of text files; what is not in it is counted, and breaks a word.
        wrapped: lines of text files belong together until an empty one; by default each line is a text of its own.
    """

    columns: tuple[str, ...] = ()
    encoding: str = "utf-8"
    wrapped: bool = False

    def __post_init__(self):
        try:
            known = codecs.lookup(self.encoding).name
        except LookupError:
            expected = "one that Python knows, such as utf-8 or latin-1"
            raise ConfigError(f"encoding is {self.encoding!r}", expected=expected) from None
        if known.startswith(("utf-16", "utf-32")):
            raise ConfigError(f"encoding is {self.encoding!r}", expected="single-byte line ends", fix="convert to UTF-8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """One file (or one source of pairs) of texts, as it was when it was looked at.

    Attributes:
        name: its path, or what `open_pairs` is to open.
        columns: of a table or Parquet file, those with texts.
        digest: SHA-256 of the file, or the fingerprint of the pairs.
        size: bytes of the file, or the number of pairs.
    """

    name: str
    form: Form
    packed: bool
    reading: Reading
    columns: tuple[str, ...]
    digest: str
    size: int


@dataclasses.dataclass(frozen=True)
class Span:
    """A piece of corpus number `corpus`: bytes, rows, row groups or pairs from `start` to `end`.

    Attributes:
        spool: the file that holds it, where it cannot be read from its own.
    """

    corpus: int
    start: int
    end: int
    spool: str | None = None


@dataclasses.dataclass(frozen=True)
class Chunk:
    """What is counted at once."""

    number: int
    spans: tuple[Span, ...]


def open_corpora(names: Sequence[str], reading: Reading) -> list[Corpus]:
    """The corpora that a user names, hashed: files, folders of files, work folders of a curation, sources of pairs.

    Raises:
        DataError: for what is missing, empty, or no text.
        ConfigError: for a column that is not there.
    """
    found = [corpus for name in names for corpus in _opened(name, reading)]
    places = [corpus.name if corpus.form == "pairs" else os.path.realpath(corpus.name) for corpus in found]
    for place, count in collections.Counter(places).items():
        if count > 1:
            raise DataError("listed twice", source=place, fix="list each corpus once")
    return found


def plan(corpora: Sequence[Corpus], spool: Path, done: frozenset[int], chunk_bytes: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """All chunks in order but those that are `done`; small pieces share one, what has to be unpacked goes into `spool`."""
    pieces: list[tuple[Span, bytes | None]] = []
    number = size = 0
    for place, corpus in enumerate(corpora):
        for span, num_bytes, data in _pieces(place, corpus, chunk_bytes):
            if pieces and size + num_bytes > chunk_bytes:
                yield from _chunk(number, pieces, spool, done)
                number, pieces, size = number + 1, [], 0
            pieces.append((span, data))
            size += num_bytes
    if pieces:
        yield from _chunk(number, pieces, spool, done)


def _chunk(number: int, pieces: list[tuple[Span, bytes | None]], spool: Path, done: frozenset[int]) -> Iterator[Chunk]:
    if number in done:
        return
    spans = []
    for place, (span, data) in enumerate(pieces):
        if data is not None:
            path = spool / f"{number:06d}-{place:06d}"
            write_bytes(path, data)
            span = dataclasses.replace(span, spool=str(path))
        spans.append(span)
    yield Chunk(number, tuple(spans))


def _opened(name: str, reading: Reading) -> Iterator[Corpus]:
    path = Path(name)
    if name.partition(":")[0] == EMBEDDED and not path.exists():
        yield _pairs(name, reading)
        return
    if not path.exists():
        if "://" in name or "::" in name:
            yield _pairs(name, reading)
            return
        if any(letter in name for letter in "*?[{"):
            places = [str(place) for place in expand(name)]
            if any(place.endswith(".tar") for place in places):
                yield _pairs(name, reading)
                return
            yield from (corpus for place in places for corpus in _opened(place, reading))
            return
        raise DataError("no such file", source=name, expected="a corpus: a file, a folder, or a source of pairs")
    if path.is_file():
        yield _pairs(name, reading) if path.suffix.lower() == ".tar" else _file(path, reading)
        return
    if (path / "curation.json").is_file():
        parts = sorted((path / "00-candidates").glob("part-*.parquet"))
        reading = dataclasses.replace(reading, columns=("texts",))
    else:
        if next(path.glob("*.tar"), None) is not None:
            yield _pairs(name, reading)
            return
        inside = [found for found in path.rglob("*") if found.is_file() and not found.name.startswith(".")]
        parts = sorted(found for found in inside if _is_text(found))
    if not parts:
        raise DataError("no file with text in this folder", source=name, expected="text, tables, Parquet, dumps or pairs")
    yield from (_file(part, reading) for part in parts)


def _pairs(name: str, reading: Reading) -> Corpus:
    source = open_pairs(name)
    return Corpus(
        name=name, form="pairs", packed=False, reading=reading, columns=(), digest=source.fingerprint(), size=len(source)
    )  # fmt: skip


def _file(path: Path, reading: Reading) -> Corpus:
    form, packed = form_of(path), is_packed(path)
    if form == "lines" and reading.wrapped:
        form = "paragraphs"
    if packed and form == "parquet":
        raise DataError("packed Parquet", source=path, fix="unpack it: it is packed inside")
    columns: tuple[str, ...] = ()
    if form in ("table", "parquet"):
        there = _table_columns(path, reading) if form == "table" else list(_parquet(path).schema_arrow.names)
        columns = tuple(_column(there, column, path) for column in reading.columns or (None,))
    elif form == "objects":
        columns = reading.columns
    if form in ("lines", "paragraphs", "dump"):
        _check_text(path, form)
    return Corpus(
        name=str(path), form=form, packed=packed, reading=reading, columns=columns, digest=_digest(path, columns, form),
        size=path.stat().st_size,
    )  # fmt: skip


def _column(there: Sequence[str], wanted: str | None, path: Path) -> str:
    """The column that is wanted, or the first of the usual names."""
    if wanted is not None and wanted not in there:
        raise unknown_name("column", wanted, there, source=path)
    found = wanted or next((name for name in TEXT_COLUMNS if name in there), None)
    if found is None:
        known = f"one of {', '.join(map(repr, TEXT_COLUMNS))}"
        listed = ", ".join(repr(name[:40]) for name in there)
        raise ConfigError(f"no column of texts among {listed}", source=path, expected=known, fix="or name it with --columns")
    return found


def _digest(path: Path, columns: tuple[str, ...], form: Form) -> str:
    try:
        digest = sha256_file(path)
    except OSError as error:
        raise DataError(f"cannot be read: {(error.strerror or '').lower()}", source=path) from None
    return digest if not columns else sha256_json([digest, list(columns)])


def form_of(path: Path) -> Form:
    """What a file is by its name, whether packed or not; text in lines where the name says nothing."""
    name = Path(path.name.lower())
    if name.suffix in (".gz", ".bz2", ".xz", ".zst"):
        name = name.with_suffix("")
    return _FORMS.get(name.suffix, "lines")


def ends_of(form: Form) -> tuple[bytes, ...]:
    """After which bytes a file may be cut, best first: no word and no pair goes over one."""
    return _ENDS[form]


def _is_text(path: Path) -> bool:
    named = Path(path.name.lower().removesuffix(".gz").removesuffix(".bz2").removesuffix(".xz").removesuffix(".zst"))
    return named.suffix in (*_FORMS, ".txt", ".text", ".md", ".rst")


def _check_text(path: Path, form: Form) -> None:
    with unpacked(path) as stream:
        head = stream.read(1 << 12)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head[:1024]:
        raise DataError("no text that can be read (it has zero bytes)", source=path, expected="text in UTF-8", fix="convert it")
    if form == "dump":
        if b"<!DOCTYPE" in head or b"<!ENTITY" in head:
            raise DataError("it has a document type, which dumps have not", source=path, expected="a MediaWiki dump")
        if b"<mediawiki" not in head:
            raise DataError("XML that is no MediaWiki dump", source=path, expected="a file that begins with <mediawiki>")


def _parquet(path: Path) -> Any:
    parquet, arrow = require_extra("pyarrow.parquet", EXTRA), require_extra("pyarrow", EXTRA)
    try:
        return parquet.ParquetFile(path)
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"no Parquet file: {str(error).split(chr(10), 1)[0]}", source=path) from None


def _pieces(place: int, corpus: Corpus, chunk_bytes: int) -> Iterator[tuple[Span, int, bytes | None]]:
    """The pieces of a corpus: span, about how many bytes, and the data where it cannot be read from its file."""
    if corpus.form == "pairs":
        step = max(1, chunk_bytes // _PAIR_BYTES)
        for start in range(0, corpus.size, step):
            end = min(corpus.size, start + step)
            yield Span(place, start, end), (end - start) * _PAIR_BYTES, None
    elif corpus.form == "parquet":
        yield from _row_groups(place, corpus)
    elif corpus.form == "table":
        yield from _table_rows(place, corpus, chunk_bytes)
    elif corpus.packed:
        with unpacked(Path(corpus.name)) as stream:
            yield from _unpacked(place, corpus, stream, chunk_bytes)
    else:
        with open(corpus.name, "rb") as handle:
            for start, end in _cuts(handle, corpus, chunk_bytes):
                yield Span(place, start, end), end - start, None


def _cuts(handle: Any, corpus: Corpus, chunk_bytes: int) -> Iterator[tuple[int, int]]:
    """Where an open file is cut: after the first end of a text that follows each `chunk_bytes`."""
    start = 0
    while start < corpus.size:
        goal = start + chunk_bytes
        if goal >= corpus.size:
            yield start, corpus.size
            return
        handle.seek(goal)
        end, window, size = 0, b"", 1 << 16
        while not end and len(window) < MAX_LINE:
            more = handle.read(size)
            window, size = window + more, size * 2
            # Each kind of end is looked for in 64 kB, in 128 kB and so on, so that lines end chunks where there are any.
            end = next((at + len(mark) for mark in _ENDS[corpus.form] if (at := window.find(mark)) >= 0), 0)
            if not more:
                end = end or len(window)
                break
        if not end:
            raise _too_long(corpus, goal)
        yield start, goal + end
        start = goal + end


def _too_long(corpus: Corpus, place: int) -> LimitError:
    what = f"no end of a text in {MAX_LINE:,} bytes after byte {place:,}"
    return LimitError(what, source=corpus.name, expected="shorter texts")


def _unpacked(place: int, corpus: Corpus, stream: Any, chunk_bytes: int) -> Iterator[tuple[Span, int, bytes]]:
    start, rest = 0, b""
    while True:
        more = stream.read(chunk_bytes)
        data = rest + more
        if not more:
            if data:
                yield Span(place, start, start + len(data)), len(data), data
            return
        cut = next((at + len(mark) for mark in _ENDS[corpus.form] if (at := data.rfind(mark)) >= 0), 0)
        rest = data[cut:]
        if len(rest) > MAX_LINE:
            raise _too_long(corpus, start + cut)
        if cut:
            yield Span(place, start, start + cut), cut, data[:cut]
            start += cut


def _row_groups(place: int, corpus: Corpus) -> Iterator[tuple[Span, int, None]]:
    footer = _parquet(Path(corpus.name)).metadata
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        columns = [group.column(place) for place in range(group.num_columns)]
        size = sum(one.total_uncompressed_size for one in columns if one.path_in_schema.partition(".")[0] in corpus.columns)
        yield Span(place, number, number + 1), size, None


def _table_rows(place: int, corpus: Corpus, chunk_bytes: int) -> Iterator[tuple[Span, int, bytes]]:
    """The texts of a table, as JSON lines."""
    lines: list[str] = []
    start = row_number = size = 0
    for row in table_texts(corpus):
        row_number += 1
        for text in row:
            lines.append(json.dumps(text))
            size += len(lines[-1]) + 1
        if size >= chunk_bytes:
            yield Span(place, start, row_number), size, "\n".join(lines).encode("ascii")
            lines, start, size = [], row_number, 0
    if lines:
        yield Span(place, start, row_number), size, "\n".join(lines).encode("ascii")


def table_texts(corpus: Corpus) -> Iterator[list[str]]:
    """The texts of each row of a table that are not empty."""
    path = Path(corpus.name)
    with _rows(path, corpus.reading) as rows:
        header = next(rows)
        places = [header.index(column) for column in corpus.columns]
        try:
            for row in rows:
                if len(row) != len(header):
                    what = f"line {rows.line_num} has {len(row)} fields"
                    raise DataError(what, source=path, expected=f"{len(header)}, as the header has")
                yield [row[place] for place in places if row[place].strip()]
        except csv.Error as error:
            raise DataError(f"not a table: {error} (line {rows.line_num})", source=path) from None


def _table_columns(path: Path, reading: Reading) -> list[str]:
    with _rows(path, reading) as rows:
        header = next(rows, None)
    if header is None:
        raise DataError("an empty table", source=path, expected="a header line and a row for each text")
    return header


class _rows:
    """While entered, the rows of a table that may be packed."""

    def __init__(self, path: Path, reading: Reading):
        self._stream = unpacked(path)
        encoding = "utf-8-sig" if reading.encoding.lower().replace("_", "-") in ("utf-8", "utf8") else reading.encoding
        lines = io.TextIOWrapper(self._stream, encoding=encoding, errors="replace", newline="")
        self._tabs = ".tsv" in [suffix.lower() for suffix in path.suffixes]
        self._lines = lines

    def __enter__(self) -> Any:
        csv.field_size_limit(MAX_LINE)
        return csv.reader(self._lines, delimiter="\t", quoting=csv.QUOTE_NONE) if self._tabs else csv.reader(self._lines)

    def __exit__(self, *_: object) -> None:
        self._lines.close()


def sizes(corpora: Sequence[Corpus]) -> int:
    """Bytes on the disk of all corpora that are files."""
    return sum(corpus.size for corpus in corpora if corpus.form != "pairs" and os.path.exists(corpus.name))
