"""A task with its data: targets, groups, splits, and what differs from the record."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from labelled_making import picture, write_folder, write_record
from PIL import Image

from ostension.data.sets.base import ids_sha256
from ostension.data.sets.open import open_set
from ostension.data.suite import read_suite
from ostension.data.task import read_task
from ostension.data.task_check import check_data
from ostension.data.task_data import open_data, open_task
from ostension.errors import ConfigError, DataError

DATA = os.environ.get("OSTENSION_DATA")


def test_targets_follow_the_records_classes_and_not_the_datas_order(tmp_path):
    write_folder(tmp_path / "pets", {"cat": 1, "dog": 3})
    record = write_record(tmp_path / "my.toml", classes='{ dog = "dog", cat = "cat" }')
    found = open_task(record, tmp_path / "pets")
    assert found.classes == ("dog", "cat") and found.targets.tolist() == [1, 0, 0, 0] and found.notes == ()
    assert found.ids == ["cat/0.png", "dog/0.png", "dog/1.png", "dog/2.png"] and len(found) == 4


def test_a_record_beside_its_data_needs_no_path(tmp_path, monkeypatch):
    write_folder(tmp_path / "pets", {"cat": 2, "dog": 2})
    record = write_record(tmp_path / "my.toml", sources='[{ kind = "folder", path = "pets" }]')
    assert open_task(record).targets.tolist() == [0, 0, 1, 1]
    monkeypatch.delenv("OSTENSION_DATA", raising=False)
    with pytest.raises(ConfigError, match="no data is given for the task 'kitti'.*--data"):
        open_task("kitti")


def test_another_count_is_said_at_once_with_both_values(tmp_path, caplog):
    write_folder(tmp_path / "pets", {"cat": 2, "dog": 1})
    found = open_task(write_record(tmp_path / "my.toml"), tmp_path / "pets")
    assert found.notes == (f"{tmp_path}/pets: my/test has 3 samples, the record says 4",)
    assert caplog.messages == list(found.notes) and len(found) == 3


def test_other_ids_are_said_at_once(tmp_path):
    write_folder(tmp_path / "pets", {"cat": 2, "dog": 2})
    right = ids_sha256(open_set(tmp_path / "pets").ids)
    splits = '{ test = { count = 4, ids_sha256 = "%s" } }'
    assert open_task(write_record(tmp_path / "my.toml", splits=splits % right), tmp_path / "pets").notes == ()
    (note,) = open_task(write_record(tmp_path / "my.toml", splits=splits % ("0" * 64)), tmp_path / "pets").notes
    assert f"has the ids {right[:12]}, the record says 000000000000" in note


def test_a_label_without_a_class_is_an_error_that_names_the_sample(tmp_path):
    write_folder(tmp_path / "pets", {"cat": 1, "cow": 1})
    with pytest.raises(DataError, match=r"pets \(cow/0\.png\): unknown label .*'cow'.*nearest: '"):
        open_task(write_record(tmp_path / "my.toml"), tmp_path / "pets")


def test_numbers_mean_classes_only_where_the_record_says_so(tmp_path):
    write_folder(tmp_path / "pets", {"0": 1, "1": 3})
    with pytest.raises(DataError, match="numbers its classes.*order is not known"):
        open_task(write_record(tmp_path / "my.toml"), tmp_path / "pets")
    found = open_task(write_record(tmp_path / "my.toml", numbers_from="0"), tmp_path / "pets")
    assert found.targets.tolist() == [0, 1, 1, 1]


def test_splits_of_the_data_are_found_by_their_usual_words_or_by_the_records_selectors(tmp_path):
    write_folder(tmp_path / "pets", {"training/cat": 1, "valid/cat": 2, "valid/dog": 2})
    splits = "{ train = { count = 1 }, val = { count = 4 }, test = { count = 4, select = { split = ['valid'] } } }"
    record = write_record(tmp_path / "my.toml", splits=splits)
    counts = {split: len(open_task(record, tmp_path / "pets", split=split)) for split in ("train", "val", "test")}
    assert counts == {"train": 1, "val": 4, "test": 4}
    with pytest.raises(ConfigError, match="unknown split .*'tests'"):
        open_task(record, tmp_path / "pets", split="tests")
    missing = write_record(tmp_path / "none.toml")
    with pytest.raises(DataError, match="no sample of the split 'test'.*training, valid"):
        open_task(missing, tmp_path / "pets")


def test_samples_of_other_classes_are_left_out_only_where_the_record_says_so(tmp_path):
    write_folder(tmp_path / "pets", {"cat": 2, "cow": 3, "dog": 2})
    splits = "{ test = { count = 4, classes_only = true } }"
    found = open_task(write_record(tmp_path / "my.toml", splits=splits), tmp_path / "pets")
    assert found.notes == () and found.targets.tolist() == [0, 0, 1, 1]


def test_groups_come_with_the_samples(tmp_path):
    rows = ["image,label,place"]
    for index in range(4):
        (tmp_path / f"{index}.png").write_bytes(picture(index))
        rows.append(f"{index}.png,{'cat' if index < 2 else 'dog'},{'land' if index % 2 else 'water'}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    record = write_record(
        tmp_path / "my.toml", kind='"group"', metric='"worst_group"', groups='{ place = ["land", "water"] }',
        sources='[{ kind = "csv", path = "labels.csv" }]',
    )  # fmt: skip
    found = open_task(record)
    assert found.groups["place"].tolist() == ["water", "land", "water", "land"] and found.targets.tolist() == [0, 0, 1, 1]


def test_pictures_are_cut_where_the_record_says_so(tmp_path):
    write_folder(tmp_path / "pets", {"cat": 2, "dog": 2})
    whole = open_task(write_record(tmp_path / "my.toml"), tmp_path / "pets").samples
    cut = open_task(write_record(tmp_path / "my.toml", cut_px="2"), tmp_path / "pets").samples
    before, after = (np.asarray(Image.open(io.BytesIO(samples.image(3)))) for samples in (whole, cut))
    assert after.tolist() == before[2:-2, 2:-2].tolist() and cut.fingerprint() != whole.fingerprint()
    tiny = open_task(write_record(tmp_path / "my.toml", cut_px="4"), tmp_path / "pets").samples
    with pytest.raises(DataError, match=r"cat/0\.png: a picture of 8 x 8 pixels"):
        tiny.image(0)


def test_several_labels_are_rows_of_ones(tmp_path):
    for index in range(2):
        (tmp_path / f"{index}.png").write_bytes(picture(index))
    (tmp_path / "labels.csv").write_text("image,label\n0.png,cat|dog\n1.png,dog\n")
    record = write_record(
        tmp_path / "my.toml", kind='"multilabel"', metric='"map_11_point"', splits="{ test = { count = 2 } }",
        sources='[{ kind = "csv", path = "labels.csv" }]',
    )  # fmt: skip
    assert open_task(record).targets.tolist() == [[1, 1], [0, 1]]


def test_captions_of_a_retrieval_task_are_as_many_as_the_record_says(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    captions = [["a", "b"], ["c", "d", "e"]]
    parquet.write_table(arrow.table({"image": [picture(0), picture(1)], "captions": captions}), tmp_path / "pairs.parquet")
    (tmp_path / "my.toml").write_text(
        'title = "P"\nversion = 1\nkind = "retrieval"\nmetric = "recall_at_k"\ncaptions_per_image = 2\ntemplates = ["{}"]\n'
        'licence = ""\ncitation = ""\nsplits = { test = { count = 2 } }\n'
        'sources = [{ kind = "parquet", path = "pairs.parquet", texts = "captions" }]\n'
    )
    found = open_task(tmp_path / "my.toml")
    assert found.targets is None and found.captions == [("a", "b"), ("c", "d")]
    assert "1 pictures with 3 captions, the record says 2" in found.notes[0]


def test_checking_finds_leaks_twins_broken_pictures_and_empty_classes(tmp_path):
    write_folder(tmp_path / "pets", {"train/cat": 2, "test/cat": 2, "test/dog": 2})
    same = (tmp_path / "pets/train/cat/0.png").read_bytes()
    (tmp_path / "pets/test/dog/0.png").write_bytes(same)
    (tmp_path / "pets/test/cat/1.png").write_bytes((tmp_path / "pets/test/cat/0.png").read_bytes())
    (tmp_path / "pets/test/dog/1.png").write_bytes(b"broken")
    record = write_record(tmp_path / "my.toml", splits="{ train = { count = 2 }, test = { count = 4 } }")
    task = read_task(record)
    found = check_data(task, open_data(task, tmp_path / "pets"))
    assert found.counts == {"train": 2, "test": 4} and found.num_pictures == 6
    assert any("not a picture" in line and "'test/dog/1.png'" in line for line in found.problems)
    assert any("in the splits test and train" in line and "1 of them with different labels" in line for line in found.problems)
    assert any("occur more than once in test" in line for line in found.warnings)
    assert any("train: no sample of 1 of 2 classes: 'dog'" in line for line in found.warnings)
    quick = check_data(task, open_data(task, tmp_path / "pets"), pictures=False)
    assert quick.num_pictures == 0 and quick.problems == ()


def test_the_embedded_set_is_a_task_like_any_other():
    found = open_task("emoji", split="new-style-new-names")
    assert len(found) == 245 and found.notes == () and len(np.unique(found.targets)) == 245
    assert found.samples.fields["style"][0] == "twemoji"


@pytest.mark.slow
@pytest.mark.skipif(DATA is None, reason="OSTENSION_DATA names no folder of data packs")
@pytest.mark.parametrize("name", read_suite("local").tasks)
def test_every_local_pack_is_what_its_record_says(name):
    task = read_task(name)
    found = check_data(task, open_data(task, Path(DATA) if name != "emoji" else None), pictures=False)
    assert (found.problems == () and "test" in found.counts) or name in ("emoji", "pacs")
    for split in found.counts:
        data = open_task(name, split=split)
        assert data.notes == () and len(data) == task.splits[split].count and data.samples.image(len(data) - 1)
