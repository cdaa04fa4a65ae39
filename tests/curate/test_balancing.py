"""Balancing: probabilities by hand, both forms' distribution, draws that do not depend on who draws, and how t is chosen."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostension.curate.balancing import (
    OnlineBalance,
    SampledMatches,
    draw_offline,
    draw_online,
    expected_counts,
    keep_probabilities,
    limit_for_pairs,
    limit_for_tail,
    query_counts,
    query_probabilities,
    tail_share,
    uniforms,
)
from ostension.curate.matching import Matches
from ostension.errors import ConfigError, DataError
from ostension.runtime import numpy_generator

# Ten pairs: "dog" (0) is in all, "red" (1) in four, "axolotl" (2) in one; query 3 in none.
PETS = Matches.of([[0], [0], [0], [0], [0], [0, 1], [0, 1], [0, 1], [0, 1, 2], [0]])
COUNTS = query_counts(PETS, 4)


def random_matches(num_pairs: int, num_queries: int, seed: int = 0) -> Matches:
    """Pairs with 0 to 7 queries, of which low numbers are frequent."""
    rng = numpy_generator("balancing tests", seed)
    drawn = [np.unique((num_queries ** rng.random(rng.integers(0, 8))).astype(int) - 1) for _ in range(num_pairs)]
    return Matches.of([queries.tolist() for queries in drawn])


def test_probabilities_are_those_of_the_equation():
    assert COUNTS.tolist() == [10, 4, 1, 0]
    probabilities = query_probabilities(COUNTS, 2)
    assert probabilities.tolist() == [0.2, 0.5, 1.0, 1.0]
    keep = keep_probabilities(PETS, probabilities)
    assert keep == pytest.approx([0.2] * 5 + [1 - 0.8 * 0.5] * 3 + [1.0, 0.2])
    assert keep[8] == 1.0  # a rare query keeps its pairs whatever else they match
    # "dog" alone would keep 2; what "red" and "axolotl" keep comes on top.
    assert expected_counts(PETS, keep, 4) == pytest.approx([6 * 0.2 + 3 * 0.6 + 1, 3 * 0.6 + 1, 1, 0])


def test_a_pair_without_queries_has_probability_zero():
    keep = keep_probabilities(Matches.of([[], [0], []]), np.array([0.5]))
    assert keep.tolist() == [0.0, 0.5, 0.0]
    assert keep_probabilities(Matches.of([]), np.array([0.5])).shape == (0,)


def test_tiny_probabilities_lose_no_digits():
    keep = keep_probabilities(Matches.of([[0, 1, 2]]), np.full(3, 1e-18))
    assert keep[0] == pytest.approx(3e-18, rel=1e-12)


@pytest.mark.parametrize("form", ["offline", "online"])
def test_both_forms_keep_each_pair_as_often_as_its_probability_says(form):
    matches = random_matches(300, 40)
    probabilities = query_probabilities(query_counts(matches, 40), 12)
    keep, rounds = keep_probabilities(matches, probabilities), 3000
    kept = np.zeros(len(matches))
    pairs_kept = []
    for epoch in range(rounds):
        if form == "offline":
            drawn = draw_offline(matches, probabilities, np.arange(len(matches)), seed=3, epoch=epoch)
        else:
            drawn = draw_online(keep, np.arange(len(matches)), seed=3, epoch=epoch)
        kept += drawn
        pairs_kept.append(drawn.sum())
    certain = (keep == 0) | (keep == 1)
    assert (kept[certain] == rounds * keep[certain]).all()
    # Chi-square of the other pairs: within four standard deviations of its mean (the draws are fixed, so this never changes).
    expected, count = keep[~certain], int((~certain).sum())
    chi = (((kept[~certain] - rounds * expected) ** 2) / (rounds * expected * (1 - expected))).sum()
    assert count > 100 and abs(chi - count) < 4 * math.sqrt(2 * count)
    # Pairs are drawn apart from each other: the variance of how many stay is the sum of theirs.
    variance = (expected * (1 - expected)).sum()
    assert np.var(pairs_kept) == pytest.approx(variance, rel=4 * math.sqrt(2 / rounds))
    assert np.mean(pairs_kept) == pytest.approx(keep.sum(), abs=4 * math.sqrt(variance / rounds))


def test_draws_do_not_depend_on_how_pairs_are_shared_out():
    matches = random_matches(1000, 60)
    probabilities = query_probabilities(query_counts(matches, 60), 9)
    ids = numpy_generator("ids").permutation(1 << 40 | np.arange(len(matches)))
    whole = draw_offline(matches, probabilities, ids), draw_online(keep_probabilities(matches, probabilities), ids)
    some = numpy_generator("some").random(len(matches)) < 0.3
    part = matches.take(some)
    assert np.array_equal(draw_offline(part, probabilities, ids[some]), whole[0][some])
    assert np.array_equal(draw_online(keep_probabilities(part, probabilities), ids[some]), whole[1][some])


def test_seeds_and_epochs_draw_anew():
    keep, ids = np.full(4000, 0.5), np.arange(4000)
    draws = [draw_online(keep, ids, seed=seed, epoch=epoch) for seed, epoch in ((0, 0), (1, 0), (0, 1))]
    assert np.array_equal(draws[0], draw_online(keep, ids))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert 0.46 < np.mean(draws[one] == draws[other]) < 0.54


def test_uniforms_are_spread_evenly_and_differ_for_each_query():
    ids = np.arange(50_000)
    for drawn in (uniforms(5, ids), uniforms(5, np.zeros_like(ids), ids), uniforms(5, ids << 32)):
        assert drawn.min() >= 0 and drawn.max() < 1
        cells = np.bincount((drawn * 100).astype(int), minlength=100)
        chi = ((cells - 500.0) ** 2 / 500).sum()
        assert 99 - 4 * math.sqrt(2 * 99) < chi < 99 + 4 * math.sqrt(2 * 99)
    assert abs(np.corrcoef(uniforms(5, ids, ids * 0), uniforms(5, ids, ids * 0 + 1))[0, 1]) < 0.02


def test_the_tail_is_what_rare_queries_match():
    counts = np.array([100, 50, 30, 20, 0])
    assert tail_share(counts, 50) == 50 / 200
    assert tail_share(counts, 51) == 100 / 200
    assert tail_share(counts, 20) == 0.0 and tail_share(counts, 101) == 1.0
    assert tail_share(np.zeros(3, int), 5) == 0.0


def test_a_limit_from_a_tail_gives_that_tail():
    counts = (10_000 / np.arange(1, 2001)).astype(int)
    for limit in (20, 100, 1000):
        found = limit_for_tail(counts, tail_share(counts, limit))
        assert tail_share(counts, found) == tail_share(counts, limit)
    assert limit_for_tail(np.array([100, 50, 30, 20]), 0.2) == 50  # its tail is 0.25; at 30 it is 0.1
    assert limit_for_tail(np.array([7]), 0.9) == 8  # all of it is tail


def test_a_limit_for_a_number_of_pairs_gives_that_number_on_average():
    matches = random_matches(500, 50)
    counts = query_counts(matches, 50)
    matched = int((np.diff(matches.starts) > 0).sum())
    for wanted in (1, 50, 333, matched):
        limit = limit_for_pairs(matches, counts, wanted)
        keep = keep_probabilities(matches, query_probabilities(counts, limit))
        assert keep.sum() == pytest.approx(wanted, rel=1e-9)


def test_limits_that_cannot_be_are_refused():
    with pytest.raises(DataError, match="11 pairs are wanted, and 10 match a query"):
        limit_for_pairs(PETS, COUNTS, 11)
    with pytest.raises(DataError, match="no pair matches any query"):
        limit_for_tail(np.zeros(3, int), 0.5)
    with pytest.raises(ConfigError, match="tail_share"):
        limit_for_tail(COUNTS, 1.5)
    with pytest.raises(ConfigError, match="limit"):
        OnlineBalance(COUNTS, 0)


def test_a_stream_keeps_what_the_whole_keeps():
    matches = random_matches(700, 40)
    balance = OnlineBalance(query_counts(matches, 40), 10, seed=2)
    ids = np.arange(700) * 3
    kept = balance.kept(matches, ids)
    items = [(int(number), matches[place].tolist(), f"pair {place}") for place, number in enumerate(ids)]
    expected = [f"pair {place}" for place in np.flatnonzero(kept)]
    assert list(balance.stream(items)) == list(balance.stream(iter(items), at_once=7)) == expected
    assert list(balance.stream(items, epoch=1)) != expected


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 400), cuts=st.lists(st.integers(1, 299), max_size=4, unique=True), turned=st.booleans())
def test_a_sample_of_a_stream_is_the_same_however_it_comes(size, cuts, turned):
    matches, ids = random_matches(300, 40), np.arange(300) + 17
    whole = SampledMatches(size)
    whole.add(matches, ids)
    parted = SampledMatches(size)
    edges = [0, *sorted(cuts), 300]
    spans = list(itertools.pairwise(edges))
    for start, stop in reversed(spans) if turned else spans:
        chosen = (np.arange(300) >= start) & (np.arange(300) < stop)
        parted.add(matches.take(chosen), ids[chosen])
    assert parted.share == whole.share and len(parted.matches()) == len(whole.matches()) <= size
    one, other = (sorted(sample.matches()[row].tolist() for row in range(len(sample.matches()))) for sample in (whole, parted))
    assert one == other
    if size >= 300:
        assert whole.share == 1.0 and np.array_equal(whole.matches().entries, matches.entries)


def test_matches_are_taken_and_joined():
    matches = random_matches(60, 20)
    some = np.arange(60) % 3 == 0
    taken = matches.take(some)
    assert [taken[row].tolist() for row in range(20)] == [matches[row].tolist() for row in range(0, 60, 3)]
    joined = Matches.joined([taken, matches.take(~some)])
    assert len(joined) == 60 and np.array_equal(np.sort(joined.entries), np.sort(matches.entries))
    assert len(Matches.joined([])) == 0
