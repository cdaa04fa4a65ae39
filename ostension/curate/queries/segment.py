"""Words of a text, and which of them stand together: what is counted, and why.

Captions are matched by " query " in a text in which `, . ; : ? !` and the back-tick have spaces put around them, so a word is
what can be found that way:

- a run of letters, digits, combining marks and signs such as $, ° or emoji, in any script;
- with single apostrophes, hyphens, `&`, `/`, `_` between two of those: `dog's`, `t-shirt`, `AT&T`, `and/or`;
- all other punctuation is no part of a word, and quotes or brackets around one are not counted with it.

Two words are a pair only where nothing but white space is between them: "in Paris, France" has the pair (in, Paris) alone,
since a query "Paris France" would not be found there. Texts are brought into Unicode's composed form (NFC) first.

There is no knowledge of any language. Chinese characters count one by one, and neighbouring ones are pairs, written without a
space; in other scripts without spaces (Thai, Lao, Khmer, Burmese) a whole clause is one word.

All of this is done on arrays of characters, some 150 ns a word.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from ostension.errors import require_extra

if TYPE_CHECKING:
    import pyarrow as pa

Case = Literal["kept", "folded"]
RULE = 1  # of this file's rules; counts of another number are counted again
MAX_LETTERS = 64  # of a word; longer runs are addresses, keys and clauses of scripts without spaces
BREAK = "\0"  # between two texts
_SPACE, _OTHER, _JOINER, _WORD, _ALONE = range(5)
_COMPOSES = 0x80  # beside the kind: with it, the composed form of a text may be another one
_JOINERS = "'\u2019-\u2010\u2011&/_\u00b7\u00ad\u200c\u200d"  # with the soft hyphen and the two (non-)joiners of scripts
_MARKS = "`\ufffd"  # signs by category, but the matcher's mark and the sign for broken text
_HAN = ((0x3005, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF))


@dataclasses.dataclass(frozen=True)
class Segmented:
    """The words of a piece of text.

    Attributes:
        vocabulary: the different words, as a binary Arrow array in UTF-8.
        ids: of each word in order its place in the vocabulary (int32).
        linked: of each word but the last, whether the next one follows after white space alone.
        num_long: runs of more than `MAX_LETTERS` letters, which are left out.
    """

    vocabulary: pa.Array
    ids: np.ndarray
    linked: np.ndarray
    num_long: int


def joined(texts: Sequence[str], case: Case = "kept") -> str:
    """Several texts as one, whose words do not make pairs over the seams."""
    text = BREAK.join(texts)
    return text.casefold() if case == "folded" else text


def segment(text: str) -> Segmented:
    """The words of a text that `joined` has made."""
    pa = require_extra("pyarrow", "curate")
    letters, kinds = _letters(text)
    if (kinds & _COMPOSES).any():
        letters, kinds = _letters(unicodedata.normalize("NFC", text))
        kinds = kinds & ~np.uint8(_COMPOSES)
    widths = None
    if letters.dtype != np.uint8:
        widths = 1 + (letters >= 0x80).astype(np.int32) + (letters >= 0x800) + (letters >= 0x10000)
    inside = kinds >= _WORD
    joiners = np.flatnonzero(kinds == _JOINER)
    joiners = joiners[(joiners > 0) & (joiners < len(kinds) - 1)]
    inside[joiners[(kinds[joiners - 1] == _WORD) & (kinds[joiners + 1] == _WORD)]] = True
    alone = kinds == _ALONE if widths is not None else np.zeros(0, bool)
    if alone.any():
        first = inside & (alone | ~np.concatenate([[False], inside[:-1]]) | np.concatenate([[False], alone[:-1]]))
        starts = np.flatnonzero(first)
        ends = np.flatnonzero(np.concatenate([inside[:-1] & (first[1:] | ~inside[1:]), inside[-1:]])) + 1
    else:
        edges = np.flatnonzero(np.diff(inside, prepend=False, append=False))
        starts, ends = edges[::2], edges[1::2]
    before = np.searchsorted(np.flatnonzero((kinds != _SPACE) & ~inside), starts)
    linked = before[1:] == before[:-1]
    if alone.any():  # side by side, or both of the other kind
        one, other, close = alone[starts[:-1]], alone[starts[1:]], starts[1:] == ends[:-1]
        linked &= (one == other) & (one == close)
    kept = letters[inside]
    lengths = ends - starts
    if widths is None:
        data = kept.tobytes()
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    else:
        data = kept.tobytes().decode("utf-32-le").encode("utf-8")
        places = np.concatenate([[0], np.cumsum(widths[inside])])
        offsets = places[np.concatenate([[0], np.cumsum(lengths)])].astype(np.int32)
    words = pa.Array.from_buffers(pa.binary(), len(starts), [None, pa.py_buffer(offsets), pa.py_buffer(data)])
    long = lengths > MAX_LETTERS
    num_long = int(long.sum())
    if num_long:
        words, linked = words.filter(pa.array(~long)), _without(long, linked)
    encoded = words.dictionary_encode()
    return Segmented(encoded.dictionary, encoded.indices.to_numpy(), linked, num_long)


def _letters(text: str) -> tuple[np.ndarray, np.ndarray]:
    """The characters of a text as numbers, and their kinds."""
    if text.isascii():
        letters = np.frombuffer(text.encode("ascii"), np.uint8)
        return letters, _ascii_kinds()[letters]
    letters = np.frombuffer(text.encode("utf-32-le", "replace"), np.uint32)
    return letters, _kinds()[letters]


def _without(gone: np.ndarray, linked: np.ndarray) -> np.ndarray:
    """The links of the words that stay; none goes over a word that is gone."""
    stays = np.flatnonzero(~gone)
    return linked[stays[:-1]] & (np.diff(stays) == 1)


def pair_text(one: str, other: str) -> str:
    """The query that a pair of words makes."""
    return one + other if is_han(one[-1]) and is_han(other[0]) else f"{one} {other}"


def is_han(letter: str) -> bool:
    """Whether this is a Chinese character."""
    return any(low <= ord(letter) <= high for low, high in _HAN)


@functools.cache
def _ascii_kinds() -> np.ndarray:
    return _kinds_of(0x80)


@functools.cache
def _kinds() -> np.ndarray:
    return _kinds_of(sys.maxunicode + 1)


def _kinds_of(size: int) -> np.ndarray:
    """The kind of each of Unicode's first `size` characters."""
    by_category = {"L": _WORD, "M": _WORD, "N": _WORD, "Sc": _WORD, "So": _WORD, "Z": _SPACE, "Cc": _SPACE}
    kinds = np.full(size, _OTHER, np.uint8)
    for low, high in ((0, 0x33500), (0xE0000, 0xE0200)):  # beyond, nothing has a meaning
        letters = list(map(chr, range(min(low, size), min(high, size))))
        names = map(unicodedata.category, letters)
        kinds[low:high] = [by_category.get(name, by_category.get(name[0], _OTHER)) for name in names]
        kinds[low:high] |= np.array([_COMPOSES * _composes(letter) for letter in letters], np.uint8)
    # Chinese characters are words by themselves; those that the composed form replaces are replaced before that matters.
    for low, high in _HAN:
        kinds[low : high + 1] = kinds[low : high + 1] & _COMPOSES | _ALONE
    for some, kind in ((_JOINERS, _JOINER), (_MARKS + BREAK, _OTHER)):
        kinds[[ord(letter) for letter in some if ord(letter) < size]] = kind
    return kinds


def _composes(letter: str) -> bool:
    """Whether a text with this character may not be in the composed form: marks, parts of Korean syllables, doubles."""
    if unicodedata.category(letter)[0] == "M" or "\u1100" <= letter <= "\u11ff":
        return True
    return not unicodedata.is_normalized("NFC", letter)
