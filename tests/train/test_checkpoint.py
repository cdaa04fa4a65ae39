"""Checkpoints: whole or absent, checked on the way back, never the wrong one."""

from __future__ import annotations

import json

import pytest
import torch

from ostension.errors import CheckpointError, UsageError
from ostension.train import checkpoint
from ostension.train.checkpoint import CheckpointStore, load_checkpoint, resolve_path


def tensors(value=1.0):
    return {"weights": {"a": torch.full((3,), value)}, "optimizer": {"first.a": torch.zeros(3)}}


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path)


def test_what_was_saved_comes_back(store):
    path = store.save(7, tensors(2.5), {"note": "ü"})
    found = load_checkpoint(path)
    assert (found.step, found.state["note"]) == (7, "ü")
    assert torch.equal(found.tensors["weights"]["a"], torch.full((3,), 2.5))
    assert (store.folder / "LATEST").read_text().strip() == "step_00000007"
    assert sorted(entry.name for entry in store.folder.iterdir()) == ["LATEST", "step_00000007"]


def test_the_newest_is_found_by_number_with_or_without_a_pointer(store):
    for step in (9, 100, 20):
        store.save(step, tensors(step), {})
    (store.folder / "LATEST").unlink()
    assert store.newest().step == 100
    assert list(store.paths()) == [9, 20, 100]


def test_no_checkpoints_is_no_error(store):
    assert store.newest() is None
    assert store.paths() == {}


def damage_truncate(path):
    file = path / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    return "weights.safetensors: has"


def damage_flip(path):
    file = path / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    return "weights.safetensors: its content is not what was saved"


def damage_swap(path):
    other = CheckpointStore(path.parents[1] / "other").save(3, tensors(9.0), {})
    (path / "weights.safetensors").write_bytes((other / "weights.safetensors").read_bytes())
    return "weights.safetensors: its content is not what was saved"


def damage_manifest(path):
    (path / "manifest.json").unlink()
    return "has no manifest.json"


def damage_remove(path):
    (path / "optimizer.safetensors").unlink()
    return "optimizer.safetensors: is missing"


def damage_empty_manifest(path):
    (path / "manifest.json").write_text("{}")
    return "is no manifest"


def damage_manifest_text(path):
    (path / "manifest.json").write_text("{")
    return "not JSON"


DAMAGES = [value for name, value in list(globals().items()) if name.startswith("damage_")]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_with_the_file_and_the_reason(store, damage, tmp_path):
    (tmp_path / "other").mkdir()
    path = store.save(3, tensors(), {})
    reason = damage(path)
    with pytest.raises(CheckpointError, match=reason):
        load_checkpoint(path)


@pytest.mark.parametrize("damage", DAMAGES)
def test_automatic_resume_falls_back_loudly_and_sets_the_damaged_one_aside(store, damage, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    store.save(3, tensors(), {})
    reason = damage(store.save(5, tensors(), {}))
    assert store.newest().step == 3
    told = capsys.readouterr().err
    assert "WARNING" in told
    assert "step_00000005" in told
    assert reason.split(":")[-1].strip() in told
    assert list(store.paths()) == [3]
    assert (store.folder / "step_00000005.damaged").is_dir()


def test_when_none_can_be_used_nothing_starts_from_scratch(store, capsys):
    damage_flip(store.save(3, tensors(), {}))
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        store.newest()
    assert list(store.paths()) == [3]


def test_a_file_outside_the_folder_cannot_be_named_by_a_manifest(store):
    path = store.save(3, tensors(), {})
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["../x"] = {"bytes": 0, "sha256": ""}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="outside its folder"):
        load_checkpoint(path)


def test_old_ones_go_but_never_the_protected(store):
    for step in (1, 2, 3, 4):
        store.save(step, tensors(), {})
    assert store.prune(2, {1}) == [2]
    assert list(store.paths()) == [1, 3, 4]


@pytest.mark.parametrize("moment", ["manifest_of", "publish", "point_to"])
def test_a_save_that_fails_leaves_the_old_ones_and_no_half(store, moment, monkeypatch):
    store.save(1, tensors(), {})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, moment, full)
    with pytest.raises(CheckpointError, match="step 2 could not be saved: No space left on device"):
        store.save(2, tensors(), {})
    assert not list(store.folder.glob("*.partial"))
    assert load_checkpoint(store.path(1)).step == 1
    assert store.newest().step == (2 if moment == "point_to" else 1)


def test_leftovers_of_a_kill_are_removed_and_never_read(store):
    store.save(1, tensors(), {})
    (store.folder / "step_00000002.partial").mkdir()
    (store.folder / "step_00000003.old.partial").mkdir()
    (store.folder / ".LATEST.x1y2z3.partial").touch()
    assert store.newest().step == 1
    store.remove_leftovers()
    assert sorted(entry.name for entry in store.folder.iterdir()) == ["LATEST", "step_00000001"]


def test_a_path_may_be_the_checkpoint_or_the_run(store, tmp_path):
    path = store.save(4, tensors(), {})
    assert resolve_path(path) == path
    assert resolve_path(tmp_path) == path
    assert resolve_path(store.folder) == path


def test_a_missing_path_is_told_with_what_is_there(store, tmp_path):
    store.save(4, tensors(), {})
    with pytest.raises(UsageError, match=r"no checkpoint at .*step_00000005; expected .*holds step_00000004"):
        resolve_path(store.folder / "step_00000005")
    with pytest.raises(UsageError, match="no checkpoints beside it"):
        resolve_path(tmp_path / "nowhere" / "run")
