"""Several sources with weights: shares, epochs, world sizes, all as a function of the step."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostension.data.mixture import Mixture, _lattice
from ostension.errors import ConfigError, DataError

THREE = Mixture((100, 30, 7), (3, 1, 0.123), 16, seed=1)


def sources_of(mixture, samples):
    return np.searchsorted(np.cumsum(mixture.sizes), samples, side="right")


@settings(max_examples=200, deadline=None)
@given(count=st.integers(0, 60), modulus=st.integers(1, 50), slope=st.integers(0, 120), offset=st.integers(0, 120))
def test_the_closed_form_counts_the_points_under_a_line(count, modulus, slope, offset):
    assert _lattice(count, modulus, slope, offset) == sum((slope * n + offset) // modulus for n in range(count))


@settings(max_examples=40, deadline=None)
@given(weights=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6), batch=st.integers(1, 300), start=st.integers(0, 10**7))
def test_every_batch_holds_the_share_of_every_source_up_to_rounding(weights, batch, start):
    mixture = Mixture((10**6,) * len(weights), tuple(weights), batch)
    quotas = [batch * Fraction(weight) / sum(map(Fraction, weights)) for weight in weights]
    for step in range(start, start + 5):
        counts = mixture.counts(step)
        assert sum(counts) == batch
        assert all(quota // 1 <= count <= quota // 1 + 1 for count, quota in zip(counts, quotas, strict=True))
        assert all(quota.denominator > 1 or count == quota for count, quota in zip(counts, quotas, strict=True))


def test_over_any_stretch_of_steps_a_source_is_within_three_samples_of_its_share():
    given_before = np.array([THREE.given(step) for step in range(5001)])
    assert (np.diff(given_before, axis=0) == [THREE.counts(step) for step in range(5000)]).all()
    for length in (1, 2, 7, 50, 333, 2000):
        found = given_before[length:] - given_before[:-length]
        assert abs(found - length * np.array(THREE.expected)).max() < 3


def test_batches_hold_the_samples_that_the_counts_say():
    for step in (0, 1, 77):
        found = np.bincount(sources_of(THREE, THREE.batch(step)), minlength=3)
        assert found.tolist() == list(THREE.counts(step))


def test_every_source_visits_all_its_samples_once_in_each_of_its_own_epochs():
    seen = [[], [], []]
    for step in range(40):
        samples, visits = THREE.batch(step), THREE.visits(step, 0, 16)
        for source, sample, visit in zip(sources_of(THREE, samples), samples, visits, strict=True):
            seen[source].append((int(visit), int(sample)))
    for source, (size, first) in enumerate(((100, 0), (30, 100), (7, 130))):
        whole = len(seen[source]) // size
        assert whole == (4, 5, 2)[source]
        for epoch in range(whole):
            visited = [sample for visit, sample in seen[source] if visit == epoch]
            assert sorted(visited) == list(range(first, first + size))
        orders = [[sample for visit, sample in seen[source] if visit == epoch] for epoch in range(whole)]
        assert len({tuple(order) for order in orders}) == whole


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_another_world_size_gives_the_same_global_batches(world_size, replacement):
    mixture = Mixture((100, 30, 7), (3, 1, 0.123), 16, 1, replacement)
    for step in (0, 9, 10, 400):
        parts = [mixture.batch(step, rank=rank, world_size=world_size) for rank in range(world_size)]
        assert {len(part) for part in parts} == {16 // world_size}
        assert np.concatenate(parts).tolist() == mixture.batch(step).tolist()


def test_resuming_with_another_world_size_sees_exactly_the_samples_that_were_left():
    whole = sorted(sample for step in range(9) for sample in THREE.batch(step).tolist())
    before = [sample for step in range(5) for rank in range(2) for sample in THREE.batch(step, rank=rank, world_size=2)]
    resumed = Mixture(THREE.sizes, THREE.weights, 16, 1)
    after = [sample for step in range(5, 9) for rank in range(4) for sample in resumed.batch(step, rank=rank, world_size=4)]
    assert sorted(map(int, before + after)) == whole


def test_the_parts_of_a_batch_are_mixed():
    mixture = Mixture((1000, 1000), (1, 1), 64)
    shares = [np.mean(mixture.batch(step, rank=0, world_size=2) < 1000) for step in range(200)]
    assert 0.48 < np.mean(shares) < 0.52 and np.std(shares) > 0.03


def test_with_replacement_samples_are_drawn_evenly_and_small_sources_may_repeat_in_a_batch():
    mixture = Mixture((50, 3), (1, 1), 40, 0, replacement=True)
    samples = np.concatenate([mixture.batch(step) for step in range(200)])
    counts = np.bincount(samples, minlength=53)
    assert counts[:50].sum() == counts[50:].sum() == 4000
    assert abs(counts[:50] - 80).max() < 45 and abs(counts[50:] - 1333).max() < 150
    visits = mixture.visits(3, 0, 40)
    assert len(set(zip(mixture.batch(3).tolist(), visits.tolist(), strict=True))) == 40


def test_substitutes_come_from_the_same_source():
    assert [THREE.pool(sample) for sample in (0, 99, 100, 129, 130, 136)] == [
        (0, 100), (0, 100), (100, 30), (100, 30), (130, 7), (130, 7),
    ]  # fmt: skip


def test_weights_in_any_unit_give_the_same_order():
    one, other = Mixture((50, 50), (3, 1), 8), Mixture((50, 50), (0.75, 0.25), 8)
    assert [one.batch(step).tolist() for step in range(20)] == [other.batch(step).tolist() for step in range(20)]


def test_a_rare_source_comes_as_often_as_it_should():
    mixture = Mixture((10**6, 10**6), (999, 1), 8)
    assert mixture.given(125_000)[1] in (999, 1000, 1001)
    assert max(mixture.counts(step)[1] for step in range(2000)) == 1


@pytest.mark.parametrize("weights", [(1,), (1, 0), (1, -2), (1, float("nan")), (1, float("inf"))])
def test_weights_that_cannot_be_meant_are_refused(weights):
    with pytest.raises(ConfigError, match="batches.weights"):
        Mixture((10, 10), weights, 4)


def test_a_source_smaller_than_its_part_of_a_batch_is_refused():
    with pytest.raises(DataError, match=r"source 2 of 2 has 3 pairs, and 8 of them are to be in each batch.*lower its weight"):
        Mixture((100, 3), (1, 1), 16)
    assert len(Mixture((100, 3), (1, 1), 16, replacement=True).batch(0)) == 16


def test_the_order_is_the_one_of_today():
    # Stored so that a change of the order cannot go unnoticed: it would make old runs impossible to resume.
    assert Mixture((1000, 500), (2, 1), 6, 42).batch(200).tolist() == [40, 876, 1280, 1366, 185, 825]
