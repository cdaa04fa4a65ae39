"""The approximate index: recall against exact, filters, deletions, and what is stale is never used."""

from __future__ import annotations

import numpy as np
import pytest
from store_making import key, names

from ostension.errors import DataError
from ostension.store import Store, search
from ostension.store.index import Index, remove
from ostension.store.searcher import Searcher

pytest.importorskip("faiss")


def clustered(seed, count, width=16):
    """Rows around centres that do not depend on the seed."""
    centres = np.random.default_rng(0).standard_normal((20, width))
    generator = np.random.default_rng(seed)
    rows = centres[generator.integers(0, 20, count)] + 0.7 * generator.standard_normal((count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def filled(folder, count=1500):
    with Store(folder).writer(key(), shard_rows=1000) as writer:
        writer.append(clustered(1, count), id=names(0, count))
    return Store(folder).open(key())


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf", "ivfpq"])
def test_every_kind_reaches_its_recall_and_says_it(tmp_path, kind):
    opened = filled(tmp_path)
    built = Index.build(opened, kind).built
    index = Index.open(opened)
    assert index.built == built and built.recall >= 0.95 and built.rows == 1500
    assert f"approximate: {kind} index, measured recall@10" in index.note
    asked = clustered(2, 50)
    exact = search(opened.rows, asked, 10)
    rows, scores = index.search(asked, 10)
    assert np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(rows, exact.rows, strict=True)]) >= 0.9
    products = (opened.rows[rows.ravel()].astype(float).reshape(50, 10, -1) * asked[:, None].astype(float)).sum(axis=2)
    np.testing.assert_allclose(scores, products, rtol=1e-12)
    assert (np.diff(scores, axis=1) <= 0).all()


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_filters_and_deletions_hold(tmp_path, kind):
    opened = filled(tmp_path)
    Index.build(opened, kind)
    with Store(tmp_path).writer(key()) as writer:
        writer.delete(np.arange(0, 1500, 3))
    now = Store(tmp_path).open(key())
    index = Index.open(now)
    mask = np.random.default_rng(3).random(len(now)) < 0.5
    asked = clustered(4, 20)
    rows, _ = index.search(asked, 10, mask)
    assert mask[rows[rows >= 0]].all()
    exact = search(now.rows, asked, 10, mask=mask)
    assert np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(rows, exact.rows, strict=True)]) >= 0.9
    none, _ = index.search(asked, 10, np.zeros(len(now), bool))
    assert none.shape == (20, 0)
    assert index.search(asked, 0)[0].shape == (20, 0)
    few = np.zeros(len(now), bool)
    few[[5, 9]] = True
    assert {row for row in index.search(asked, 10, few)[0].ravel().tolist() if row >= 0} <= {5, 9}


def test_a_stale_index_is_refused_and_a_new_one_takes_its_place(tmp_path):
    opened = filled(tmp_path, 600)
    Index.build(opened, "ivf")
    with Store(tmp_path).writer(key(), shard_rows=1000) as writer:
        writer.append(clustered(5, 10), id=names(600, 10))
    now = Store(tmp_path).open(key())
    with pytest.raises(DataError, match=r"a stale index, of 600 rows; expected of the 610 rows now; bring it up to date"):
        Searcher(now, index="approximate")
    assert Searcher(now).note == "", "below ten million rows nothing is approximate by itself"
    Index.build(now, "ivf")
    assert Searcher(now, index="approximate").find(clustered(5, 10)[:1], 1)[0][0].id == "id600"


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_queries_that_lie_far_from_all_rows_are_found_as_often_as_is_said(tmp_path, kind):
    # Words lie far from pictures; an effort that is chosen by rows alone finds half of what is nearest to them.
    rows = np.random.default_rng(3).standard_normal((4000, 48)) + 1.5 * np.random.default_rng(4).standard_normal(48)
    with Store(tmp_path).writer(key()) as writer:
        writer.append(rows.astype(np.float32), id=names(0, 4000))
    opened = Store(tmp_path).open(key())
    index = Index.build(opened, kind)
    asked = np.random.default_rng(5).standard_normal((100, 48)).astype(np.float32)
    found, exact = index.search(asked, 10)[0], search(opened.rows, asked, 10).rows
    assert np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(found, exact, strict=True)]) >= 0.9
    assert index.built.queries == 300


@pytest.mark.parametrize("few", [0, 100_000])
def test_a_filter_that_few_rows_pass_loses_none_of_them(tmp_path, few, monkeypatch):
    monkeypatch.setattr("ostension.store.index.FEW", few)
    opened = filled(tmp_path)
    index = Index.build(opened, "hnsw")
    mask = np.zeros(1500, bool)
    mask[np.random.default_rng(6).permutation(1500)[:12]] = True
    rows, scores = index.search(clustered(7, 20), 10, mask)
    exact = search(opened.rows, clustered(7, 20), 10, mask=mask)
    assert rows.shape == (20, 10) and (rows >= 0).all() and np.isfinite(scores).all()
    assert np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(rows, exact.rows, strict=True)]) >= (1.0 if few else 0.9)


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": "ostension index 1", "built": {}, "shards": [], "bytes": 1}', "null"])
def test_facts_of_an_index_that_are_damaged_are_refused_in_one_line(tmp_path, text):
    opened = filled(tmp_path, 300)
    Index.build(opened, "flat")
    (opened.folder / "index" / "index.json").write_text(text)
    with pytest.raises(DataError, match="not the facts of an index; build it again"):
        Index.open(opened)


def test_a_file_that_faiss_cannot_read_is_refused_in_one_line(tmp_path):
    opened = filled(tmp_path, 300)
    Index.build(opened, "flat")
    path = opened.folder / "index" / "index.faiss"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(DataError, match="cannot be read as an index; build it again"):
        Index.open(opened)


def test_no_index_and_a_damaged_one_are_refused(tmp_path):
    opened = filled(tmp_path, 300)
    with pytest.raises(DataError, match="no approximate index here; make one: ostension index build"):
        Searcher(opened, index="approximate")
    Index.build(opened, "flat")
    path = opened.folder / "index" / "index.faiss"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="bytes; expected"):
        Index.open(opened)
    assert remove(opened.folder) and not remove(opened.folder)


def test_an_effort_that_is_not_enough_is_said_as_it_is(tmp_path):
    opened = filled(tmp_path, 800)
    built = Index.build(opened, "ivfpq", recall=1.0).built
    assert 0 < built.recall <= 1 and built.effort <= 4096
