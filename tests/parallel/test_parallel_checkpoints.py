"""Checkpoints that several processes write together, and that any number of processes reads: the same bits."""

from __future__ import annotations

import json

import pytest
import torch

from ostension.errors import CheckpointError
from ostension.runlog import read_records
from ostension.train.checkpoint import CheckpointStore, load_checkpoint, read_checkpoint
from ostension.train.rows import Rows

SETTINGS = {"precision": "bf16", "average": 0.9, "optim": {"moments": "fp16"}}


@pytest.fixture(scope="module")
def written(processes, tmp_path_factory):
    """The run folders of one process, of two with the whole model each, of three with slices."""
    folders = {}
    for size, parallel in ((1, "ddp"), (2, "ddp"), (3, "fsdp")):
        folders[size, parallel] = folder = tmp_path_factory.mktemp("written") / "run"
        processes.run("trained", size, folder=str(folder), parallel=parallel, steps=3, **SETTINGS)
    return folders


def newest(folder):
    return CheckpointStore(folder).newest()


@pytest.mark.parametrize(
    ("writer", "reader"),
    [((1, "ddp"), (2, "ddp")), ((1, "ddp"), (3, "fsdp")), ((2, "ddp"), (1, "ddp")), ((2, "ddp"), (2, "fsdp")),
     ((3, "fsdp"), (1, "ddp")), ((3, "fsdp"), (2, "ddp")), ((3, "fsdp"), (2, "fsdp"))],
    ids=str,
)  # fmt: skip
def test_the_state_is_the_same_bits_for_any_number_of_processes(processes, written, tmp_path, writer, reader):
    size, parallel = reader
    target = tmp_path / "again"
    found = processes.run("resaved", size, source=str(written[writer]), target=str(target), parallel=parallel, **SETTINGS)
    before, after = newest(written[writer]), newest(target)
    assert found[0]["step"] == before.step == after.step == 3
    assert after.state["health"] == before.state["health"]
    assert before.tensors.keys() == after.tensors.keys() == {"weights", "optimizer", "average"}
    for file, group in before.tensors.items():
        assert group.keys() == after.tensors[file].keys()
        for name, value in group.items():
            assert after.tensors[file][name].dtype == value.dtype, name
            assert torch.equal(after.tensors[file][name], value), name
    names = {"manifest.json", "state.json"}
    for file in before.tensors:
        names |= {f"{file}.safetensors"} if size == 1 else {f"{file}.{at:05d}-of-{size:05d}.safetensors" for at in range(size)}
    assert set(found[0]["files"]) == names


@pytest.mark.slow
def test_slices_share_out_the_memory(processes, written, tmp_path):
    held = {}
    for parallel in ("ddp", "fsdp"):
        target = str(tmp_path / parallel)
        found = processes.run("resaved", 3, source=str(written[1, "ddp"]), target=target, parallel=parallel, **SETTINGS)
        held[parallel] = [answer["held"] for answer in found]
    assert max(held["fsdp"]) < 0.36 * held["ddp"][0]


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(processes, tmp_path):
    whole, changing = tmp_path / "whole", tmp_path / "changing"
    common = {"precision": "fp64", "every": 2, "average": 0.9}
    processes.run("trained", 1, folder=str(whole), steps=8, **common)
    sittings = [(2, "ddp", 3), (1, "ddp", 5), (3, "fsdp", 7), (2, "fsdp", None)]
    for size, parallel, crash in sittings:
        batches = {} if crash is None else {"crash": crash, "rank": 0}
        group = processes.start("trained", size, folder=str(changing), steps=8, parallel=parallel, batches=batches, **common)
        codes = group.wait()
        assert (codes[0] == 0) == (crash is None), group.stderr(0)
    assert [record["step"] for record in read_records(changing, ["resume"])] == [2, 4, 6]
    losses = [[record["loss"] for record in read_records(folder, ["step"])] for folder in (whole, changing)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)
    one, other = (newest(folder).tensors["average"] for folder in (whole, changing))
    assert all(torch.allclose(one[name], other[name], rtol=0, atol=1e-9) for name in one)


def test_a_part_that_cannot_be_written_fails_the_save_for_all(processes, tmp_path):
    first, second = processes.run("fills_the_disk", 2, folder=str(tmp_path))
    assert first == second
    assert "step 2 could not be saved" in first
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["LATEST", "step_00000001"]
    assert load_checkpoint(CheckpointStore(tmp_path).path(1)).tensors["weights"]["matrix"].shape == (4, 10_000)


def test_a_part_that_is_missing_or_damaged_is_refused_by_name(written, tmp_path):
    import shutil

    source = newest(written[3, "fsdp"]).path
    for number, damage in enumerate(("missing", "flipped", "index")):
        path = shutil.copytree(source, tmp_path / str(number))
        part = path / "weights.00001-of-00003.safetensors"
        if damage == "missing":
            part.unlink()
        elif damage == "flipped":
            data = bytearray(part.read_bytes())
            data[-3] ^= 1
            part.write_bytes(data)
        else:
            manifest = json.loads((path / "manifest.json").read_text())
            del manifest["tensors"]["weights"]["text.text_projection"]["parts"][1]
            (path / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(CheckpointError, match="'text.text_projection'" if damage == "index" else "weights.00001-of-00003"):
            load_checkpoint(path)


@pytest.mark.parametrize("writer", [(1, "ddp"), (2, "ddp"), (3, "fsdp")], ids=str)
def test_only_the_rows_that_are_asked_for_are_read(written, writer):
    path = newest(written[writer]).path
    whole = read_checkpoint(path).tensors["weights"]["text.text_projection"]
    for rank in range(5):
        cut = Rows.of(len(whole), rank, 5)
        found = read_checkpoint(path, {"weights": {"text.text_projection": cut}}).tensors["weights"]
        assert torch.equal(found["text.text_projection"], whole[cut.start : cut.stop])
