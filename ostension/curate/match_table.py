"""A table of runs of words, looked up for every word of many captions at once: hashes first, then the bytes.

Texts come as one piece of bytes in which a space, or GLUE (where letters need no space), stands before each word, and the word
ROW ends each text. A word's hash is made of its bytes, eight at a time; the hash of a run of k words of that of its first k - 1
and the k-th. The table holds all entries and all beginnings of them. So the search takes as many steps as the longest entry has
words, each over those places of the captions that are still a beginning of something.

Exact whatever the hashes: the same bytes have the same hash, so nothing is missed, and what is found is compared byte by byte.
(A word of up to eight bytes has a hash that no other such word has, and is not compared again.) The table of 500,000 entries is
built in half a second, so each process builds its own.
"""

from __future__ import annotations

import dataclasses

import numpy as np

ROW, GLUE = "\0", "\1"
_SPACE, _GLUE = 32, 1
_TAIL = b"\0" * 8  # eight bytes can be read at every place
_MASKS = np.array([*((1 << 8 * count) - 1 for count in range(8)), (1 << 64) - 1], dtype=np.uint64)
# Odd constants of SplitMix64 (Steele et al. 2014): products with them lose nothing.
_GOLDEN, _FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_GLUED = np.uint64(0xD6E8FEB86659FD93)
_GOES_ON, _SHORT = 1, 2


@dataclasses.dataclass(frozen=True)
class _Words:
    """The words of a piece of bytes: where they start, how long they are, their hashes, whether GLUE stands before."""

    raw: np.ndarray
    eights: np.ndarray  # eights[i] are the bytes i to i + 8 as one number
    starts: np.ndarray
    lengths: np.ndarray
    hashes: np.ndarray
    glued: np.ndarray | None

    @property
    def ends_row(self) -> np.ndarray:
        return (self.raw[self.starts] == 0) & (self.lengths == 1)

    def longer(self, hashes: np.ndarray, places: np.ndarray) -> np.ndarray:
        """The hashes of runs that the words at `places` make longer."""
        words = self.hashes[places]
        if self.glued is not None:
            words ^= _GLUED * self.glued[places]
        return _mixed(hashes * _GOLDEN + words)


class WordTable:
    """Entries by the words that they are made of.

    Args:
        data: the entries, each ended by ROW.
        open_start: (entries,) bool: an entry needs no space before it.
        open_end: the same for what follows.

    Attributes:
        same_as: (entries,) int32: the first entry of the same bytes.
    """

    def __init__(self, data: bytes, open_start: np.ndarray, open_end: np.ndarray):
        words = _words(data)
        row_ends = np.flatnonzero(words.ends_row)
        firsts = np.append(0, row_ends[:-1] + 1) if len(row_ends) else row_ends
        sizes, self._starts = row_ends - firsts, words.starts[firsts]
        self._lengths = words.starts[row_ends] - 1 - self._starts
        self._eights = words.eights
        self._open = np.stack([open_start, open_end]) if open_start.any() or open_end.any() else None

        # All beginnings: hash, entry and number of words.
        hashes, owners, counts = [], [], []
        live, count = np.arange(len(firsts)), 1
        run = words.hashes[firsts]
        while len(live):
            hashes.append(run)
            owners.append(live)
            counts.append(np.full(len(live), count))
            on = sizes[live] > count
            live, run = live[on], words.longer(run[on], firsts[live[on]] + count)
            count += 1
        empty = [np.zeros(0, dtype=np.int64)]
        run, owner = np.concatenate([*hashes, np.zeros(0, dtype=np.uint64)]), np.concatenate(owners + empty)
        size = np.concatenate(counts + empty)
        keys, first, key_of = np.unique(run, return_index=True, return_inverse=True)
        last = firsts[owner] + size - 1
        spans = words.starts[last] + words.lengths[last] - self._starts[owner]
        same = spans == spans[first][key_of]
        others = self._starts[owner[first]][key_of]
        same[same] = _equal(words.eights, self._starts[owner][same], words.eights, others[same], spans[same])
        # 64 bits: not once in a thousand years for lists that fit into memory.
        assert same.all() and not (keys == 0).any(), "two runs of words have one hash"

        whole = size == sizes[owner]
        values = np.full(len(keys), len(firsts), dtype=np.int32)
        np.minimum.at(values, key_of[whole], owner[whole].astype(np.int32))
        self.same_as = np.empty(len(firsts), dtype=np.int32)
        self.same_as[owner[whole]] = values[key_of[whole]]
        flags = np.zeros(len(keys), dtype=np.uint8)
        flags[key_of[~whole]] |= _GOES_ON
        flags[(size[first] == 1) & (spans[first] <= 8)] |= _SHORT
        values[values == len(firsts)] = -1
        self._fill(keys, values, flags)

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        arrays = (self._keys, self._values, self._flags, self._starts, self._lengths, self.same_as)
        return sum(array.nbytes for array in arrays) + len(self._eights)

    def find(self, data: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Rows (int64) and entries (int32) of all finds in texts of which each is ended by ROW; as often as they occur."""
        words = _words(data)
        live, run, count = np.arange(len(words.starts)), words.hashes, 1
        places, entries = [], []
        while len(live):
            slots = self._look_up(run)
            here = slots >= 0
            slots, live, run = slots[here], live[here], run[here]
            flags, values = self._flags[slots], self._values[slots]
            there = values >= 0
            place, entry = live[there], values[there]
            sure = (flags[there] & _SHORT > 0) & (words.lengths[place] <= 8) if count == 1 else np.zeros(len(place), dtype=bool)
            doubt = np.flatnonzero(~sure)
            good = np.ones(len(place), dtype=bool)
            good[doubt] = self._is_there(words.eights, words.starts[place[doubt]], entry[doubt])
            places.append(place[good])
            entries.append(entry[good])
            on = (flags & _GOES_ON > 0) & (live + count < len(words.starts))
            live = live[on]
            run = words.longer(run[on], live + count)
            count += 1
        place, entry = np.concatenate(places), np.concatenate(entries)
        if self._open is not None:
            fits = self._fits(words.raw, words.starts[place], entry)
            place, entry = place[fits], entry[fits]
        return np.cumsum(words.ends_row)[place], entry

    def _fill(self, keys: np.ndarray, values: np.ndarray, flags: np.ndarray) -> None:
        """Put the keys into slots: that of their highest bits, or the next free one."""
        bits = max(4, (2 * len(keys)).bit_length())
        self._shift, self._last = np.uint64(64 - bits), (1 << bits) - 1
        self._keys = np.zeros(1 << bits, dtype=np.uint64)
        self._values, self._flags = np.full(1 << bits, -1, dtype=np.int32), np.zeros(1 << bits, dtype=np.uint8)
        waiting = np.arange(len(keys))
        slots = (keys >> self._shift).astype(np.int64)
        while len(waiting):
            free = self._keys[slots] == 0
            taken, claim = np.unique(slots[free], return_index=True)
            settled = np.flatnonzero(free)[claim]
            who = waiting[settled]
            self._keys[taken], self._values[taken], self._flags[taken] = keys[who], values[who], flags[who]
            rest = np.ones(len(waiting), dtype=bool)
            rest[settled] = False
            waiting, slots = waiting[rest], slots[rest] + 1 & self._last

    def _look_up(self, hashes: np.ndarray) -> np.ndarray:
        """The slot of each hash, or -1."""
        slots = (hashes >> self._shift).astype(np.int64)
        there = self._keys[slots]
        found = np.where(there == hashes, slots, -1)
        waiting = np.flatnonzero((there != hashes) & (there != 0))
        while len(waiting):
            slots[waiting] = slots[waiting] + 1 & self._last
            there = self._keys[slots[waiting]]
            hit = there == hashes[waiting]
            found[waiting[hit]] = slots[waiting[hit]]
            waiting = waiting[~hit & (there != 0)]
        return found

    def _is_there(self, eights: np.ndarray, starts: np.ndarray, entries: np.ndarray) -> np.ndarray:
        """Whether the bytes from `starts` on are those of the entries."""
        return _equal(eights, starts, self._eights, self._starts[entries], self._lengths[entries])

    def _fits(self, raw: np.ndarray, starts: np.ndarray, entries: np.ndarray) -> np.ndarray:
        """Whether there are spaces where the entries need them."""
        assert self._open is not None
        before, after = raw[starts - 1] == _SPACE, raw[starts + self._lengths[entries]] == _SPACE
        return (before | self._open[0][entries]) & (after | self._open[1][entries])


def _words(data: bytes) -> _Words:
    """The words of texts of which each is ended by ROW."""
    data += _TAIL
    raw = np.frombuffer(data, dtype=np.uint8)
    eights = np.ndarray(len(data) - 7, dtype="<u8", buffer=data, strides=(1,))
    glue = raw == _GLUE
    any_glue = bool(glue.any())
    cuts = np.flatnonzero((raw == _SPACE) | glue) if any_glue else np.flatnonzero(raw == _SPACE)
    starts = cuts[:-1] + 1
    lengths = cuts[1:] - starts
    hashes = _mixed((eights[starts] & _MASKS[np.minimum(lengths, 8)]) * _GOLDEN + _SECOND)
    done, live = 8, np.flatnonzero(lengths > 8)
    while len(live):
        left = lengths[live] - done
        more = eights[starts[live] + done] & _MASKS[np.minimum(left, 8)]
        hashes[live] = _mixed((hashes[live] ^ more) * _SECOND + _GOLDEN)
        done, live = done + 8, live[left > 8]
    return _Words(raw, eights, starts, lengths, hashes, raw[cuts[:-1]] == _GLUE if any_glue else None)


def _equal(one: np.ndarray, at: np.ndarray, other: np.ndarray, there: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Whether spans of the same lengths hold the same bytes."""
    equal = np.ones(len(at), dtype=bool)
    done, live = 0, np.arange(len(at))
    while len(live):
        left = lengths[live] - done
        differ = (one[at[live] + done] ^ other[there[live] + done]) & _MASKS[np.minimum(left, 8)]
        equal[live[differ != 0]] = False
        done, live = done + 8, live[(left > 8) & (differ == 0)]
    return equal


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """A one-to-one function of 64 bits whose highest bits depend on all."""
    numbers = (numbers ^ (numbers >> np.uint64(32))) * _FIRST
    return numbers ^ (numbers >> np.uint64(29))
