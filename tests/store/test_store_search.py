"""Search: the answer is that of a dense float64 product, whatever the blocks, the precision of the first pass and the mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from store_making import key, names, unit_rows

from ostension.errors import ConfigError, DataError
from ostension.store import Store, pairs_above, search


def dense(rows, queries, k, mask=None):
    """The reference: every product in float64, the greatest first, equals by their numbers."""
    scores = (rows.astype(np.float64)[None] * np.asarray(queries, np.float32).astype(np.float64)[:, None]).sum(axis=2)
    if mask is not None:
        scores[:, ~mask] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, : min(k, len(rows) if mask is None else int(mask.sum()))]
    return order, np.take_along_axis(scores, order, axis=1)


def check(found, rows, queries, k, mask=None):
    order, scores = dense(rows, queries, k, mask)
    assert np.array_equal(found.rows, order)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-14, atol=1e-300)


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_search_equals_a_dense_float64_product(data):
    count, width, queries = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 9)), data.draw(st.integers(0, 4))
    generator = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    # Few different values make equal products frequent.
    rows = generator.integers(-2, 3, (count, width)).astype(data.draw(st.sampled_from([np.float16, np.float32, np.float64])))
    if data.draw(st.booleans()):
        rows = rows + generator.standard_normal(rows.shape).astype(rows.dtype)
    asked = generator.standard_normal((queries, width)).astype(np.float32).round(data.draw(st.integers(0, 3)))
    mask = data.draw(st.none() | st.just(generator.random(count) < 0.4))
    k = data.draw(st.integers(0, count + 3))
    precision, block = data.draw(st.sampled_from(["float32", "bfloat16"])), data.draw(st.integers(1, 70))
    check(search(rows, asked, k, mask=mask, precision=precision, block_rows=block), rows, asked, k, mask)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_rows_that_differ_by_less_than_the_first_pass_sees_are_ranked_exactly(precision):
    base = unit_rows(0, 1, 64)
    rows = np.repeat(base, 300, axis=0)
    rows[:, 0] += np.random.default_rng(1).permutation(300).astype(np.float32) * 1e-7
    check(search(rows, base, 20, precision=precision, block_rows=64), rows, base, 20)


def test_equal_rows_are_ranked_by_their_numbers():
    rows = np.repeat(unit_rows(0, 1, 33), 500, axis=0)
    for block in (7, 64, 1000):
        assert search(rows, unit_rows(0, 1, 33), 40, block_rows=block).rows.tolist() == [list(range(40))]


def test_a_store_is_searched_through_its_shards_and_without_its_deleted_rows(tmp_path):
    rows = unit_rows(0, 50)
    with Store(tmp_path).writer(key(stored="float16"), shard_rows=8) as writer:
        writer.append(rows, id=names(0, 50))
        writer.commit()
        best = int((rows @ rows[3]).argmax())
        writer.delete([best])
    opened = Store(tmp_path).open(key(stored="float16"))
    stored = np.delete(rows.astype(np.float16), best, axis=0)
    found = search(opened.rows, rows[3:4], 5, block_rows=6)
    check(found, stored, rows[3:4], 5)
    assert f"id{best}" not in opened.column("id", found.rows[0])


def test_nothing_to_find_gives_empty_answers(tmp_path):
    rows, asked = unit_rows(0, 5), torch.from_numpy(unit_rows(1, 2))
    with Store(tmp_path).writer(key()):
        pass
    for found in (
        search(rows, asked, 0),
        search(rows, asked, 3, mask=np.zeros(5, bool)),
        search(rows[:0], asked, 3),
        search(Store(tmp_path).open(key()).rows, asked, 3),
    ):
        assert found.rows.shape == found.scores.shape == (2, 0)
    assert search(rows, asked[:0], 3).rows.shape == (0, 3)
    assert search(rows, asked, 100).rows.shape == (2, 5)


def test_what_cannot_be_asked_is_refused():
    rows = unit_rows(0, 5)
    with pytest.raises(ConfigError, match="k = -1"):
        search(rows, rows, -1)
    with pytest.raises(DataError, match=r"queries of shape \(5, 7\); expected \(Q, 8\)"):
        search(rows, rows[:, :7])
    with pytest.raises(DataError, match="not finite"):
        search(rows, np.full((1, 8), np.nan))
    with pytest.raises(DataError, match="queries of type int64"):
        search(rows, np.ones((1, 8), int))
    with pytest.raises(DataError, match=r"a mask of shape \(4,\)"):
        search(rows, rows, mask=np.ones(4, bool))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_all_pairs_above_a_product_are_those_of_a_dense_float64_product(data):
    count, width = data.draw(st.integers(0, 40)), data.draw(st.integers(1, 9))
    generator = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    rows = generator.integers(-2, 3, (count, width)).astype(data.draw(st.sampled_from([np.float16, np.float32])))
    if data.draw(st.booleans()):
        rows = rows + generator.standard_normal(rows.shape).astype(rows.dtype)
    scores = (rows.astype(np.float64)[:, None] * rows.astype(np.float64)[None]).sum(axis=2)
    # A product that occurs is a threshold that a rounding error would miss.
    least = float(data.draw(st.sampled_from(sorted(set(scores.ravel().tolist())) or [0.0])))
    blocks = {"own_rows": data.draw(st.sampled_from([1, 3, 64])), "block_rows": data.draw(st.sampled_from([1, 4, 64]))}
    found = [(int(a), int(b)) for pairs in pairs_above(rows, least, **blocks) for a, b in zip(pairs.a, pairs.b, strict=True)]
    dense_pairs = [(a, b) for a in range(count) for b in range(a + 1, count) if scores[a, b] >= least]
    assert sorted(found) == dense_pairs
    for pairs in pairs_above(rows, least, **blocks):
        np.testing.assert_allclose(pairs.scores, scores[pairs.a, pairs.b], rtol=1e-14, atol=1e-300)


def test_rows_that_are_not_finite_have_no_pairs():
    with pytest.raises(DataError, match="rows 0 to 2 have numbers that are not finite"):
        list(pairs_above(np.array([[1.0, np.nan], [1.0, 0.0]], np.float32), 0.5))
