"""Searching a set: hits with what is known of them, filters, and the edges."""

from __future__ import annotations

import json

import numpy as np
import pytest
from store_making import key, names, unit_rows

from ostension.errors import ConfigError, DataError
from ostension.store import Store
from ostension.store.key import ModelKey
from ostension.store.searcher import Searcher
from ostension.store.where import parse


def opened(folder, rows, **columns):
    with Store(folder).writer(key(), shard_rows=8) as writer:
        writer.append(rows, id=names(0, len(rows)), **columns)
    return Store(folder).open(key())


def test_hits_have_ids_scores_and_what_is_known(tmp_path):
    rows = unit_rows(0, 20)
    labels = [json.dumps(["cat" if n % 2 else "dog"]) for n in range(20)]
    fields = [json.dumps({"width": 100 * n}) for n in range(20)]
    searcher = Searcher(opened(tmp_path, rows, labels=labels, fields=fields))
    (hits,) = searcher.find(rows[3:4], 4, parse("label = cat and width >= 300"))
    best = [n for n in np.argsort(-(rows.astype(float) @ rows[3].astype(float))) if n % 2 and n >= 3][:4]
    assert [hit.row for hit in hits] == best
    assert [hit.id for hit in hits] == [f"id{n}" for n in best]
    assert hits[0].fields == {"labels": ["cat"], "width": 300}
    assert hits[0].score == pytest.approx(1, abs=1e-6)


def test_equal_rows_come_in_the_order_of_the_set(tmp_path):
    searcher = Searcher(opened(tmp_path, np.repeat(unit_rows(0, 1), 30, axis=0)))
    assert [hit.id for hit in searcher.find(unit_rows(1, 1), 12)[0]] == names(0, 12)


def test_nothing_to_find_gives_no_hits(tmp_path):
    rows = unit_rows(0, 5)
    searcher = Searcher(opened(tmp_path / "some", rows))
    assert searcher.find(rows[:2], 0) == [[], []]
    assert searcher.find(rows[:2], 3, parse("id = nobody")) == [[], []]
    assert [len(hits) for hits in searcher.find(rows[:2], 99)] == [5, 5]
    assert searcher.find(rows[:0], 3) == []
    empty = Searcher(opened(tmp_path / "none", rows[:0]))
    assert empty.find(rows[:2], 3) == [[], []]
    assert empty.find(rows[:2], 3, parse("anything = 1")) == [[], []]


def test_queries_that_do_not_fit_are_refused(tmp_path):
    searcher = Searcher(opened(tmp_path, unit_rows(0, 5)))
    with pytest.raises(DataError, match=r"queries of shape \(1, 9\); expected \(Q, 8\)"):
        searcher.find(np.ones((1, 9), np.float32))
    with pytest.raises(DataError, match="not finite"):
        searcher.find(np.full((1, 8), np.nan, np.float32))
    with pytest.raises(ConfigError, match="k = -1"):
        searcher.find(unit_rows(0, 1), -1)
    with pytest.raises(ConfigError, match="no row has the id 'nobody'"):
        searcher.vectors(["nobody"])


def test_rows_that_were_deleted_are_not_found_and_a_change_is_seen(tmp_path):
    rows = unit_rows(0, 20)
    searcher = Searcher(opened(tmp_path, rows))
    assert searcher.fresh and searcher.find(rows[7:8], 1)[0][0].id == "id7"
    with Store(tmp_path).writer(key()) as writer:
        writer.delete([7])
    assert not searcher.fresh
    again = searcher.reopened()
    assert again.fresh and len(again) == 19
    assert "id7" not in [hit.id for hit in again.find(rows[7:8], 19)[0]]
    np.testing.assert_array_equal(again.vectors(["id8"]), rows[8:9])


def test_another_model_is_refused_with_both_hashes(tmp_path):
    searcher = Searcher(opened(tmp_path, unit_rows(0, 5)))
    other = ModelKey(weights="b" * 64, preprocess={"image_size": 8}, tokenizer={}, computed="float32")
    with pytest.raises(DataError, match=r"embeddings of the model a{16}, and this model is b{16}"):
        searcher.check(other)
