"""Sets: what is written is what is read, bad rows are refused, kills lose at most one shard, readers see whole sets."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from store_making import key, names, unit_rows

from ostension.errors import ConfigError, DataError
from ostension.store import EmbeddingSet, Store, Writer
from ostension.store.key import ModelKey, SetKey
from ostension.store.rows import Rows

HERE = Path(__file__).parent


def filled(folder, count=10, *, shard_rows=4, **changes):
    store, rows = Store(folder), unit_rows(0, count)
    with store.writer(key(**changes), shard_rows=shard_rows) as writer:
        writer.append(
            rows, id=names(0, count), number=np.arange(count), digest=np.arange(count, dtype=np.uint64) << np.uint64(60)
        )
    return store.open(key(**changes)), rows


def test_what_is_written_is_what_is_read(tmp_path):
    opened, rows = filled(tmp_path)
    assert [shard.rows for shard in opened.manifest.shards] == [4, 4, 2]
    assert np.array_equal(np.asarray(opened.rows), rows) and opened.rows.shape == (10, 8) and opened.width == 8
    assert opened.ids == names(0, 10)
    assert opened.column("number", [7, 1, 7]).tolist() == [7, 1, 7]
    assert opened.column("digest").dtype == np.uint64 and opened.column("digest")[15 % 10] == 5 << 60
    assert opened.numbers(["id7", "id0"]).tolist() == [7, 0]
    with pytest.raises(ConfigError, match="no row has the id 'id10'"):
        opened.numbers(["id10"])
    opened.verify()


@given(st.lists(st.integers(0, 5), max_size=6), st.data())
@settings(max_examples=60, deadline=None)
def test_parts_read_like_one_array(counts, data):
    whole = np.arange(sum(counts) * 2, dtype=np.float32).reshape(-1, 2)
    ends = np.cumsum([0, *counts])
    live = data.draw(st.none() | st.lists(st.integers(0, max(0, len(whole) - 1)), unique=True, max_size=len(whole)).map(sorted))
    chosen = None if live is None else np.array(live, dtype=np.int64)
    rows = Rows(counts, lambda part: whole[ends[part] : ends[part + 1]], 2, np.float32, chosen)
    plain = whole if chosen is None else whole[chosen]
    start, stop, step = data.draw(st.integers(-9, 9)), data.draw(st.integers(-9, 9)), data.draw(st.sampled_from([1, 2, -1]))
    assert np.array_equal(rows[start:stop:step], plain[start:stop:step])
    assert rows.shape == plain.shape and np.array_equal(np.asarray(rows), plain)
    if len(plain):
        index = data.draw(st.lists(st.integers(-len(plain), len(plain) - 1), max_size=5))
        assert np.array_equal(rows[np.array(index, dtype=np.int64)], plain[index])
        assert np.array_equal(rows[-1], plain[-1])
    mask = np.arange(len(plain)) % 2 == 0
    assert np.array_equal(rows[mask], plain[mask])
    blocks = list(rows.blocks(3))
    assert [start for start, _ in blocks] == list(range(0, len(plain), 3))
    assert sum(len(block) for _, block in blocks) == len(plain)


def test_numbers_outside_the_rows_are_refused(tmp_path):
    opened, _ = filled(tmp_path)
    for index in (10, -11, np.array([3, 10]), np.ones(9, bool), np.zeros((2, 2), int), np.array([0.5])):
        with pytest.raises(IndexError):
            opened.rows[index]
    with pytest.raises(ConfigError, match="unknown column 'idd'.*'id'"):
        opened.column("idd")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: rows[:, :7], r"rows of shape \(4, 7\); expected \(n, 8\)"),
        (lambda rows: rows[0], r"rows of shape \(8,\)"),
        (lambda rows: np.where(np.eye(4, 8) == 1, np.nan, rows), "row 0 .id10. has a number that is not finite"),
        (lambda rows: np.where(np.arange(4)[:, None] == 2, np.inf, rows), "row 2 .id12. has a number that is not finite"),
        (lambda rows: rows * (np.arange(4) != 3)[:, None], "row 3 .id13. is all zeros, which has no direction"),
        (lambda rows: rows.astype(np.int64), "rows of type int64; expected floating point"),
    ],
    ids=["width", "shape", "nan", "infinity", "zeros", "integers"],
)
def test_rows_that_cannot_be_searched_are_refused_and_nothing_is_added(tmp_path, spoil, message):
    filled(tmp_path)
    store = Store(tmp_path)
    with store.writer(key()) as writer:
        with pytest.raises(DataError, match=message):
            writer.append(spoil(unit_rows(1, 4)), id=names(10, 4), number=np.arange(4), digest=np.zeros(4, np.uint64))
        assert writer.pending == 0
    assert len(store.open(key())) == 10


@pytest.mark.parametrize("form", ["float64", "fortran", "strided", "bfloat16", "float16", "tensor"])
def test_other_types_and_layouts_are_rounded_and_laid_out(tmp_path, form):
    rows = unit_rows(2, 6)
    made = {
        "float64": rows.astype(np.float64),
        "fortran": np.asfortranarray(rows),
        "strided": np.repeat(rows, 2, axis=0)[::2],
        "bfloat16": torch.from_numpy(rows).bfloat16(),
        "float16": rows.astype(np.float16),
        "tensor": torch.from_numpy(rows).requires_grad_(),
    }[form]
    with Store(tmp_path).writer(key(level="pre")) as writer:
        writer.append(made, id=names(0, 6))
    expected = torch.as_tensor(made).detach().float().numpy()
    assert np.array_equal(np.asarray(Store(tmp_path).open(key(level="pre")).rows), expected)


def test_rows_of_the_joint_space_are_scaled_to_unit_length_and_features_are_not(tmp_path):
    rows = unit_rows(3, 5)
    for level, expected in (("post", rows), ("pre", rows * 7)):
        with Store(tmp_path).writer(key(level=level)) as writer:
            writer.append(rows * 7, id=names(0, 5))
        np.testing.assert_allclose(np.asarray(Store(tmp_path).open(key(level=level)).rows), expected, rtol=2e-7)
    with Store(tmp_path).writer(key(level="pre", stored="float16")) as writer, pytest.raises(DataError, match="past the range"):
        writer.append(np.full((1, 8), 7e4), id=["a"])


def test_columns_must_be_the_same_each_time(tmp_path):
    with Store(tmp_path).writer(key()) as writer:
        writer.append(unit_rows(0, 2), id=["a", "b"])
        with pytest.raises(DataError, match="columns id text, n number; expected id text"):
            writer.append(unit_rows(0, 2), id=["c", "d"], n=np.arange(2))
        with pytest.raises(DataError, match="column 'id' has 1 values; expected 2"):
            writer.append(unit_rows(0, 2), id=["c"])
        with pytest.raises(DataError, match="of another type"):
            writer.append(unit_rows(0, 2), id=[1, 2])
        with pytest.raises(DataError, match="a column called 'Id'"):
            writer.append(unit_rows(0, 2), Id=["c", "d"])


def test_a_set_of_another_model_is_refused_with_both_hashes(tmp_path):
    opened, _ = filled(tmp_path)
    mine = ModelKey("b" * 64, {"image_size": 8}, {}, "float32")
    for refused in (lambda: EmbeddingSet(opened.folder, model=mine), lambda: Store(tmp_path).find(mine)):
        with pytest.raises(DataError, match=f"the model {'a' * 16}, and this model is {'b' * 16}"):
            refused()
    other = dataclasses.replace(mine, weights="a" * 64, preprocess={"image_size": 9})
    with pytest.raises(DataError, match="of the transform [0-9a-f]{16}, and this transform is [0-9a-f]{16}"):
        Store(tmp_path).find(other)
    with (
        pytest.raises(DataError, match=f"holds embeddings of the model {'a' * 16}; expected {'b' * 16}"),
        Writer(opened.folder, key(weights="b" * 64)),
    ):
        pass
    assert len(Store(tmp_path).find(dataclasses.replace(other, preprocess={"image_size": 8}))) == 10


def test_a_set_is_found_by_what_it_is_of(tmp_path):
    for split in ("train", "test"):
        for level in ("pre", "post"):
            filled(tmp_path, split=split, level=level)
    found = Store(tmp_path).find(split="test", level="pre")
    assert (found.key.split, found.key.level) == ("test", "pre")
    with pytest.raises(DataError, match="2 sets fit"):
        Store(tmp_path).find(level="pre")
    with pytest.raises(DataError, match="no set of images fits"):
        Store(tmp_path).find(split="val")
    assert len(Store(tmp_path).keys()) == 4 and Store(tmp_path / "nothing").keys() == {}


def test_the_manifest_says_in_words_what_the_rows_are_of_and_its_key_cannot_be_changed(tmp_path):
    opened, _ = filled(tmp_path)
    path = opened.folder / "manifest.json"
    tree = json.loads(path.read_text())
    assert tree["key"]["weights"] == "a" * 64 and tree["key"]["inputs"] == {"image_size": 8}
    assert SetKey(**tree["key"]).sha256() == tree["key_sha256"] and opened.folder.name.endswith(tree["key_sha256"][:16])
    tree["key"]["weights"] = "c" * 64
    path.write_text(json.dumps(tree))
    with pytest.raises(DataError, match="the key has the hash"):
        EmbeddingSet(opened.folder)


@pytest.mark.parametrize("spoil", ["name", "missing", "not a list", "inputs", "format"])
def test_a_manifest_that_was_spoilt_is_refused_in_one_line(tmp_path, spoil):
    opened, _ = filled(tmp_path)
    path = opened.folder / "manifest.json"
    tree = json.loads(path.read_text())
    if spoil == "name":
        tree["shards"][0]["name"] = "../../secret"
    elif spoil == "missing":
        del tree["shards"][0]["rows"]
    elif spoil == "inputs":
        tree["key"]["inputs"] = 3
    else:
        tree["shards" if spoil == "not a list" else "format"] = 3
    path.write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"manifest.json: "):
        EmbeddingSet(opened.folder)


def test_a_full_disk_is_one_line_and_what_was_there_stays(tmp_path, monkeypatch):
    opened, _ = filled(tmp_path)
    monkeypatch.setattr(np, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with (
        pytest.raises(DataError, match="cannot be written: No space left on device; make room"),
        Writer(opened.folder) as writer,
    ):
        writer.append(unit_rows(9, 1), id=["new"], number=np.array([99]), digest=np.zeros(1, np.uint64))
    assert len(opened.reopen()) == 10 and not list(opened.folder.glob(".*partial"))


def test_damage_is_seen_at_opening_by_size_and_by_verify_in_full(tmp_path):
    opened, _ = filled(tmp_path)
    path = opened.folder / "rows-000001.npy"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(DataError, match=r"rows-000001.npy: has \d+ bytes; expected \d+ by the manifest"):
        EmbeddingSet(opened.folder)
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DataError, match="rows-000001.npy: has the hash"):
        EmbeddingSet(opened.folder).verify()
    path.unlink()
    with pytest.raises(DataError, match="rows-000001.npy: cannot be read"):
        EmbeddingSet(opened.folder)


def test_verify_names_an_id_that_comes_twice(tmp_path):
    with Store(tmp_path).writer(key()) as writer:
        writer.append(unit_rows(0, 3), id=["a", "b", "a"])
    with pytest.raises(DataError, match="the id 'a' comes twice"):
        Store(tmp_path).open(key()).verify()


def test_deleted_rows_count_no_more_and_compacting_removes_them(tmp_path):
    opened, rows = filled(tmp_path)
    with Writer(opened.folder) as writer:
        assert writer.delete([0, 5, 5]) == 2
        assert writer.delete([0]) == 1  # which is now the second
        with pytest.raises(DataError, match="rows 7 to 7 are to be deleted; expected numbers from 0 to 6"):
            writer.delete([7])
    left = [2, 3, 4, 6, 7, 8, 9]
    after = opened.reopen()
    assert after.ids == [f"id{number}" for number in left]
    assert np.array_equal(np.asarray(after.rows), rows[left]) and after.column("number").tolist() == left
    with Writer(opened.folder, shard_rows=4) as writer:
        writer.append(unit_rows(9, 1), id=["new"], number=np.array([99]), digest=np.zeros(1, np.uint64))
        writer.commit()
        writer.compact()
    compact = opened.reopen()
    assert compact.ids == [f"id{number}" for number in left] + ["new"]
    assert [shard.rows for shard in compact.manifest.shards] == [4, 4]
    assert len(list(opened.folder.glob("rows-*"))) == 4 and not list(opened.folder.glob("deleted-*"))
    compact.verify()
    assert np.array_equal(np.asarray(opened.rows), rows)  # what was open stays as it was
    with Writer(opened.folder) as writer:
        writer.delete(np.arange(8))
        writer.compact()
    assert len(opened.reopen()) == 0 and opened.reopen().ids == []


def test_a_second_writer_is_refused_while_readers_read(tmp_path):
    opened, _ = filled(tmp_path)
    with Writer(opened.folder) as writer:
        with pytest.raises(DataError, match=f"in use by another run .process {os.getpid()}."), Writer(opened.folder):
            pass
        writer.append(unit_rows(9, 1), id=["new"], number=np.array([99]), digest=np.zeros(1, np.uint64))
        assert len(opened.reopen()) == 10
        writer.commit()
        assert len(opened.reopen()) == 11 and len(opened) == 10


def test_rows_of_a_block_that_ended_with_an_error_are_dropped(tmp_path):
    opened, _ = filled(tmp_path)
    with pytest.raises(RuntimeError), Writer(opened.folder) as writer:
        writer.append(unit_rows(9, 1), id=["new"], number=np.array([99]), digest=np.zeros(1, np.uint64))
        raise RuntimeError
    assert len(opened.reopen()) == 10


def test_a_writer_of_nothing_leaves_nothing(tmp_path):
    with pytest.raises(DataError, match="no such file"), Writer(tmp_path / "none"):
        pass
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is not a folder"):
        Store(tmp_path / "file")


def test_many_shards_are_opened_as_they_are_needed(tmp_path, monkeypatch):
    monkeypatch.setattr("ostension.store.sets.MAPPED", 2)
    opened, rows = filled(tmp_path, 9, shard_rows=1)
    assert np.array_equal(np.asarray(opened.rows), rows) and opened.ids == names(0, 9)


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
import numpy as np
from store_making import key, names, unit_rows
from ostension.store import Store

left = int(sys.argv[3])
def counted(function):
    def call(*arguments, **rest):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **rest)
    return call
os.fsync, os.replace = counted(os.fsync), counted(os.replace)
store = Store(sys.argv[1])
with store.writer(key(), shard_rows=4) as writer:
    done = len(store.open(key()))
    writer.append(unit_rows(0, 12)[done:], id=names(0, 12)[done:])
    if sys.argv[4] == "compact":
        writer.commit()
        writer.delete([0])
        writer.compact()
"""


def run_killed(folder, step, what="append"):
    command = [sys.executable, "-c", KILLED, str(folder), str(HERE), str(step), what]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# A shard and its manifest take nine calls: flush, rename and flush of the folder, for three files; the first three are the
# empty manifest's.
@pytest.mark.parametrize("step", [2, 4, 5, 8, 10, 11, 12, 20, 29])
def test_a_kill_at_any_moment_loses_at_most_one_shard_and_the_rest_follows(tmp_path, step):
    found = run_killed(tmp_path, step)
    assert found.returncode == -signal.SIGKILL, found.stderr
    store = Store(tmp_path)
    if store.keys():
        opened = store.open(key())
        opened.verify()
        assert len(opened) in (4 * ((step - 3) // 9), 4 * ((step - 3) // 9 + 1))
        assert opened.ids == names(0, len(opened))
    with store.writer(key(), shard_rows=4) as writer:
        done = len(store.open(key()))
        writer.append(unit_rows(0, 12)[done:], id=names(0, 12)[done:])
    opened = store.open(key())
    opened.verify()
    assert np.array_equal(np.asarray(opened.rows), unit_rows(0, 12)) and opened.ids == names(0, 12)
    kept = {path.name for path in opened.folder.iterdir()}
    assert kept == {
        "manifest.json",
        ".lock",
        *(f"{shard.name}{end}" for shard in opened.manifest.shards for end in (".npy", ".arrays")),
    }


@pytest.mark.parametrize("step", [32, 35, 38, 47])
def test_a_kill_while_rows_are_deleted_or_compacted_leaves_the_set_before_or_after(tmp_path, step):
    found = run_killed(tmp_path, step, "compact")
    assert found.returncode == -signal.SIGKILL, found.stderr
    opened = Store(tmp_path).open(key())
    opened.verify()
    assert opened.ids in (names(0, 12), names(1, 11))
    with Writer(opened.folder):
        pass
    assert opened.reopen().ids == opened.ids


READER = """
import sys
sys.path.insert(0, sys.argv[2])
import numpy as np
from store_making import key, unit_rows
from ostension.errors import DataError
from ostension.store import Store

expected, seen = unit_rows(0, 200), set()
while len(seen) == 0 or max(seen) < 200:
    try:
        opened = Store(sys.argv[1]).open(key())
        rows, ids = np.asarray(opened.rows), opened.ids
    except DataError as error:
        if "no such file" not in str(error):
            raise
        continue
    assert len(rows) == len(ids)
    assert np.array_equal(rows, expected[:len(rows)]), len(rows)
    assert ids == [f"id{n}" for n in range(len(ids))]
    seen.add(len(ids))
print(len(seen))
"""


def test_a_reader_never_sees_torn_rows_while_a_writer_appends_and_merges(tmp_path):
    command = [sys.executable, "-c", READER, str(tmp_path), str(HERE)]
    reader = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        for start in range(0, 200, 10):
            with Store(tmp_path).writer(key(), merge=True) as writer:
                writer.append(unit_rows(0, 200)[start : start + 10], id=names(start, 10))
        output, errors = reader.communicate(timeout=60)
    finally:
        reader.kill()
        reader.wait()
    assert reader.returncode == 0, errors
    assert int(output) >= 1


def test_many_small_additions_leave_few_files(tmp_path):
    for start in range(17):
        with Store(tmp_path).writer(key(), merge=True) as writer:
            writer.append(unit_rows(start, 1), id=[f"id{start}"])
    opened = Store(tmp_path).open(key())
    assert [shard.rows for shard in opened.manifest.shards] == [16, 1] and opened.ids == names(0, 17)
    assert len(list(opened.folder.glob("rows-*"))) == 4


@given(st.lists(st.tuples(st.integers(1, 7), st.booleans()), max_size=5))
@settings(max_examples=6, deadline=None)
def test_any_appends_and_deletions_equal_a_plain_list(steps):
    with tempfile.TemporaryDirectory() as folder:
        store, plain, number = Store(folder), [], 0
        with store.writer(key(), shard_rows=3) as writer:
            for count, delete in steps:
                writer.append(unit_rows(number, count), id=names(number, count))
                writer.commit()
                plain += names(number, count)
                number += count
                if delete:
                    writer.delete([len(plain) // 2])
                    del plain[len(plain) // 2]
            if steps:
                assert store.open(key()).ids == plain
            writer.compact()
        assert len(store.open(key())) == len(plain)
        if steps:
            assert store.open(key()).ids == plain
