"""A collection grows, changes and shrinks as its sources do; nothing is encoded twice, or depends on how it was run."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from store_making import Pictures, picture

from ostension.data.pairs import Pair
from ostension.data.picture_lists import PictureTree
from ostension.errors import ConfigError, DataError
from ostension.files import folder_lock
from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.store import Store, add, open_collection
from ostension.store.collection import (
    Source,
    collection_names,
    compact,
    computed_by,
    drop,
    model_of,
    remove,
    sources,
)
from ostension.store.key import ModelKey
from ostension.store.origins import gone, open_source, original
from ostension.store.plan import ENCODE, Held, plan
from ostension.store.scan import scan
from ostension.store.writer import Writer

SMALL = {"batch_size": 4, "shard_batches": 2}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return CLIP(preset("tiny-vit"), seed=3)


class Named(Pictures):
    """Pictures whose source keeps its name whatever is in it; captions and fields can be set."""

    def __init__(self, count: int, broken: tuple[int, ...] = (), **facts):
        super().__init__(count, broken)
        self.facts, self.name = facts, "named"

    def read(self, index):
        pair = super().read(index)
        return dataclasses.replace(pair, meta={**pair.meta, **self.facts.get(self.key(index), {})})

    def fingerprint(self):
        return self.name


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def counts(added) -> dict[str, int]:
    names = ("new", "changed", "described", "unchanged", "encoded", "copied", "failed", "known_bad", "removed", "rows")
    return {name: getattr(added, name) for name in names if getattr(added, name)}


def test_rows_are_those_of_the_model_with_all_that_is_known_of_the_pictures(tmp_path, model):
    source, told = Named(10), []
    added = add(Store(tmp_path), model, source, **SMALL, stored="float32", progress=told.append, model_at="here")
    assert counts(added) == {"new": 10, "encoded": 10, "rows": 10}
    opened = open_collection(tmp_path, model=model)
    expected = model.embed_images([source.images[row] for row in range(10)]).numpy()
    np.testing.assert_allclose(np.asarray(opened.rows), expected, atol=1e-6)
    assert opened.ids == [f"p{row}" for row in range(10)] and opened.complete and model_of(opened) == "here"
    assert set(opened.column("width").tolist()) == {40} and set(opened.column("height").tolist()) == {36}
    assert opened.column("bytes").tolist() == list(map(len, source.images))
    assert json.loads(opened.column("fields")[1]) == {"camera": "c1"} and opened.column("labels")[1] == '["odd"]'
    assert [progress.done for progress in told] == [4, 8, 10]
    opened.verify()


def test_the_same_again_does_nothing_and_changes_no_file(tmp_path, model):
    source = Named(9, broken=(4,))
    add(Store(tmp_path), model, source, **SMALL)
    before = files(tmp_path)
    added = add(Store(tmp_path), model, source, **SMALL)
    assert counts(added) == {"unchanged": 8, "known_bad": 1, "rows": 8} and added.problems[0][0] == "p4"
    assert files(tmp_path) == before


def test_new_and_changed_pictures_are_encoded_and_changed_words_are_only_written(tmp_path, model):
    source = Named(8)
    add(Store(tmp_path), model, source, **SMALL)
    before = open_collection(tmp_path)
    source.images += [picture(100), picture(101)]
    source.images[2] = picture(102)
    source.facts["p5"] = {"camera": "new"}
    added = add(Store(tmp_path), model, source, **SMALL)
    assert counts(added) == {"new": 2, "changed": 1, "described": 1, "unchanged": 6, "encoded": 3, "rows": 10}
    opened = open_collection(tmp_path)
    opened.verify()
    assert sorted(opened.ids) == sorted(f"p{row}" for row in range(10))
    was, now = (one.numbers(["p5", "p2"]) for one in (before, opened))
    assert np.array_equal(before.rows[was[0]], opened.rows[now[0]])
    assert not np.array_equal(before.rows[was[1]], opened.rows[now[1]])
    assert json.loads(opened.column("fields", now[:1])[0]) == {"camera": "new"}


def test_what_was_open_before_stays_as_it_was(tmp_path, model):
    source = Named(8)
    add(Store(tmp_path), model, source, **SMALL)
    before = open_collection(tmp_path)
    rows, ids = np.asarray(before.rows).copy(), before.ids
    source.images[2] = picture(102)
    add(Store(tmp_path), model, source, **SMALL)
    assert before.ids == ids and np.array_equal(np.asarray(before.rows), rows)


def test_the_same_picture_under_several_names_is_encoded_once_and_has_the_same_bits(tmp_path, model):
    source = Named(10)
    source.images[3] = source.images[7] = source.images[0]
    added = add(Store(tmp_path), model, source, **SMALL)
    assert counts(added) == {"new": 10, "encoded": 8, "copied": 2, "rows": 10}
    source.images.append(source.images[0])
    added = add(Store(tmp_path), model, source, **SMALL)
    assert counts(added) == {"new": 1, "copied": 1, "unchanged": 10, "rows": 11}
    opened = open_collection(tmp_path)
    rows = np.asarray(opened.rows)[opened.numbers(["p0", "p3", "p7", "p10"])]
    assert (rows == rows[0]).all()
    assert len({opened.column("texts", [row])[0] for row in opened.numbers(["p0", "p3", "p7", "p10"])}) == 4


def test_bad_pictures_are_listed_with_reasons_and_tried_again_only_when_asked_or_mended(tmp_path, model):
    source = Named(8, broken=(1, 6))
    source.images[3] = source.images[1]  # the same bad bytes
    added = add(Store(tmp_path), model, source, **SMALL)
    assert counts(added) == {"new": 5, "encoded": 5, "failed": 3, "rows": 5}
    assert [name for name, _ in added.problems] == ["p1", "p3", "p6"] and all(reason for _, reason in added.problems)
    assert dict(open_collection(tmp_path).rejects()).keys() == {"p1", "p3", "p6"}
    assert counts(add(Store(tmp_path), model, source, **SMALL, retry=True))["failed"] == 3
    source.images[6] = picture(6)
    assert counts(add(Store(tmp_path), model, source, **SMALL)) == {
        "new": 1, "encoded": 1, "unchanged": 5, "known_bad": 2, "rows": 6,
    }  # fmt: skip
    assert set(Held.of(open_collection(tmp_path)).rejects) == {"p1", "p3"}


def test_a_picture_that_cannot_be_read_for_now_keeps_its_row_and_one_that_is_broken_now_loses_it(tmp_path, model):
    class Away(Named):
        def read(self, index):
            if index == 2 and self.away:
                raise DataError("the disk is away", source="p2")
            return super().read(index)

    source = Away(6)
    source.away = False
    add(Store(tmp_path), model, source, **SMALL)
    source.away = True
    source.images[4] = b"broken"
    added = add(Store(tmp_path), model, source, **SMALL)
    assert counts(added) == {"unchanged": 4, "failed": 2, "rows": 5}
    assert "p2" in open_collection(tmp_path).ids and "p4" not in open_collection(tmp_path).ids


def test_all_bad_is_no_crash_and_an_empty_collection(tmp_path, model):
    added = add(Store(tmp_path), model, Named(3, broken=(0, 1, 2)), **SMALL)
    assert counts(added) == {"failed": 3}
    assert len(open_collection(tmp_path)) == 0 and open_collection(tmp_path).ids == []
    assert counts(add(Store(tmp_path), model, Named(5, broken=(0, 1, 2)), **SMALL)) == {
        "new": 2, "encoded": 2, "known_bad": 3, "rows": 2,
    }  # fmt: skip


def test_prune_takes_out_what_its_source_has_no_more_and_leaves_other_sources_alone(tmp_path, model):
    source, other = Named(8), Named(3)
    other.name = "other"
    add(Store(tmp_path), model, source, **SMALL)
    add(Store(tmp_path), model, other, origin=Source(name="other", prefix="x/"), **SMALL)
    source.images = source.images[:5]
    assert counts(add(Store(tmp_path), model, source, **SMALL, prune=True, dry_run=True))["removed"] == 3
    assert len(open_collection(tmp_path)) == 11
    assert counts(add(Store(tmp_path), model, source, **SMALL, prune=True)) == {"unchanged": 5, "removed": 3, "rows": 8}
    assert sorted(open_collection(tmp_path).ids) == sorted([*(f"p{row}" for row in range(5)), "x/p0", "x/p1", "x/p2"])


def test_ids_of_another_source_are_refused_unless_they_are_the_same_pictures(tmp_path, model):
    source = Named(4)
    add(Store(tmp_path), model, source, **SMALL)
    other = Named(4)
    other.name = "moved"
    assert counts(add(Store(tmp_path), model, other, **SMALL)) == {"described": 4, "rows": 4}
    other.images[1], other.name = picture(50), "third"
    with pytest.raises(DataError, match=r"1 ids are those of other pictures.*'p1'.*prefix"):
        add(Store(tmp_path), model, other, **SMALL)
    assert counts(add(Store(tmp_path), model, other, origin=Source(name="third", prefix="b/"), **SMALL))["new"] == 4


def test_two_samples_with_one_id_are_refused(tmp_path, model):
    class Twice(Named):
        def key(self, index):
            return "one"

    with pytest.raises(DataError, match="two samples have the id 'one'"):
        add(Store(tmp_path), model, Twice(2))


def test_another_model_or_transform_or_precision_is_refused_with_both_hashes(tmp_path, model):
    add(Store(tmp_path), model, Named(3))
    before = files(tmp_path)
    other = CLIP(preset("tiny-vit"), seed=4)
    mine, theirs = (ModelKey.of(one).weights[:16] for one in (model, other))
    for act in (lambda: add(Store(tmp_path), other, Named(3)), lambda: open_collection(tmp_path, model=other)):
        with pytest.raises(DataError, match=f"model {mine}, and this model is {theirs}"):
            act()
    transform = type(model.transform)(dataclasses.replace(model.transform.config, alpha="drop"))
    with pytest.raises(DataError, match=r"embeddings of the transform \w{16}, and this transform is \w{16}"):
        add(Store(tmp_path), model, Named(3), transform=transform)
    with pytest.raises(DataError, match="kept as float16, and these would be float32; use float16"):
        add(Store(tmp_path), model, Named(3), stored="float32")
    half = CLIP(preset("tiny-vit"), seed=3).bfloat16()
    with pytest.raises(DataError, match="computed in float32, and these would be bfloat16; use float32"):
        add(Store(tmp_path), half, Named(3))
    assert len(open_collection(tmp_path, model=half)) == 3  # the same weights may ask in any precision
    assert files(tmp_path) == before


def test_names_are_checked_listed_and_suggested(tmp_path, model):
    with pytest.raises(ConfigError, match="letters"):
        add(Store(tmp_path), model, Named(1), name="../out")
    with pytest.raises(DataError, match="no such folder"):
        open_collection(tmp_path / "nothing")
    add(Store(tmp_path), model, Named(1), name="web")
    add(Store(tmp_path), model, Named(1), name="photos")
    assert list(collection_names(tmp_path)) == ["photos", "web"]
    with pytest.raises(ConfigError, match="photos"):
        open_collection(tmp_path, "photo")
    drop(tmp_path, "web")
    assert list(collection_names(tmp_path)) == ["photos"]


def test_remove_and_compact_leave_what_counts(tmp_path, model):
    add(Store(tmp_path), model, Named(12, broken=(3,)), **SMALL)
    kept = {
        name: row.copy() for name, row in zip(open_collection(tmp_path).ids, open_collection(tmp_path).rows[:], strict=True)
    }
    with pytest.raises(ConfigError, match="no row has the id 'nobody'"):
        remove(tmp_path, ["p1", "nobody"])
    assert remove(tmp_path, ["p1", "p9"]) == 2
    compact(tmp_path)
    opened = open_collection(tmp_path)
    opened.verify()
    assert opened.ids == [f"p{row}" for row in range(12) if row not in (1, 3, 9)] and len(opened.manifest.shards) == 1
    assert all(np.array_equal(row, kept[name]) for name, row in zip(opened.ids, opened.rows[:], strict=True))
    # What is known of the bad one outlives it too; removed ones come back when their source is added again.
    assert counts(add(Store(tmp_path), model, Named(12, broken=(3,)), **SMALL)) == {
        "new": 2, "encoded": 2, "unchanged": 9, "known_bad": 1, "rows": 11,
    }  # fmt: skip


def test_plain_rows_of_the_wrong_kind_are_refused_or_scaled_by_the_writer_of_a_collection(tmp_path, model):
    add(Store(tmp_path), model, Named(3), stored="float32")
    opened = open_collection(tmp_path)
    facts = {name: opened.column(name, [0]) for name in opened.columns} | {"id": ["mine"]}
    with Writer(opened.folder) as writer:
        for rows in (np.ones((1, 31)), np.full((1, 32), np.nan), np.zeros((1, 32)), np.ones((1, 32), np.int64)):
            with pytest.raises(DataError):
                writer.append(rows, **facts)
        writer.append(np.full((2, 32), 3.0)[::2], **facts)  # float64, with gaps, too long
    again = open_collection(tmp_path)
    assert np.linalg.norm(again.rows[again.numbers(["mine"])[0]]) == pytest.approx(1, abs=1e-6)


def test_a_second_writer_gets_an_error_that_names_the_first_and_readers_do_not_wait(tmp_path, model):
    add(Store(tmp_path), model, Named(3))
    opened = open_collection(tmp_path)
    with folder_lock(opened.folder):
        assert len(open_collection(tmp_path)) == 3
        for act in (lambda: add(Store(tmp_path), model, Named(4)), lambda: remove(tmp_path, ["p0"]), lambda: compact(tmp_path)):
            with pytest.raises(DataError, match=f"in use by another run \\(process {os.getpid()}\\)"):
                act()


def test_the_plan_cuts_shards_by_batches_and_by_rows_where_most_are_copies(model):
    source = Named(1)
    source.images = [picture(number) for number in range(5)] + [picture(0)] * 20
    todo = plan(scan(source), Held.nothing(), source=0)
    cut = list(todo.shards(batch_size=2, shard_batches=2, shard_rows=8))
    assert [[len(batch) for batch in shard.batches] for shard in cut] == [[2, 2], [1], [], []]
    assert [len(shard.samples) for shard in cut] == [4, 8, 8, 5]
    assert todo.count(ENCODE) == 5 and todo.kept == {0}


def test_pictures_are_found_again_and_only_those_that_were_embedded(tmp_path, model):
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    for number in range(3):
        (folder / "sub" / f"{number}.png").write_bytes(picture(number))
    source, origin = open_source(str(folder), prefix="a/")
    assert origin == Source(name=str(folder), kind="folder", root=str(folder), prefix="a/")
    add(Store(tmp_path / "store"), model, source, origin=origin)
    opened = open_collection(tmp_path / "store")
    assert sources(opened) == [origin] and opened.ids[0] == "a/sub/0.png"
    assert original(opened, 1) == picture(1) and gone(opened) == []
    (folder / "sub" / "1.png").write_bytes(picture(9))
    with pytest.raises(DataError, match="another picture by now"):
        original(opened, 1)
    (folder / "sub" / "2.png").unlink()
    (folder / "sub" / "2.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "secret.png").write_bytes(picture(2))
    with pytest.raises(DataError, match="outside its source"):
        original(opened, 2)
    (folder / "sub" / "2.png").unlink()
    assert gone(opened) == ["a/sub/2.png"]


def test_what_computed_the_rows_is_told_from_the_key():
    assert computed_by("float32") == ("torch", "float32")
    assert computed_by("openvino-bfloat16") == ("openvino", "bfloat16")


class Fetched(Named):
    """Pictures that are known by their ids, as those at URLs, and count how often they are read."""

    known_by_id = True
    reads = 0

    def read(self, index) -> Pair:
        type(self).reads += 1
        if index in self.facts.get("away", ()):
            raise DataError("no answer", source=self.key(index))
        return super().read(index)


def test_what_is_known_by_its_id_is_not_read_again(tmp_path, model):
    source = Fetched(9, away=(2, 5))
    source.facts = {"away": (2, 5)}
    assert counts(add(Store(tmp_path), model, source, **SMALL)) == {"new": 7, "encoded": 7, "failed": 2, "rows": 7}
    Fetched.reads = 0
    assert counts(add(Store(tmp_path), model, source, **SMALL)) == {"unchanged": 7, "known_bad": 2, "rows": 7}
    assert Fetched.reads == 0
    source.facts = {"away": (5,)}
    found = add(Store(tmp_path), model, source, **SMALL, retry=True)
    assert counts(found) == {"new": 1, "encoded": 1, "unchanged": 7, "failed": 1, "rows": 8} and Fetched.reads == 2


def test_a_tree_of_pictures_has_captions_and_fields_beside_them_and_says_what_is_closed(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "closed").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("a.png", "sub/b.JPG", ".hidden/c.png"):
        (tmp_path / name).write_bytes(picture(1))
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "sub" / "b.json").write_text('{"year": 1999}')
    walk = os.walk

    def walked(top, onerror):
        for current, folders, names in walk(top):
            if Path(current).name == "closed":
                onerror(PermissionError(13, "Permission denied", current))
            else:
                yield current, folders, names

    monkeypatch.setattr(os, "walk", walked)
    tree = PictureTree(tmp_path)
    assert [tree.key(index) for index in range(len(tree))] == ["a.png", "closed/", "sub/b.JPG"]
    assert tree.read(0).texts == ("one", "two") and tree.read(2).meta == {"year": 1999}
    with pytest.raises(DataError, match="the folder cannot be read"):
        tree.read(1)
    assert scan(tree).problems == {1: "the folder cannot be read (Permission denied)"}


WORKERS = """
import sys, torch
sys.path[:0] = [{tests!r}]
torch.set_num_threads(1)
from test_collection import Named, SMALL
from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.store import Store, add
from ostension import world
with world.joined():
    found = add(Store({store!r}), CLIP(preset("tiny-vit"), seed=3), Named(23, broken=(4, 17)), **SMALL)
assert found.rows == 21 and found.failed == 2, found
"""


@pytest.mark.slow  # processes import torch
def test_the_files_are_the_same_whatever_threads_processes_and_machines_there_are(tmp_path, model):
    source = Named(23, broken=(4, 17))
    for name, options in {"none": {"workers": 0}, "threads": {"workers": 3}, "processes": {"processes": 2}}.items():
        add(Store(tmp_path / name), model, source, **SMALL, **options)
    script = tmp_path / "work.py"
    script.write_text(WORKERS.format(tests=str(Path(__file__).parent), store=str(tmp_path / "torchrun")))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first = files(tmp_path / "none")
    assert len([name for name in first if name.endswith(".npy")]) == 3
    assert all(files(tmp_path / name) == first for name in ("threads", "processes", "torchrun"))
