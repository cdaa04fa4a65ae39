"""All pairs of 64-bit hashes that differ in at most d bits: exact, without comparing each with each.

The 64 bits are cut into k = d + r blocks. Two hashes that differ in at most d bits are equal in at least r blocks, so for one
of the C(k, r) choices of r blocks they have the same key. For each choice the hashes are sorted by that key, and only those in
one run of equal keys are compared. A pair may be found by several choices; it counts at the first, which the pair's own equal
blocks tell. Many blocks make keys long and runs short, but mean many sorts: r is chosen by what a sample would cost.

What is kept in memory: about 65 bytes a hash, whatever is found (measured); pairs are handed over as they are found. Where very
many hashes have half of their bits in common (drawings on white), runs are long, and the time is again that of comparing each
with each within a run.

Source: Manku, Jain, Das Sarma 2007, "Detecting near-duplicates for web crawling", section 3 (tables of permuted fingerprints).
Letters: N hashes, P pairs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ostension.config import require

MOST_BITS = 16  # past it, unrelated hashes are pairs: of a million, two random ones in 40,000 differ in 16 bits or fewer
BLOCK = 2**20  # pairs compared at a time: 32 MB
SAMPLE = 2**14  # hashes that the choice of r is made by
ROUNDS = 4  # largest r that is considered
SORT_NS, COMPARE_NS = 85.0, 17.0  # of one hash in one table, and of one pair; measured, and only the ratio matters


class Pairs(NamedTuple):
    """Pairs of rows a < b, and how far apart they are."""

    a: np.ndarray
    b: np.ndarray
    distance: np.ndarray


class Blocks(NamedTuple):
    """A cut of 64 bits: where each block begins, and its mask."""

    starts: tuple[int, ...]
    widths: tuple[int, ...]

    @staticmethod
    def of(count: int) -> Blocks:
        """`count` blocks that differ in width by one bit at most."""
        edges = [64 * number // count for number in range(count + 1)]
        return Blocks(tuple(edges[:-1]), tuple(stop - start for start, stop in itertools.pairwise(edges)))

    def permuted(self, values: np.ndarray, order: Sequence[int]) -> np.ndarray:
        """The values with their blocks in another order, the first one uppermost."""
        out, top = np.zeros_like(values), 64
        for block in order:
            top -= self.widths[block]
            out |= ((values >> np.uint64(self.starts[block])) & self.mask(block)) << np.uint64(top)
        return out

    def restored(self, values: np.ndarray, order: Sequence[int]) -> np.ndarray:
        """What `permuted` was given."""
        out, top = np.zeros_like(values), 64
        for block in order:
            top -= self.widths[block]
            out |= ((values >> np.uint64(top)) & self.mask(block)) << np.uint64(self.starts[block])
        return out

    def mask(self, block: int) -> np.uint64:
        """As many ones as the block is wide."""
        return np.uint64((1 << self.widths[block]) - 1)

    def equal(self, differing: np.ndarray) -> np.ndarray:
        """(k, P) whether a block of the differing bits is all zeros."""
        return np.stack([
            (differing >> np.uint64(start)) & self.mask(block) == 0 for block, start in enumerate(self.starts)
        ])  # fmt: skip


def near_pairs(values: np.ndarray, bits: int, groups: np.ndarray | None = None) -> Iterator[Pairs]:
    """All pairs of different hashes that differ in at most `bits` bits, each once, in batches.

    Args:
        values: (N,) uint64, each once; with `groups` each once in its group. Equal ones are found by sorting (`distinct`).
        bits: 0 to 16.
        groups: (N,) integers; only hashes of one group are compared.
    """
    require(0 <= bits <= MOST_BITS, "bits", bits, f"0 to {MOST_BITS}; unrelated pictures differ in about 32")
    values = np.asarray(values, dtype=np.uint64)
    if bits == 0 or len(values) < 2:
        return
    equal = rounds_for(values, bits, groups)
    blocks = Blocks.of(bits + equal)
    places = (np.argsort(values) if groups is None else np.arange(len(values))).astype(_kind(len(values)))
    values = values[places]
    for chosen in itertools.combinations(range(bits + equal), equal):
        for a, b, distance in _table(values, bits, blocks, chosen, groups):
            one, other = places[a], places[b]
            yield Pairs(np.minimum(one, other), np.maximum(one, other), distance)


def rounds_for(values: np.ndarray, bits: int, groups: np.ndarray | None = None) -> int:
    """How many equal blocks make the cheapest search, judged by a sample; the answer of the search does not depend on it."""
    step = max(1, len(values) // SAMPLE)
    sample, own = values[::step], None if groups is None else groups[::step]
    costs: dict[int, float] = {}
    for equal in range(1, ROUNDS + 1):
        count = bits + equal
        blocks, tables = Blocks.of(count), math.comb(count, equal)
        keys = []
        for chosen in ([*range(equal)], [*range(count - equal, count)], sorted({count * i // equal for i in range(equal)})):
            key = blocks.permuted(sample, _order(chosen, count)) >> np.uint64(64 - _width(blocks, chosen))
            runs = np.unique(key if own is None else np.stack([key, own.astype(np.uint64)]), axis=-1, return_counts=True)[1]
            keys.append(float((runs * (runs - 1.0)).sum()) / 2 * step * step)
        # A sample without a run says no more than that runs are short.
        pairs = max(sum(keys) / len(keys), len(values) ** 2 / 2.0 ** (1 + _width(blocks, range(equal))))
        costs[equal] = tables * (len(values) * SORT_NS + pairs * COMPARE_NS)
    return min(costs, key=costs.__getitem__)


def _order(chosen: Sequence[int], count: int) -> list[int]:
    return [*chosen, *(block for block in range(count) if block not in chosen)]


def _width(blocks: Blocks, chosen: Sequence[int]) -> int:
    return sum(blocks.widths[block] for block in chosen)


def _table(
    values: np.ndarray, bits: int, blocks: Blocks, chosen: tuple[int, ...], groups: np.ndarray | None
) -> Iterator[Pairs]:
    """The pairs whose first equal blocks are the chosen ones. Without groups, the values are sorted."""
    order, places = _order(chosen, len(blocks.starts)), None
    moved = blocks.permuted(values, order)
    if groups is None:
        moved.sort()  # faster than sorting numbers of rows; the few rows that are asked for are looked up
    else:
        places = np.lexsort((moved, groups)).astype(_kind(len(values)))
        moved = moved[places]
    last = _runs(moved >> np.uint64(64 - _width(blocks, chosen)), None if places is None or groups is None else groups[places])
    live = np.flatnonzero(last > np.arange(len(values), dtype=last.dtype)).astype(last.dtype)
    reach = 1
    while len(live):
        for start in range(0, len(live), BLOCK):
            left = live[start : start + BLOCK]
            differing = moved[left] ^ moved[left + reach]
            near = np.flatnonzero(np.bitwise_count(differing) <= bits)
            if not len(near):
                continue
            differing = blocks.restored(differing[near], order)
            first = blocks.equal(differing)[: chosen[-1] + 1].sum(axis=0) == len(chosen)
            left = left[near[first]]
            if not len(left):
                continue
            if places is None:
                one, other = (np.searchsorted(values, blocks.restored(moved[row], order)) for row in (left, left + reach))
            else:
                one, other = places[left], places[left + reach]
            yield Pairs(one, other, np.bitwise_count(differing[first]))
        reach += 1
        live = live[last[live] - live >= reach]


def _kind(count: int) -> type[np.signedinteger]:
    return np.int32 if count < 2**31 else np.int64


def _runs(key: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """(N,) the last place of the run of equal keys (and groups) that each place is in."""
    breaks = key[1:] != key[:-1]
    if groups is not None:
        breaks |= groups[1:] != groups[:-1]
    kind = _kind(len(key))
    ends = np.append(np.flatnonzero(breaks), len(key) - 1).astype(kind)
    return np.repeat(ends, np.diff(ends, prepend=-1))


def distinct(values: np.ndarray, groups: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The first row of each different value (of each group), ascending, and for every row the first one that equals it."""
    order = np.argsort(values, kind="stable") if groups is None else np.lexsort((values, groups))
    ordered = values[order]
    new = np.append(True, ordered[1:] != ordered[:-1]) if len(values) else np.zeros(0, bool)
    if groups is not None and len(values):
        own = groups[order]
        new[1:] |= own[1:] != own[:-1]
    heads = order[new]
    first = np.empty(len(values), dtype=np.int64)
    first[order] = np.repeat(heads, np.diff(np.append(np.flatnonzero(new), len(values))))
    return np.sort(heads), first
