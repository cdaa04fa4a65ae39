"""The texts of a chunk, in pieces that fit the processor's cache, with what had to be left out."""

from __future__ import annotations

import collections
import functools
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ostension.curate.queries.corpora import TEXT_COLUMNS, Corpus, Span, ends_of
from ostension.curate.queries.segment import BREAK, Case, joined
from ostension.curate.queries.wikitext import articles, plain
from ostension.errors import DataError, LimitError, require_extra

PIECE_LETTERS = 1 << 18
_BLOCK_BYTES = 1 << 20
_ENDS = (BREAK, ".", ",", "!", "?", ";", ":")  # no word and no pair goes over one
_EMPTY_LINES = re.compile(r"\n[ \t\r]*\n")
_REPLACED = "\ufffd"


class Texts:
    """Reads spans of corpora and counts what it meets.

    Attributes:
        num_texts: texts read.
        num_letters: their letters.
        rejects: what was no text, counted by reason.
    """

    def __init__(self, corpora: Sequence[Corpus], case: Case):
        self.corpora, self.case = corpora, case
        self.num_texts = self.num_letters = 0
        self.rejects: collections.Counter[str] = collections.Counter()

    def pieces(self, span: Span) -> Iterator[str]:
        """The texts of a span, joined as `segment` wants them, in pieces of about `PIECE_LETTERS`."""
        corpus = self.corpora[span.corpus]
        for text in self._texts(corpus, span):
            self.num_letters += len(text)
            start = 0
            while start < len(text):
                end = _cut(text, start)
                yield text[start:end]
                start = end

    def _texts(self, corpus: Corpus, span: Span) -> Iterator[str]:
        if corpus.form == "pairs":
            yield from self._grouped(self._of_pairs(corpus, span))
        elif corpus.form == "parquet":
            yield from self._grouped(self._of_parquet(corpus, span))
        elif corpus.form in ("table", "objects"):
            lines = io.BytesIO(self._data(corpus, span))
            yield from self._grouped(map(json.loads, lines) if corpus.form == "table" else self._of_objects(corpus, lines))
        elif corpus.form == "dump":
            found = articles(self._data(corpus, span), f"{corpus.name} after byte {span.start:,}")
            yield from self._grouped(plain(text).replace("\n", BREAK) for _, text in found)
        else:
            for block in _blocks(self._data(corpus, span), ends_of(corpus.form)):
                text = self._decoded(block, corpus)
                text = _EMPTY_LINES.sub(BREAK, text) if corpus.form == "paragraphs" else text.replace("\n", BREAK)
                self.num_texts += text.count(BREAK) + (not text.endswith(BREAK))
                yield joined([text], self.case)

    def _grouped(self, texts: Iterator[str]) -> Iterator[str]:
        """Texts joined until a piece is full."""
        group: list[str] = []
        size = 0
        for text in texts:
            self.num_texts += 1
            group.append(text)
            size += len(text) + 1
            if size >= PIECE_LETTERS:
                yield joined(group, self.case)
                group, size = [], 0
        if group:
            yield joined(group, self.case)

    def _data(self, corpus: Corpus, span: Span) -> bytes:
        try:
            if span.spool is not None:
                return Path(span.spool).read_bytes()
            with open(corpus.name, "rb") as handle:
                handle.seek(span.start)
                data = handle.read(span.end - span.start)
        except OSError as error:
            raise DataError(f"cannot be read: {(error.strerror or '').lower()}", source=corpus.name) from None
        if len(data) != span.end - span.start:
            raise DataError("changed while in use", source=corpus.name)
        return data

    def _decoded(self, data: bytes, corpus: Corpus) -> str:
        text = data.decode(corpus.reading.encoding, "replace")
        if not text.isascii():
            broken = text.count(_REPLACED)
            self.rejects["bytes in another encoding"] += broken
            if broken > 100 and broken * 200 > len(text):
                what = f"{broken:,} places in {len(text):,} letters are not {corpus.reading.encoding}"
                raise DataError(what, source=corpus.name, fix="name its encoding: --encoding latin-1, for example")
        return text

    def _of_objects(self, corpus: Corpus, lines: Iterable[bytes]) -> Iterator[str]:
        for line in lines:
            line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                tree = json.loads(line.decode(corpus.reading.encoding, "replace"))
            except (ValueError, RecursionError):
                tree = None
            if not isinstance(tree, dict):
                self.rejects["lines that are no JSON object"] += 1
                continue
            names = corpus.columns or [name for name in TEXT_COLUMNS if name in tree][:1]
            yield from self._values([tree.get(name) for name in names])

    def _of_parquet(self, corpus: Corpus, span: Span) -> Iterator[str]:
        parquet, arrow = require_extra("pyarrow.parquet", "curate"), require_extra("pyarrow", "curate")
        try:
            file, groups = parquet.ParquetFile(corpus.name), range(span.start, span.end)
            for batch in file.iter_batches(1 << 13, row_groups=groups, columns=list(corpus.columns), use_threads=False):
                for row in zip(*(batch[name].to_pylist() for name in corpus.columns), strict=True):
                    yield from self._values(row)
        except (arrow.ArrowException, OSError) as error:
            raise DataError(f"damaged: {str(error).split(chr(10), 1)[0]}", source=corpus.name) from None

    def _of_pairs(self, corpus: Corpus, span: Span) -> Iterator[str]:
        source = _source(corpus.name)
        for index in range(span.start, span.end):
            try:
                yield from source.read(index).texts
            except (DataError, LimitError) as error:
                self.rejects[f"pairs that cannot be read ({type(error).__name__})"] += 1

    def _values(self, values: Sequence[Any]) -> Iterator[str]:
        """The texts in the columns of a row; a list in one is several texts."""
        found = [one for value in values for one in (value if isinstance(value, list) else [value])]
        texts = [one for one in found if isinstance(one, str) and one.strip()]
        if not texts:
            self.rejects["rows without a text"] += 1
        yield from texts


def _blocks(data: bytes, ends: Sequence[bytes]) -> Iterator[bytes]:
    """Bytes in blocks that end with a text, or else after a mark."""
    start = 0
    while start < len(data):
        goal = min(len(data), start + _BLOCK_BYTES)
        at = next((place + len(end) for end in ends if (place := data.rfind(end, start, goal)) >= 0), 0)
        if goal == len(data) or not at:
            at = min((place + len(end) for end in ends if (place := data.find(end, goal)) >= 0), default=len(data))
        yield data[start:at]
        start = at


def _cut(text: str, start: int) -> int:
    """Where a piece that begins at `start` ends: after a character that no word and no pair goes over."""
    goal = start + PIECE_LETTERS
    if goal >= len(text):
        return len(text)
    for end in _ENDS:
        place = text.rfind(end, start, goal)
        if place >= 0:
            return place + 1
    places = [place for end in _ENDS if (place := text.find(end, goal)) >= 0]
    return min(places) + 1 if places else len(text)


@functools.lru_cache(maxsize=4)
def _source(name: str) -> Any:
    from ostension.data.open import open_pairs

    return open_pairs(name)
