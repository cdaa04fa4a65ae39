from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostension.data.sampler import Sampler, permute
from ostension.errors import ConfigError, DataError


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 700), seed=st.integers(0, 2**31), epoch=st.integers(0, 5))
def test_the_order_of_every_epoch_is_a_permutation(size, seed, epoch):
    order = permute(np.arange(size, dtype=np.uint64), size, (seed, "order", epoch))
    assert sorted(order.tolist()) == list(range(size))


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 300), batch=st.integers(1, 40), seed=st.integers(0, 100))
def test_an_epoch_visits_no_sample_twice_and_drops_only_the_remainder(size, batch, seed):
    if size < batch:
        with pytest.raises(DataError, match="fewer than one global batch"):
            Sampler(size, batch, seed)
        return
    sampler = Sampler(size, batch, seed)
    seen = np.concatenate([sampler.batch(step) for step in range(sampler.steps_per_epoch)])
    assert len(seen) == len(set(seen.tolist())) == size - size % batch


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_another_world_size_gives_the_same_global_batches(world_size, replacement):
    sampler = Sampler(100, 12, 7, replacement)
    for step in (0, 7, 8, 31):
        parts = [sampler.batch(step, rank=rank, world_size=world_size) for rank in range(world_size)]
        assert {len(part) for part in parts} == {12 // world_size}
        assert np.concatenate(parts).tolist() == sampler.batch(step).tolist()


def test_resuming_in_the_middle_of_an_epoch_sees_exactly_what_was_left():
    whole = Sampler(50, 6, 3)
    before = [whole.batch(step).tolist() for step in range(5)]
    resumed = Sampler(50, 6, 3)
    after = [resumed.batch(step).tolist() for step in range(5, 8)]
    assert len({sample for batch in before + after for sample in batch}) == 48
    assert resumed.epoch(7) == 0 and resumed.epoch(8) == 1


def test_epochs_and_seeds_differ_in_order_and_in_the_dropped_remainder():
    sampler = Sampler(103, 10, 1)
    first, second = ([sampler.batch(step) for step in range(start, start + 10)] for start in (0, 10))
    assert np.concatenate(first).tolist() != np.concatenate(second).tolist()
    assert set(np.concatenate(first)) != set(np.concatenate(second))
    assert sampler.batch(0).tolist() != Sampler(103, 10, 2).batch(0).tolist()


def test_every_sample_is_equally_likely_at_every_position():
    # 5 samples, 1,000 epochs: 200 expected in each cell, standard deviation 13.
    counts = np.zeros((5, 5), int)
    for epoch in range(1000):
        counts[np.arange(5), permute(np.arange(5, dtype=np.uint64), 5, (0, "order", epoch)).astype(int)] += 1
    assert abs(counts - 200).max() < 55


def test_neighbours_do_not_stay_neighbours():
    order = permute(np.arange(100_000, dtype=np.uint64), 100_000, (5, "order", 0)).astype(np.int64)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(np.arange(100_000), order)[0, 1]) < 0.02


def test_a_billion_samples_cost_no_more_than_a_few():
    batch = Sampler(400_000_003, 4096, 1).batch(97_000)
    assert len(set(batch.tolist())) == 4096 and batch.min() >= 0 and batch.max() < 400_000_003


def test_drawing_with_replacement_repeats_samples_and_needs_no_full_batch():
    sampler = Sampler(3, 64, 1, replacement=True)
    assert set(sampler.batch(0).tolist()) == {0, 1, 2}
    assert sampler.batch(0).tolist() != sampler.batch(1).tolist()
    assert sampler.visits(5, 1, 3).tolist() == [321, 322] and Sampler(64, 32).visits(5, 1, 3).tolist() == [2, 2]


def test_unequal_parts_and_empty_sources_are_refused():
    with pytest.raises(ConfigError, match="multiple of the number of processes"):
        Sampler(100, 10).batch(0, world_size=3)
    with pytest.raises(ConfigError, match="batch_size is 0"):
        Sampler(100, 0)
    with pytest.raises(DataError):
        Sampler(0, 1, replacement=True)


def test_the_order_is_the_one_of_today_whatever_the_hash_seed():
    # Stored so that a change of the order cannot go unnoticed: it would make old runs impossible to resume.
    code = "from ostension.data.sampler import Sampler; print(Sampler(1000, 6, 42).batch(200).tolist())"
    printed = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout.strip()
        for seed in ("0", "1")
    }
    assert printed == {"[162, 35, 702, 830, 473, 226]"}
