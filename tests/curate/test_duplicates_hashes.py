"""Pairs of near hashes: the same as comparing each with each, whatever the tables and the groups."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostension.curate import duplicates_hashes
from ostension.curate.duplicates_hashes import Blocks, distinct, near_pairs, rounds_for
from ostension.errors import ConfigError
from ostension.runtime import numpy_generator

HASHES = st.lists(st.integers(0, 2**64 - 1), max_size=40)
FLIPS = st.lists(st.tuples(st.integers(0, 39), st.lists(st.integers(0, 63), max_size=12)), max_size=40)


def each_with_each(values, bits, groups=None):
    found = {}
    for a, b in itertools.combinations(range(len(values)), 2):
        distance = int(values[a] ^ values[b]).bit_count()
        if distance <= bits and (groups is None or groups[a] == groups[b]):
            found[a, b] = distance
    return found


def searched(values, bits, groups=None):
    found = [
        ((a, b), distance)
        for pairs in near_pairs(values, bits, groups)
        for a, b, distance in zip(*(part.tolist() for part in pairs), strict=True)
    ]
    assert len(found) == len(dict(found)), "a pair comes twice"
    return dict(found)


def with_neighbours(values, flips):
    near = [values[at % len(values)] ^ sum(1 << bit for bit in set(bits)) for at, bits in flips] if values else []
    return np.array(sorted({*values, *near}), dtype=np.uint64)[::-1].copy()


@given(HASHES, FLIPS, st.integers(0, 16))
@settings(deadline=None)
def test_the_pairs_are_those_of_comparing_each_with_each(values, flips, bits):
    hashes = with_neighbours(values, flips)
    assert searched(hashes, bits) == each_with_each(hashes, bits)


@given(HASHES, FLIPS, st.integers(1, 10), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_with_groups_only_hashes_of_one_group_are_pairs(values, flips, bits, seed):
    hashes = with_neighbours(values, flips)
    groups = numpy_generator("groups", seed).integers(3, size=len(hashes))
    assert searched(hashes, bits, groups) == each_with_each(hashes, bits, groups)


@pytest.mark.parametrize("equal", [1, 2, 3, 4])
@pytest.mark.parametrize("block", [3, 2**20])
def test_neither_the_number_of_equal_blocks_nor_the_batches_change_the_pairs(monkeypatch, equal, block):
    draw = numpy_generator("hashes", 1)
    base = draw.integers(2**63, size=150).astype(np.uint64)
    near = base ^ (np.uint64(1) << draw.integers(64, size=150).astype(np.uint64)) ^ np.uint64(5)
    hashes = np.unique(np.concatenate([base, near, np.arange(64, dtype=np.uint64)]))  # the last ones share nearly all bits
    monkeypatch.setattr(duplicates_hashes, "rounds_for", lambda *_: equal)
    monkeypatch.setattr(duplicates_hashes, "BLOCK", block)
    assert searched(hashes, 5) == each_with_each(hashes, 5)


def test_few_random_hashes_need_one_equal_block_and_many_need_more():
    draw = numpy_generator("many hashes")
    many = np.unique(draw.integers(2**63, size=60_000).astype(np.uint64))
    assert rounds_for(many[:50], 6) == 1 < rounds_for(many, 6)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20), st.integers(1, 20))
@settings(deadline=None)
def test_blocks_that_are_moved_can_be_put_back(values, count):
    hashes, blocks = np.array(values, dtype=np.uint64), Blocks.of(count)
    order = numpy_generator("order", count).permutation(count).tolist()
    assert np.array_equal(blocks.restored(blocks.permuted(hashes, order), order), hashes)
    assert sum(blocks.widths) == 64 and max(blocks.widths) - min(blocks.widths) <= 1


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), max_size=30), st.booleans())
@settings(deadline=None)
def test_equal_values_are_led_by_the_first_of_them(rows, grouped):
    values = np.array([value for value, _ in rows], dtype=np.uint64)
    groups = np.array([group for _, group in rows], dtype=np.int64) if grouped else None
    keys = rows if grouped else [value for value, _ in rows]
    heads, first = distinct(values, groups)
    assert first.tolist() == [keys.index(key) for key in keys]
    assert heads.tolist() == sorted({keys.index(key) for key in keys})


def test_more_bits_than_tell_pictures_apart_are_refused():
    with pytest.raises(ConfigError, match="bits is 17"):
        list(near_pairs(np.arange(3, dtype=np.uint64), 17))
