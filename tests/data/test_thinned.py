"""Epochs in which each sample takes part with a probability of its own."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.append(str(Path(__file__).parent))
from shard_making import members, write_tar

from ostension.data.open import open_pairs
from ostension.data.thinned import Thinned, column_beside
from ostension.errors import DataError
from ostension.runtime import numpy_generator


def epoch(order: Thinned, number: int) -> np.ndarray:
    first = number * order.steps_per_epoch
    steps = range(first, first + order.steps_per_epoch)
    return np.concatenate([order.part(step, 0, order.batch_size) for step in steps])


def test_each_sample_is_in_an_epoch_as_often_as_its_probability_says():
    probabilities = numpy_generator("thinned").random(400) ** 2
    probabilities[:30], probabilities[30:50] = 1.0, 0.0
    rounds, size = 300, math.floor(probabilities.sum())
    order = Thinned(probabilities, batch_size=size, seed=4)
    counts = np.zeros(400)
    for number in range(rounds):
        drawn = epoch(order, number)
        assert len(drawn) == len(np.unique(drawn)) == size
        counts += np.bincount(drawn, minlength=400)
    expected = probabilities * order.samples_per_epoch / probabilities.sum()
    assert (counts[30:50] == 0).all()
    # Within five standard deviations of a draw apart from the others (the draws are fixed).
    often = expected > 0.03
    apart = np.abs(counts / rounds - expected)
    assert (apart < 5 * np.sqrt(expected * (1 - expected) / rounds) + 1e-9)[often].all()
    assert apart[~often].max() < 0.04


def test_all_samples_are_in_every_epoch_where_all_probabilities_are_one():
    order = Thinned(np.ones(37), batch_size=37)
    assert sorted(epoch(order, 0)) == sorted(epoch(order, 5)) == list(range(37))
    assert epoch(order, 0).tolist() != epoch(order, 1).tolist()


def test_epochs_and_seeds_take_others():
    probabilities = np.full(1000, 0.3)
    orders = [Thinned(probabilities, batch_size=10), Thinned(probabilities, batch_size=10, seed=1)]
    assert sorted(epoch(orders[0], 0)) != sorted(epoch(orders[0], 1))
    assert sorted(epoch(orders[0], 0)) != sorted(epoch(orders[1], 0))
    assert orders[0].steps_per_epoch == 30 and orders[0].visits(31, 0, 4).tolist() == [1] * 4


def test_a_step_is_a_function_of_its_number_and_parts_make_up_the_batch():
    order = Thinned(np.linspace(0, 1, 200), batch_size=12, seed=3)
    again = Thinned(np.linspace(0, 1, 200), batch_size=12, seed=3)
    whole = again.part(17, 0, 12)
    assert np.array_equal(np.concatenate([order.part(17, 0, 5), order.part(17, 5, 12)]), whole)


def test_an_epoch_smaller_than_a_batch_is_refused():
    with pytest.raises(DataError, match="3 samples an epoch are fewer than one global batch of 4"):
        Thinned(np.full(7, 0.5), batch_size=4)


def beside(path: Path, values: list) -> None:
    keys = [f"{number:05}" for number in range(len(values))]
    pq.write_table(pa.table({"key": keys[::-1], "balance.keep": values[::-1]}), path)


def test_probabilities_stand_beside_the_shards_by_key(tmp_path):
    for number, values in enumerate(([0.1, 0.2, 0.3], [0.5, None, 1.0])):
        write_tar(tmp_path / f"{number:05}.tar", members(3) if number == 0 else members(1) + members(1, 2))
        beside(tmp_path / f"{number:05}.parquet", values)  # the second has a row whose picture could not be had
    assert column_beside(open_pairs(str(tmp_path)), "balance.keep").tolist() == [0.1, 0.2, 0.3, 0.5, 1.0]


@pytest.mark.parametrize(
    ("values", "words"),
    [([0.5, 1.5], "'balance.keep' is 1.5 for 00001"), ([0.5, None], "None for 00001"), ([0.5], "None for 00001")],
)
def test_what_is_no_probability_is_refused_by_key(tmp_path, values, words):
    write_tar(tmp_path / "00000.tar", members(2))
    beside(tmp_path / "00000.parquet", values)
    with pytest.raises(DataError, match=words):
        column_beside(open_pairs(str(tmp_path)), "balance.keep")


def test_what_is_missing_is_named(tmp_path):
    write_tar(tmp_path / "00000.tar", members(2))
    with pytest.raises(DataError, match=r"00000\.parquet: no such file"):
        column_beside(open_pairs(str(tmp_path)), "balance.keep")
    beside(tmp_path / "00000.parquet", [0.5, 0.5])
    with pytest.raises(DataError, match="no column 'score'"):
        column_beside(open_pairs(str(tmp_path)), "score")
    with pytest.raises(DataError, match="no tar shards on disk"):
        column_beside(object(), "balance.keep")
