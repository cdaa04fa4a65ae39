"""Features from sets and arrays, checked; sets as files that other programs read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from store_making import key, names, unit_rows

from ostension.errors import ConfigError, DataError
from ostension.store import Features, Store, export

LABELS = [["cat"], ["dog"], ["cat"], ["owl"], ["dog"]]


def labelled_set(folder, labels=LABELS, complete=True):
    count = len(labels)
    fields = [json.dumps({"camera": f"c{row % 2}", "year": 2000 + row}) for row in range(count)]
    with Store(folder).writer(key(), shard_rows=2) as writer:
        writer.append(
            unit_rows(0, count),
            id=names(0, count),
            labels=[json.dumps(several) for several in labels],
            fields=fields,
            texts=[json.dumps([f"text {row}", "é"]) for row in range(count)],
            digest=np.arange(count, dtype=np.uint64) + np.uint64(2**63),
        )
        writer.commit(complete=complete)
    return Store(folder).open(key())


def test_features_of_a_set_have_labels_groups_ids_and_captions(tmp_path):
    features = Features.of_set(labelled_set(tmp_path), groups=("camera", "year"))
    assert features.classes == ("cat", "dog", "owl") and features.targets.tolist() == [0, 1, 0, 2, 1]
    assert features.groups["camera"].tolist() == ["c0", "c1", "c0", "c1", "c0"] and features.groups["year"][1] == "2001"
    assert features.ids == tuple(names(0, 5)) and features.texts[1] == ("text 1", "é")
    assert np.array_equal(features.array(), unit_rows(0, 5)) and features.facts["key"]["weights"] == "a" * 64
    some = features.take(features.targets == 0)
    assert some.ids == ("id0", "id2") and np.array_equal(some.rows, unit_rows(0, 5)[[0, 2]]) and len(some.texts) == 2
    assert features.take([4, 1]).targets.tolist() == [1, 1]


def test_labels_can_be_a_field_and_classes_can_be_given(tmp_path):
    opened = labelled_set(tmp_path)
    assert Features.of_set(opened, label="camera").classes == ("c0", "c1")
    assert Features.of_set(opened, classes=["owl", "dog", "cat"]).targets.tolist() == [2, 1, 2, 0, 1]
    with pytest.raises(DataError, match=r"\(id3\): unknown label 'owl'; expected one of 2 classes"):
        Features.of_set(opened, classes=["dog", "cat"])
    with pytest.raises(DataError, match=r"\(id0\): unknown field 'Camera'.*'camera'"):
        Features.of_set(opened, groups=["Camera"])


def test_several_labels_a_sample_give_a_column_a_class(tmp_path):
    features = Features.of_set(labelled_set(tmp_path, [["a", "b"], [], ["b"]]))
    assert features.targets.tolist() == [[1, 1], [0, 0], [0, 1]]
    assert Features.of_set(labelled_set(tmp_path / "none", [[], []])).targets is None


def test_a_set_that_is_not_complete_gives_no_features(tmp_path):
    with pytest.raises(DataError, match="expected a set that is complete"):
        Features.of_set(labelled_set(tmp_path, complete=False))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": np.zeros((3, 2, 2))}, r"rows of shape \(3, 2, 2\)"),
        ({"rows": np.zeros((3, 2), int)}, "type int64; expected floating point"),
        ({"rows": np.array([[1.0], [np.nan], [1.0]])}, "row 1 has a number that is not finite"),
        ({"targets": np.array([0, 1])}, "2 targets; expected 3, one a row"),
        ({"targets": np.array([0, 1, 2])}, "targets from 0 to 2; expected 0 to 1, as there are 2 classes"),
        ({"targets": np.array([0, -1, 1])}, "targets from -1 to 1"),
        ({"targets": np.array([0.0, 1.0, 1.0])}, "type float64; expected whole numbers"),
        ({"targets": np.zeros((3, 3), int)}, r"expected whole numbers \(N,\), or \(N, 2\)"),
        ({"targets": np.full((3, 2), 2)}, "expected 0 and 1"),
        ({"ids": ("a", "b", "a")}, "the id 'a' comes twice"),
        ({"classes": ("a", "a")}, "the class 'a' comes twice"),
        ({"groups": {"camera": np.zeros(2)}}, "2 camera; expected 3"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(changes, message):
    good = {"rows": np.eye(3), "targets": np.array([0, 1, 1]), "classes": ("cat", "dog")}
    Features(**good)
    with pytest.raises(DataError, match=message):
        Features(**(good | changes))


def test_unit_rows_are_made_and_a_row_of_zeros_is_named():
    rows = np.array([[3.0, 4.0], [0.0, -2.0]], np.float16)
    assert Features(rows=rows).unit().tolist() == [[np.float32(0.6), np.float32(0.8)], [0.0, -1.0]]
    with pytest.raises(DataError, match=r"row 1 \(b\) is all zeros"):
        Features(rows=rows * [[1], [0]], ids=("a", "b")).unit()


def test_npz_files_are_read_by_usual_names_or_by_given_ones(tmp_path):
    path = tmp_path / "some.npz"
    np.savez(
        path, feats=np.eye(3, dtype=np.float16), labels=np.array([1, 0, 1]), names=np.array(["cat", "dog"]), other=np.ones(3)
    )
    features = Features.of_npz(path)
    assert features.classes == ("cat", "dog") and features.targets.tolist() == [1, 0, 1] and features.ids == ("0", "1", "2")
    assert Features.of_npz(path, classes=["a", "b", "c"]).classes == ("a", "b", "c")
    with pytest.raises(ConfigError, match="unknown array 'feat'.*'feats'"):
        Features.of_npz(path, rows="feat")
    np.savez(path, x=np.eye(2), y=np.array(["b", "a"]), ids=np.array(["i", "j"]))
    assert Features.of_npz(path).targets.tolist() == [1, 0] and Features.of_npz(path).ids == ("i", "j")
    np.savez(path, x=np.eye(2), y=np.eye(2, dtype=int))
    with pytest.raises(DataError, match="several labels a row"):
        Features.of_npz(path)
    np.savez(path, other=np.eye(2))
    with pytest.raises(DataError, match="no array of rows among other"):
        Features.of_npz(path)
    path.write_bytes(b"PK no")
    with pytest.raises(DataError, match="not an npz of plain arrays"):
        Features.of_npz(path)


@pytest.mark.skipif("OSTENSION_DATA" not in os.environ, reason="OSTENSION_DATA is not set")
def test_published_features_are_read():
    folder = Path(os.environ["OSTENSION_DATA"]) / "clip_cached_features"
    views = Features.of_npz(folder / "openai_vitb32_image_phone_views.npz")
    assert len(views) == 275 and views.rows.shape == (275, 512) and np.bincount(views.targets).tolist() == [88, 77, 110]
    news = Features.of_npz(folder / "openai_vitb32_image_news480.npz")
    assert news.targets is None and np.allclose(np.linalg.norm(news.unit(), axis=1), 1, atol=1e-6)
    lvis = Features.of_npz(folder / "openai_vitb32_text_classnames.npz", rows="lvis", ids="lvis_names")
    assert len(lvis) == 1203 and len(set(lvis.ids)) == 1203
    assert Features.of_npz(folder / "openai_vitb32_image_flickr8k_1000.npz").ids[0] == "0"  # its file names repeat themselves


def test_other_programs_read_the_matrix_and_the_table(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    opened = labelled_set(tmp_path / "store")
    matrix, table = export(opened, tmp_path / "out", vectors=True)
    assert np.array_equal(np.load(matrix, mmap_mode="r"), unit_rows(0, 5))
    rows = parquet.read_table(table).to_pylist()
    assert [row["id"] for row in rows] == opened.ids and rows[1]["labels"] == ["dog"] and rows[0]["texts"] == ["text 0", "é"]
    assert rows[4]["digest"] == 2**63 + 4 and (rows[3]["camera"], rows[3]["year"]) == ("c1", "2003")
    assert np.array_equal(np.array([row["vector"] for row in rows], np.float32), unit_rows(0, 5))
    assert "vector" not in parquet.read_table(export(opened, tmp_path / "out")[1]).column_names
