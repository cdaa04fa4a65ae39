"""Byte-pair encoding: words to ids and back, with OpenAI's list of merges.

The ids: 256 bytes in the order of OpenAI's byte alphabet, the same 256 at the end of a word, one id for each merge in the
order of the list, then the start and end tokens. A merge's id therefore grows with its rank, and "the pair of lowest rank"
is "the pair whose merge has the lowest id".

Source: the algorithm and alphabet of clip/simple_tokenizer.py in openai/CLIP; the merges are the 48,894 lines of
`bpe_simple_vocab_16e6.txt.gz` that it reads (scripts/build_merges.py cuts them out).
"""

from __future__ import annotations

import functools
import gzip
import heapq
import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ostension.files import sha256_bytes
from ostension.text.config import NUM_MERGES

MERGES_FILE = Path(__file__).parent / "data" / "bpe_merges.txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"

# Bytes in the order of their ids: those that print as themselves in Latin-1, then the others.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE_ORDER = _PRINTABLE + [byte for byte in range(256) if byte not in set(_PRINTABLE)]
# The characters that write those bytes in the merges file: themselves, or one of U+0100 upward.
BYTE_CHARACTERS = [chr(byte) for byte in _PRINTABLE] + [chr(0x100 + offset) for offset in range(256 - len(_PRINTABLE))]

# From this many symbols the vectorised merging is faster than the plain one (measured: level near 300).
_LONG_WORD = 256


class Merges:
    """The first `num_merges` merges as tables; see `merges` for the shared instance.

    Attributes:
        lines: the merges as they are written in the file.
        symbols: every token's spelling in the file's alphabet, by id (without the two special tokens).
        token_bytes: the bytes of every token, by id.
        ends_word: whether the token ends a word, by id.
        start_id, end_id: the special tokens.
    """

    def __init__(self, lines: list[str]):
        self.lines = lines
        self.symbols = BYTE_CHARACTERS + [character + END_OF_WORD for character in BYTE_CHARACTERS]
        self.token_bytes = [bytes([byte]) for byte in BYTE_ORDER] * 2
        self.ends_word = [False] * 256 + [True] * 256
        self.pairs: dict[int, int] = {}
        ids = {symbol: index for index, symbol in enumerate(self.symbols)}
        for merged, line in enumerate(lines, start=512):
            first, second = line.split(" ")
            left, right = ids[first], ids[second]
            symbol = first + second
            ids[symbol] = merged
            self.symbols.append(symbol)
            self.token_bytes.append(self.token_bytes[left] + self.token_bytes[right])
            self.ends_word.append(self.ends_word[right])
            self.pairs[left << 16 | right] = merged
        # The merging below relies on every token being made by one merge, and ids fitting 16 bits.
        assert len(ids) == 512 + len(lines) < 1 << 16
        self.start_id, self.end_id = len(ids), len(ids) + 1
        self.vocab_size = len(ids) + 2
        self._byte_ids = [0] * 256
        for index, byte in enumerate(BYTE_ORDER):
            self._byte_ids[byte] = index

    def encode(self, word: str) -> tuple[int, ...]:
        """The ids of one word: merge the pair of lowest rank, wherever it stands, until no pair of the list is left."""
        ids = [self._byte_ids[byte] for byte in word.encode("utf-8")]
        ids[-1] += 256
        return tuple(self._merge(ids) if len(ids) < _LONG_WORD else merge_long(ids, *self._pair_table))

    def decode(self, ids: Iterable[int]) -> str:
        """The words of `ids`, a space between them; bytes that are not UTF-8 (a word cut in the middle) become U+FFFD."""
        words = b"".join(self.token_bytes[index] + b" " if self.ends_word[index] else self.token_bytes[index] for index in ids)
        return words.decode("utf-8", errors="replace").removesuffix(" ")

    def vocabulary(self) -> dict[str, int]:
        """Every token's spelling and its id, as in Hugging Face's `vocab.json`."""
        return {symbol: index for index, symbol in enumerate([*self.symbols, START, END])}

    @functools.cached_property
    def sha256(self) -> str:
        """The SHA-256 of the merges in use, one a line."""
        return sha256_bytes("".join(line + "\n" for line in self.lines).encode("utf-8"))

    def _merge(self, ids: list[int]) -> list[int]:
        none = 1 << 16
        while len(ids) > 1:
            merged = [self.pairs.get(left << 16 | right, none) for left, right in itertools.pairwise(ids)]
            best = min(merged)
            if best == none:
                break
            joined, index = [], 0
            while index < len(merged):
                if merged[index] == best:
                    joined.append(best)
                    index += 2
                else:
                    joined.append(ids[index])
                    index += 1
            if index == len(merged):  # the last symbol was not merged
                joined.append(ids[-1])
            ids = joined
        return ids

    @functools.cached_property
    def _pair_table(self) -> tuple[np.ndarray, np.ndarray]:
        keys = np.fromiter(self.pairs, np.int64, len(self.pairs))
        order = np.argsort(keys)
        return keys[order], np.fromiter(self.pairs.values(), np.int64, len(self.pairs))[order]


@functools.cache
def merges(num_merges: int = NUM_MERGES) -> Merges:
    """The first `num_merges` of OpenAI's merges, read once a process."""
    with gzip.open(MERGES_FILE, "rt", encoding="utf-8") as handle:
        lines = handle.read().splitlines()
    assert len(lines) == NUM_MERGES
    return Merges(lines[:num_merges])


def merge_long(ids: list[int], keys: np.ndarray, merged_ids: np.ndarray) -> list[int]:
    """What `Merges._merge` gives, in time n log n, for words of up to millions of symbols.

    The symbols are a linked list in arrays. Places whose pair has the same merge wait together; the merge of lowest rank
    is done at all its places at once. A merge only makes pairs of higher rank, for these contain the token that it made.

    Args:
        keys: pairs as left << 16 | right, sorted.
        merged_ids: the merge of each key.
    """
    symbols = np.append(np.asarray(ids, np.int64), -1)  # the last entry is a wall: no pair contains it
    wall = len(ids)
    following = np.append(np.arange(1, wall + 1), wall)
    previous = np.append(np.arange(-1, wall - 1), wall - 1)
    previous[0] = wall
    rank = np.full(wall + 1, -1)  # the merge of the pair that begins here; -1 without one
    waiting: dict[int, list[np.ndarray]] = {}
    ranks: list[int] = []

    def look_up(places: np.ndarray) -> None:
        pairs = symbols[places] << 16 | symbols[following[places]]
        found = np.minimum(np.searchsorted(keys, pairs), len(keys) - 1)
        rank[places] = np.where((keys[found] == pairs) & (places != wall), merged_ids[found], -1)
        places = places[rank[places] >= 0]
        if not len(places):
            return
        places = places[np.argsort(rank[places].astype(np.uint16), kind="stable")]  # ids fit 16 bits: a radix sort
        sorted_ranks = rank[places]
        first = np.flatnonzero(sorted_ranks[1:] != sorted_ranks[:-1]) + 1
        for value, group in zip(sorted_ranks[np.append(0, first)].tolist(), np.split(places, first), strict=True):
            if value not in waiting:
                waiting[value] = []
                heapq.heappush(ranks, value)
            waiting[value].append(group)

    if len(keys):
        look_up(np.arange(wall))
    while ranks:
        best = heapq.heappop(ranks)
        places = _sorted_once(np.concatenate(waiting.pop(best)))
        places = places[rank[places] == best]
        places = _without_overlaps(places, following)
        if not len(places):
            continue
        swallowed = following[places]
        symbols[places] = best
        rank[swallowed] = -1
        following[places] = following[swallowed]
        previous[following[places]] = places
        look_up(_sorted_once(np.concatenate([places, previous[places]])))
    alive = []
    place = 0
    following_list, symbols_list = following.tolist(), symbols.tolist()
    while place != wall:
        alive.append(symbols_list[place])
        place = following_list[place]
    return alive


def _sorted_once(places: np.ndarray) -> np.ndarray:
    """`places` in order, each once; fast because they come as a few sorted runs."""
    places = np.sort(places, kind="stable")
    return places[np.append(True, places[1:] != places[:-1])]


def _without_overlaps(places: np.ndarray, following: np.ndarray) -> np.ndarray:
    """Every other place of each run of neighbours, from the left: in "aaa", "aa" is merged once, at the first place."""
    if len(places) < 2:
        return places
    begins_run = np.append(True, following[places[:-1]] != places[1:])
    position = np.arange(len(places))
    run_start = np.maximum.accumulate(np.where(begins_run, position, 0))
    return places[(position - run_start) % 2 == 0]
