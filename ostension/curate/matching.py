"""Which queries occur in captions: the published sub-string rules, as a plain loop and as a matcher for millions of captions.

Rules, for a caption: control characters (tab, newline, ...) become spaces; `, . ; : ? !` and the back-tick get a space on both
sides; the caption gets one at both ends. An entry matches if " entry " is in it. Capitals count, unless folded. Where an entry
begins or ends with a letter of a script that is written without spaces (Chinese, Japanese, Thai, Lao, Burmese, Khmer, Tibetan),
it needs no space on that side.

Two things the published code leaves open. Entries go through the same rules as captions: as published, "St. Louis" could match
no caption, since each caption has " St .  Louis ". And entries that read the same under the rules ("apple", "Apple", folded)
count as one, the first; else a caption would be kept for each of them.

Source: MetaCLIP (Xu et al. 2024), Algorithm 1, and its released `substr_matching.py`; the edges are of its worldwide release,
to whose scripts kana is added here. Differs: there edges of Western punctuation also need no space.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ostension.curate.match_table import GLUE, ROW, WordTable
from ostension.errors import DataError, require_extra

PUNCTUATION = ",.;:?!`"
# Letters written without spaces between words.
_UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u0f00-\u0fff"  # Tibetan
    "\u1000-\u109f"  # Burmese
    "\u1780-\u17ff"  # Khmer
    "\u2e80-\u2fdf\u2ff0-\u2fff"  # radicals
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # kana, and the marks that stand for a repeated character
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # Han
)
UNSPACED = re.compile(f"[{_UNSPACED}]")
# Between two characters of which one is of such a script, and neither is a space or the end of a caption.
_BETWEEN = re.compile(f"(?<=[{_UNSPACED}])(?=[^ {ROW}])|(?<=[^ {ROW}])(?=[{_UNSPACED}])")
_TO_SPACE = dict.fromkeys(range(32), " ")
_TO_SPACE_BYTES = bytes([0, *[32] * 31, *range(32, 256)])  # but for ROW, which parts captions
CHUNK_LETTERS = 1 << 18  # what is matched at once: temporary arrays stay in the processor's cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """How captions and entries are written before they are compared.

    Attributes:
        case: "kept" tells capitals apart, as published; "folded" does not.
        spaces: "kept" leaves several spaces several, as published; "joined" makes them one, so that "red  car" has "red car"
            and "St.Louis" has "St. Louis".
    """

    case: Literal["kept", "folded"] = "kept"
    spaces: Literal["kept", "joined"] = "kept"

    def text(self, text: str) -> str:
        """A caption as it is searched."""
        return f" {self._written(text)} "

    def entry(self, entry: str) -> str:
        """An entry as it is looked for.

        Raises:
            DataError: if nothing but spaces is left of it.
        """
        inner = self._written(entry).strip(" ")
        if not inner:
            raise DataError(f"the query {entry!r} is empty", expected="a letter, a digit or a mark", fix="take it off the list")
        return ("" if UNSPACED.match(inner[0]) else " ") + inner + ("" if UNSPACED.match(inner[-1]) else " ")

    def _written(self, text: str) -> str:
        text = (text.casefold() if self.case == "folded" else text).translate(_TO_SPACE)
        for mark in PUNCTUATION:
            text = text.replace(mark, f" {mark} ")
        return re.sub(" +", " ", text) if self.spaces == "joined" else text

    def joined(self, texts: Sequence[str], *, cut: bool) -> bytes:
        """Captions as they are searched, in one piece: each ends in ROW between spaces.

        Args:
            cut: mark each place between letters that need no space with GLUE.
        """
        text = ROW.join(texts)
        if text.count(ROW) >= len(texts):  # a caption with a NUL in it
            text = ROW.join(text.replace(ROW, " ") for text in texts)
        if self.case == "folded":
            text = text.casefold()
        data = text.encode("utf-8", "surrogatepass").translate(_TO_SPACE_BYTES)
        for mark in PUNCTUATION.encode():
            data = data.replace(bytes([mark]), bytes([32, mark, 32]))
        while self.spaces == "joined" and b"  " in data:
            data = data.replace(b"  ", b" ")
        if cut and not data.isascii():
            data = _cut(data)
        return b" " + data.replace(ROW.encode(), f" {ROW} ".encode()) + f" {ROW} ".encode()


PUBLISHED = Rules()


@dataclasses.dataclass(frozen=True)
class Matches:
    """The entries of each of n pairs: those of pair i are `entries[starts[i]:starts[i + 1]]`, ascending.

    Attributes:
        starts: (n + 1,) int64.
        entries: int32.
    """

    starts: np.ndarray
    entries: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, pair: int) -> np.ndarray:
        return self.entries[self.starts[pair] : self.starts[pair + 1]]

    @staticmethod
    def of(lists: Sequence[Sequence[int]]) -> Matches:
        """From a list of entries for each pair."""
        sizes = np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))
        flat = itertools.chain.from_iterable(lists)
        return Matches(np.append(0, np.cumsum(sizes)), np.fromiter(flat, dtype=np.int32, count=int(sizes.sum())))

    @staticmethod
    def joined(parts: Sequence[Matches]) -> Matches:
        """All pairs of several, in order."""
        sizes = [np.diff(part.starts) for part in parts]
        entries = [part.entries for part in parts]
        return Matches(
            np.cumsum(np.concatenate([[0], *sizes]), dtype=np.int64), np.concatenate([np.zeros(0, np.int32), *entries])
        )

    @staticmethod
    def from_arrow(column: Any) -> Matches:
        """From a pyarrow array of lists; no list is an empty one."""
        sizes = require_extra("pyarrow.compute", "curate").list_value_length(column).fill_null(0).to_numpy()
        return Matches(np.append(0, np.cumsum(sizes, dtype=np.int64)), column.flatten().to_numpy())

    def to_arrow(self) -> Any:
        """A pyarrow array of lists of int32."""
        arrow = require_extra("pyarrow", "curate")
        return arrow.ListArray.from_arrays(arrow.array(self.starts.astype(np.int32)), arrow.array(self.entries))

    def take(self, kept: np.ndarray) -> Matches:
        """Those of the pairs for which `kept` (n,) is true."""
        sizes = np.diff(self.starts)
        return Matches(np.append(0, np.cumsum(sizes[kept])), self.entries[np.repeat(kept, sizes)])


def match_plain(texts: Sequence[str], entries: Sequence[str], rules: Rules = PUBLISHED) -> list[int]:
    """The numbers of the entries that are in any of a pair's texts, one by one: the reference."""
    spaced = [rules.text(text) for text in texts]
    first: dict[str, int] = {}
    for number, entry in enumerate(entries):
        first.setdefault(rules.entry(entry), number)
    return [number for entry, number in first.items() if any(entry in text for text in spaced)]


class Matcher:
    """All entries in all captions, in one pass: what `match_plain` gives for each pair.

    An entry is a run of words between spaces (a letter of a script without spaces is a word by itself). The runs that begin
    at each word of the captions are looked up in a table of hashes, thousands of captions at a time, and a find counts only
    where the bytes are the same. See docs/decisions/matching.md for what else was measured.

    Args:
        entries: the queries; their places are their numbers.

    Attributes:
        same_as: (entries,) int32: the number that an entry counts under, its own but for those that read the same as an
            earlier one.

    Raises:
        DataError: for an entry of spaces alone.
    """

    def __init__(self, entries: Sequence[str], rules: Rules = PUBLISHED):
        self.rules, self.num_entries = rules, len(entries)
        # Joined entries without spaces at their ends.
        data = re.sub(rb" *\0 *", b"\0", rules.joined(entries, cut=False)).lstrip(b" ") if entries else b""
        if (empty := (b"\0" + data).find(b"\0\0")) >= 0:
            rules.entry(entries[data[:empty].count(0)])  # raises
        data = b" " + data.replace(b"\0", b" \0 ")
        opens = np.zeros((2, len(entries)), dtype=bool)
        # Where all need spaces on both sides, letters without spaces between them are one word, and nothing is to be cut.
        self._cut = not data.isascii() and _find_edges(data, opens)
        if self._cut:
            data = _cut(data)
        self._table = WordTable(data, *opens)
        self.same_as = self._table.same_as

    @property
    def nbytes(self) -> int:
        """Memory that the table takes."""
        return self._table.nbytes

    def match(self, pairs: Sequence[Sequence[str]]) -> Matches:
        """The entries of each pair, once for all its texts together."""
        counts = np.fromiter(map(len, pairs), dtype=np.int64, count=len(pairs))
        owner = np.repeat(np.arange(len(pairs)), counts)
        return self._match([text for texts in pairs for text in texts], owner, len(pairs))

    def match_texts(self, texts: Sequence[str]) -> Matches:
        """The entries of each text."""
        return self._match(texts, np.arange(len(texts)), len(texts))

    def _match(self, texts: Sequence[str], owner: np.ndarray, num_pairs: int) -> Matches:
        letters = np.cumsum(np.fromiter(map(len, texts), dtype=np.int64, count=len(texts)))
        found = [np.zeros(0, dtype=np.int64)]
        start = 0
        while start < len(texts):
            before = letters[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(letters, before + CHUNK_LETTERS, "right")))
            rows, entries = self._table.find(self.rules.joined(texts[start:stop], cut=self._cut))
            found.append(owner[start:stop][rows] << 32 | entries)
            start = stop
        keys = np.concatenate(found)
        keys.sort()
        keys = keys[np.append(True, keys[1:] != keys[:-1])] if len(keys) else keys
        starts = np.searchsorted(keys, np.arange(num_pairs + 1) << 32)
        return Matches(starts, (keys & 0xFFFFFFFF).astype(np.int32))


def _find_edges(data: bytes, opens: np.ndarray) -> bool:
    """Mark in `opens` (2, entries) which entries begin or end with a letter that needs no space; whether any does."""
    text = data.decode("utf-8", "surrogatepass")
    if UNSPACED.search(text) is None:
        return False
    for number, entry in enumerate(text[1:].split(f" {ROW} ")[:-1]):
        opens[:, number] = UNSPACED.match(entry[0]) is not None, UNSPACED.match(entry[-1]) is not None
    return bool(opens.any())


def _cut(data: bytes) -> bytes:
    """Joined texts with GLUE between letters of which one needs no space."""
    return _BETWEEN.sub(GLUE, data.decode("utf-8", "surrogatepass")).encode("utf-8", "surrogatepass")
