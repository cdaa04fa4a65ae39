"""Views of a set: groups of near-duplicates, outliers with their neighbours, clusters and the words that tell them apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ostension.curate.views import clusters, duplicates, outliers, words_for
from ostension.errors import ConfigError, DataError
from ostension.store import Store
from ostension.store.key import SetKey

KEY = SetKey(kind="images", weights="a" * 64, inputs={}, stored="float32")


def opened(folder: Path, rows, **columns):
    rows = np.asarray(rows, np.float64)
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    with Store(folder).writer(KEY) as writer:
        writer.append(rows, id=[f"p{n}" for n in range(len(rows))], **columns)
    return Store(folder).open(KEY)


def blobs(seed, sizes, width=12, spread=0.15):
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((len(sizes), width))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    of = np.repeat(np.arange(len(sizes)), sizes)
    return centres[of] + spread * generator.standard_normal((sum(sizes), width)), of


def test_rules_join_rows_directly_and_through_others(tmp_path):
    rows = np.eye(9)
    rows[1] = rows[0]  # near embeddings
    rows[2] = [1, 0.8, 0, 0, 0, 0, 0, 0, 0]  # a cosine of 0.78 with the first: hash joins them
    found = opened(
        tmp_path, rows,
        digest=np.array([1, 2, 3, 4, 5, 5, 7, 8, 9], np.uint64),
        perceptual=np.array([0b1111, 2**40, 0b1110, 2**50, 2**51 + 7, 2**60, 2**33, 0xFFFF0000, 0xFFFF0001], np.uint64),
    )  # fmt: skip
    groups = duplicates(found, cosine=0.99, bits=1)
    assert [(group.rows, group.why) for group in groups] == [((0, 1, 2), ("hash", "embedding")), ((4, 5), ("bytes",))]
    assert groups[0].least == pytest.approx(1 / np.sqrt(1.64), abs=1e-6)
    # The last two have near hashes but nothing in common by their embeddings.
    assert [group.rows for group in duplicates(found, cosine=None, bits=None)] == [(4, 5)]
    with pytest.raises(ConfigError, match="bits"):
        duplicates(found, bits=40)


def test_a_set_without_hashes_or_rows_has_the_groups_it_can_have(tmp_path):
    rows = np.ones((4, 3))
    assert [group.rows for group in duplicates(opened(tmp_path / "a", rows))] == [(0, 1, 2, 3)]
    with Store(tmp_path / "b").writer(KEY):
        pass
    empty = Store(tmp_path / "b").open(KEY)
    assert duplicates(empty) == []
    with pytest.raises(DataError, match="0 rows; expected two or more"):
        outliers(empty)
    with pytest.raises(DataError, match="0 rows; expected two or more"):
        clusters(empty)


def test_the_row_that_is_far_from_all_is_the_first_outlier(tmp_path):
    rows, _ = blobs(0, [30, 30])
    rows = np.concatenate([rows, [-rows[:30].mean(axis=0) - rows[30:].mean(axis=0)]])
    found = opened(tmp_path, rows)
    seen = outliers(found, 5, neighbours=4)
    wide = found.rows[:].astype(np.float64)
    products = wide @ wide.T
    np.fill_diagonal(products, -np.inf)
    best = -np.sort(-products, axis=1)[:, :4]
    expected = 1 - best.mean(axis=1)
    order = np.argsort(-expected, kind="stable")[:5]
    assert seen.rows[0] == 60 and seen.rows.tolist() == order.tolist()
    np.testing.assert_allclose(seen.distances, expected[order], atol=1e-12)
    np.testing.assert_array_equal(seen.nearest, products.argmax(axis=1)[order])
    assert seen.median == pytest.approx(np.median(expected))


def test_outliers_of_rows_that_are_all_equal_are_the_first_at_no_distance(tmp_path):
    seen = outliers(opened(tmp_path, np.ones((40, 5))), 3, neighbours=2)
    assert seen.rows.tolist() == [0, 1, 2] and np.abs(seen.distances).max() < 1e-6
    assert (seen.nearest != seen.rows).all()


def test_clusters_find_their_number_and_are_the_same_again(tmp_path):
    rows, of = blobs(1, [50, 40, 30, 20, 20, 20], width=24, spread=0.05)
    found = opened(tmp_path, rows)
    one, again = clusters(found), clusters(found)
    assert np.array_equal(one.of, again.of) and len(one.centres) == 6
    sizes = np.bincount(one.of)
    assert sorted(sizes.tolist(), reverse=True) == sizes.tolist() == [50, 40, 30, 20, 20, 20]
    for cluster in range(6):
        assert len(set(of[one.members(cluster)].tolist())) == 1
    assert len(clusters(found, 3).centres) == 3
    with pytest.raises(ConfigError, match="count"):
        clusters(found, 1000)


def test_a_word_that_fits_everything_names_nothing():
    centres = np.eye(3)
    words = ["one", "two", "three", "picture"]
    embedded = np.concatenate([0.6 * np.eye(3), np.full((1, 3), 0.55)])
    found = words_for(centres, words, embedded, 40.0, count=2)
    assert [some[0][0] for some in found] == ["one", "two", "three"]
    # By similarity alone the common word would win where a cluster's own word is a little weaker.
    embedded[0] = [0.547, 0, 0]
    assert words_for(centres, words, embedded, 40.0, count=1)[0][0][0] == "one"
