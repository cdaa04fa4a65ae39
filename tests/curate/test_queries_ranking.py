"""Scores of pairs by hand, and the first of many by rank."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostension.curate.queries.ranking import first, most, score


def of(kind, c12, c1, c2, n):
    return float(score(kind, np.array([c12]), np.array([c1]), np.array([c2]), n)[0])


def test_pmi_by_hand():
    # Of 1,024 words 8 are "New", 16 "York"; 4 times they stand together: 4 * 1024 / (8 * 16) = 32.
    assert of("pmi", 4, 8, 16, 1024) == 5.0
    assert of("pmi", 1, 32, 32, 1024) == 0.0  # as often as by chance
    assert of("pmi", 1, 64, 32, 1024) == -1.0


def test_a_pair_that_is_never_parted_has_the_highest_score_for_its_count():
    assert of("pmi", 4, 4, 4, 1024) == math.log2(1024 / 4) == most("pmi", 4, 1024)
    assert of("npmi", 4, 4, 4, 1024) == 1.0 == most("npmi", 4, 1024)
    assert of("npmi", 7, 7, 7, 7) == 1.0  # nothing else in the corpus
    assert of("npmi", 1, 32, 32, 1024) == 0.0


def test_pmi_prefers_rare_pairs_and_likelihood_frequent_ones():
    rare, frequent = (10, 10, 10, 10**6), (1000, 1500, 1500, 10**6)
    assert of("pmi", *rare) > of("pmi", *frequent)
    assert of("likelihood", *rare) < of("likelihood", *frequent)


def test_likelihood_is_the_g_of_the_four_field_table():
    table = np.array([[12.0, 28.0], [48.0, 912.0]])
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    assert of("likelihood", 12, 40, 60, 1000) == pytest.approx(2 * float((table * np.log(table / expected)).sum()), abs=1e-8)
    assert of("likelihood", 1, 40, 60, 1000) < 0  # rarer than by chance


def test_scores_of_large_counts_do_not_overflow():
    n = 4 * 10**12
    assert of("pmi", 10**10, 10**11, 10**11, n) == pytest.approx(2.0)
    assert math.isfinite(of("likelihood", 10**10, 10**11, 10**11, n))


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=60), st.one_of(st.none(), st.integers(1, 20)),
    st.integers(1, 7),
)  # fmt: skip
def test_the_first_by_rank_are_those_of_a_sort(rows, k, size):
    wanted = sorted(range(len(rows)), key=lambda place: (-rows[place][1], -rows[place][0], place))[:k]
    batches = [
        (
            pa.array(range(start, min(len(rows), start + size)), pa.int64()),
            np.array([count for count, _ in rows[start : start + size]]),
            np.array([float(rank) for _, rank in rows[start : start + size]]),
        )
        for start in range(0, len(rows), size)
    ]
    keys, counts, scores = first(iter(batches), k)
    assert keys.to_pylist() == wanted
    assert counts.tolist() == [rows[place][0] for place in wanted]
    assert scores.tolist() == [rows[place][1] for place in wanted]
