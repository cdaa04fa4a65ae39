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
from ostension.store.codes import GROUP, STRIPE, Codes, encode, products_are_right


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
    codes = Codes.of(rows) if data.draw(st.booleans()) else None
    check(search(rows, asked, k, mask=mask, precision=precision, block_rows=block, codes=codes), rows, asked, k, mask)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_rows_that_differ_by_less_than_the_first_pass_sees_are_ranked_exactly(precision):
    base = unit_rows(0, 1, 64)
    rows = np.repeat(base, 300, axis=0)
    rows[:, 0] += np.random.default_rng(1).permutation(300).astype(np.float32) * 1e-7
    check(search(rows, base, 20, precision=precision, block_rows=64), rows, base, 20)


def crowded(seed, count, width):
    """Rows of different lengths around a common one, some of them twice: hard for bounds on an error."""
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((count, width)) * generator.lognormal(0, 0.5, (count, 1))
    rows += 3 * generator.standard_normal(width)
    rows[count // 2 :: 7] = rows[0]
    return rows.astype(np.float16)


@pytest.mark.parametrize("queries", [1, 20])
@pytest.mark.parametrize("share", [None, 0.9, 0.003])
def test_codes_of_many_groups_give_the_same_answer(queries, share):
    rows = crowded(0, GROUP + 3 * STRIPE + 17, 12)
    asked = crowded(1, queries, 12).astype(np.float32)
    mask = None if share is None else np.random.default_rng(2).random(len(rows)) < share
    for k in (10, 300):
        check(search(rows, asked, k, mask=mask, codes=Codes.of(rows)), rows, asked, k, mask)


def test_what_codes_leave_of_a_row_is_within_their_bound():
    rows = crowded(3, GROUP + 100, 16)
    part = encode(rows)
    for place, row in enumerate(part.order):
        group = place // GROUP
        made = part.step[group] * part.codes[place].numpy().astype(np.float64)
        left = rows[row].astype(np.float64) - part.mean.astype(np.float64) - made
        assert np.linalg.norm(left) <= part.rest[group] and np.linalg.norm(made) <= part.length[group]
    assert sorted(part.order.tolist()) == list(range(len(rows)))


def test_more_equal_rows_than_are_kept_apart_are_ranked_by_their_numbers(monkeypatch):
    from ostension.store import candidates

    monkeypatch.setattr(candidates, "WAITING", 64)
    monkeypatch.setattr(candidates, "CROWD", 100)
    rows = np.repeat(unit_rows(0, 1, 8), 5000, axis=0)
    rows[4990] = 2 * rows[0]
    for codes in (None, Codes.of(rows)):
        found = search(rows, rows[:2], 12, block_rows=256, codes=codes)
        assert found.rows.tolist() == [[4990, *range(11)]] * 2


def test_codes_beside_a_set_are_made_once_and_again_only_for_new_shards(tmp_path):
    rows = unit_rows(0, 60)
    with Store(tmp_path).writer(key(), shard_rows=25) as writer:
        writer.append(rows, id=names(0, 60))
    opened = Store(tmp_path).open(key())
    assert Codes.of_set(opened) is None
    assert len(Codes.of_set(opened, build=True)) == 60
    files = {path.name: path.stat().st_mtime_ns for path in (opened.folder / "codes").glob("*.arrays")}
    with Store(tmp_path).writer(key(), shard_rows=25) as writer:
        writer.append(unit_rows(1, 30), id=names(60, 30))
        writer.commit()
        writer.delete([3, 70])
    now = Store(tmp_path).open(key())
    assert Codes.of_set(now) is None, "codes of some shards only are not used"
    codes = Codes.of_set(now, build=True)
    again = {path.name: path.stat().st_mtime_ns for path in (opened.folder / "codes").glob("*.arrays")}
    assert files.items() <= again.items() and len(again) > len(files)
    asked = unit_rows(2, 4)
    check(search(now.rows, asked, 9, codes=codes), np.asarray(now.rows), asked, 9)
    with Store(tmp_path).writer(key()) as writer:
        writer.compact()
    assert Codes.of_set(Store(tmp_path).open(key())) is None
    compact = Store(tmp_path).open(key())
    Codes.of_set(compact, build=True)
    left = {path.name.removesuffix(".arrays") for path in (opened.folder / "codes").glob("*.arrays")}
    assert left == {shard.name for shard in compact.manifest.shards}


def test_codes_that_are_torn_or_of_other_rows_are_not_used(tmp_path):
    with Store(tmp_path).writer(key()) as writer:
        writer.append(unit_rows(0, 20), id=names(0, 20))
    opened = Store(tmp_path).open(key())
    Codes.of_set(opened, build=True)
    (path,) = (opened.folder / "codes").glob("*.arrays")
    path.write_bytes(path.read_bytes()[:-9])
    assert Codes.of_set(opened) is None
    assert len(Codes.of_set(opened, build=True)) == 20
    with pytest.raises(DataError, match="codes of 20 rows; expected of 19"):
        search(unit_rows(0, 19), unit_rows(0, 1), codes=Codes.of_set(opened))


def test_a_processor_that_multiplies_whole_numbers_wrongly_does_without_codes(monkeypatch):
    from ostension.store import exact

    monkeypatch.setattr(exact, "products_are_right", lambda width: False)
    monkeypatch.setattr(exact, "by_codes", None)
    rows = unit_rows(0, 300)
    check(search(rows, rows[:2], 5, codes=Codes.of(rows)), rows, rows[:2], 5)
    assert products_are_right(8) in (True, False)


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


def test_queries_that_may_not_be_written_to_are_taken_without_a_warning():
    rows = np.eye(4, dtype=np.float32)
    query = np.frombuffer(rows[2].tobytes(), np.float32)[None]
    assert search(rows, query, 1).rows.tolist() == [[2]]


@pytest.mark.parametrize("codes", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_named_and_never_makes_the_answer_empty(codes, bad):
    rows = unit_rows(0, 40, 8)
    rows[7, 3] = bad
    with pytest.raises(DataError, match="row 7 has numbers that are not finite"):
        search(rows, unit_rows(1, 2, 8), 5, codes=Codes.of(rows) if codes else None)


@pytest.mark.parametrize("codes", [False, True])
@pytest.mark.parametrize(("of_rows", "of_queries"), [(1e-35, 1e-30), (1e30, 1e30), (1.0, 1e-30), (1e-25, 1.0)])
def test_rows_and_queries_whose_products_leave_float32_are_ranked_all_the_same(codes, of_rows, of_queries):
    rows = unit_rows(0, 300, 16) * np.float32(of_rows)
    queries = unit_rows(1, 3, 16) * np.float32(of_queries)
    found = search(rows, queries, 5, codes=Codes.of(rows) if codes else None)
    check(found, rows, queries, 5)


def test_long_and_short_rows_in_one_block_are_ranked_by_their_products():
    lengths = np.exp(np.random.default_rng(2).normal(0, 12, (400, 1)))
    rows = (unit_rows(0, 400, 16) * lengths).astype(np.float32)
    queries = unit_rows(1, 4, 16)
    for codes in (None, Codes.of(rows)):
        check(search(rows, queries, 20, codes=codes), rows, queries, 20)
