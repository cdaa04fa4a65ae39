"""Clusters of pictures' embeddings, and pairs that lie in those of a target set."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parent))
from curating import lines_of, parts_of
from test_agreement import folder, pictures, source  # noqa: F401 - fixtures
from test_filter_stage import table, tar_of

from ostension.curate.candidates import describe
from ostension.curate.clusters import Sample, k_means, nearest
from ostension.curate.run import begin, run_stage
from ostension.curate.stages.target import CENTRES, KEPT, Config
from ostension.errors import ConfigError, DataError
from ostension.formats.load import load


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def grouped(groups, each, width=8, noise=0.05, seed=0):
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(groups), each)
    return unit(np.eye(width)[truth] + noise * rng.standard_normal((len(truth), width))), truth


def test_nearest_is_the_largest_cosine_and_the_first_of_equal_ones():
    rows, _ = grouped(4, 5)
    centres = unit(np.eye(8)[:4])
    places, cosines = nearest(rows, centres)
    assert places.tolist() == (rows @ centres.T).argmax(axis=1).tolist()
    np.testing.assert_allclose(cosines, (rows @ centres.T).max(axis=1), atol=1e-6)
    assert nearest(rows[:1], np.repeat(centres[:1], 3, axis=0))[0].tolist() == [0]


def test_centres_are_the_directions_of_their_rows_and_never_worse_than_the_first_ones():
    rows, _ = grouped(6, 40, noise=0.2)
    first = k_means(rows, 6, 0, rounds=0)
    centres = k_means(rows, 6, 0)
    assert nearest(rows, centres)[1].mean() >= nearest(rows, first)[1].mean() - 1e-6
    places, _ = nearest(rows, centres)
    for number in np.unique(places):
        mean = rows[places == number].sum(axis=0)
        np.testing.assert_allclose(centres[number], mean / np.linalg.norm(mean), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(centres, k_means(rows, 6, 0))


def test_there_are_no_more_centres_than_rows():
    rows, _ = grouped(3, 1)
    assert k_means(rows, 10, 0).shape == (3, 8)


@given(st.permutations(range(30)), st.integers(1, 40), st.integers(1, 10))
def test_a_sample_does_not_depend_on_the_order_or_on_the_parts(order, size, part):
    rows = np.arange(60, dtype=np.float32).reshape(30, 2)

    def taken(order, part):
        sample = Sample(size, 3)
        for start in range(0, 30, part):
            ids = np.array(order[start : start + part])
            sample.add(ids, rows[ids])
        assert sample.seen == 30
        return sample.rows()

    np.testing.assert_array_equal(taken(order, part), taken(list(range(30)), 30))
    assert len(taken(order, part)) == min(size, 30)


def run(tmp_path, source, config, name="work", **options):  # noqa: F811
    work = begin(tmp_path / name, describe([str(source)], part_size=8))
    return run_stage(work, "target", config, **options)


def test_pairs_stay_where_a_target_picture_is_nearest(tmp_path, folder, source):  # noqa: F811
    target = tar_of(tmp_path / "target.tar", [("target", data) for data in list(pictures(20))[3:5]])
    entry = run(tmp_path, source, Config(model=folder, pictures=str(target), clusters=6, sample=10))
    facts = entry.counts()["facts"]
    found = table(entry, "dropped", "cluster", "cosine")
    centres, kept = np.load(entry.folder / CENTRES), np.load(entry.folder / KEPT)
    assert len(centres) == facts["clusters"] == 6 and len(kept) == facts["kept_clusters"] <= 2 and facts["targets"] == 2
    rows = load(folder, device="cpu", dtype="float32").embed_images(list(pictures(20))).numpy()
    products = rows @ centres.T
    for row, product in zip(found, products, strict=True):
        assert product[row["cluster"]] >= product.max() - 1e-3
        assert row["dropped"] == (None if row["cluster"] in kept else "far from the target")
    assert [found[place]["dropped"] for place in (3, 4)] == [None, None], "the targets themselves are among the pairs"
    assert 0 < entry.counts()["reasons"]["far from the target"] < 18
    assert "row_of_picture" not in found[0]


def test_what_the_store_has_gives_the_same_clusters(tmp_path, folder, source):  # noqa: F811
    config = Config(model=folder, pictures=str(source), clusters=5, store=str(tmp_path / "store"))
    one, two = run(tmp_path, source, config, "one"), run(tmp_path, source, config, "two")
    assert parts_of(one) == parts_of(two) and one.counts()["kept"] == 20


def test_pictures_that_cannot_be_used_are_no_part_of_it(tmp_path, folder):  # noqa: F811
    good = list(pictures(4))
    source = tar_of(tmp_path / "a.tar", [("a", good[0]), ("b", good[1][:200]), ("c", good[2])])  # noqa: F811
    entry = run(tmp_path, source, Config(model=folder, pictures=str(source), clusters=2))
    assert table(entry, "dropped", "cluster")[1] == {"dropped": "unreadable", "cluster": None}
    assert entry.counts()["facts"]["targets"] == 2 and entry.counts()["kept"] == 2


def test_what_cannot_be_carried_out_is_refused(tmp_path, folder):  # noqa: F811
    for bad in ({"clusters": 1}, {"sample": 0}, {"pictures": ""}, {"model": ""}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            Config(**{"model": "m", "pictures": "p", **bad})
    with pytest.raises((DataError, ConfigError)):
        run(tmp_path, lines_of(tmp_path / "a.txt", ["a"]), Config(model=folder, pictures=str(tmp_path / "none")))
