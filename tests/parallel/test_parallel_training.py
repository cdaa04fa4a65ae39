"""A run of several processes against the run of one: the same batches, the same losses, one folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ostension.formats.load import load
from ostension.runlog import read_records
from ostension.train.rows import Rows

SIZES = {"tiny-vit": 32, "tiny-resnet": 64}


def losses(folder):
    return [record["loss"] for record in read_records(folder, ["step"])]


@pytest.fixture(scope="module")
def one(processes, tmp_path_factory):
    """The folder of one process's run, by settings."""
    made = {}

    def get(**settings):
        key = json.dumps(settings, sort_keys=True)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("one") / "run"
            processes.run("trained", 1, folder=str(made[key]), **settings)
        return made[key]

    return get


def case(preset="tiny-vit", precision="fp32", **settings):
    return {"preset": preset, "precision": precision, "batches": {"size": SIZES[preset]}, **settings}


@pytest.mark.parametrize(
    ("preset", "size", "parallel"),
    [
        ("tiny-vit", 2, "ddp"),
        ("tiny-vit", 2, "fsdp"),
        ("tiny-vit", 3, "fsdp"),
        ("tiny-resnet", 2, "ddp"),
        ("tiny-resnet", 3, "ddp"),
        ("tiny-resnet", 2, "fsdp"),
    ],
)
def test_in_float64_the_losses_are_those_of_one_process(processes, one, tmp_path, preset, size, parallel):
    settings = case(preset, "fp64", steps=4)
    processes.run("trained", size, folder=str(tmp_path / "run"), parallel=parallel, **settings)
    assert losses(tmp_path / "run") == pytest.approx(losses(one(**settings)), abs=1e-9)


@pytest.mark.parametrize(("preset", "parallel"), [("tiny-vit", "ddp"), ("tiny-vit", "fsdp"), ("tiny-resnet", "ddp")])
def test_in_float32_they_are_the_same_to_rounding(processes, one, tmp_path, preset, parallel):
    # Adam's first steps are the signs of gradients, which rounding decides where a gradient is next to nothing.
    settings = case(preset, steps=4, **({"optim": {"eps": 1e-4}} if preset == "tiny-resnet" else {}))
    processes.run("trained", 2, folder=str(tmp_path / "run"), parallel=parallel, **settings)
    assert losses(tmp_path / "run") == pytest.approx(losses(one(**settings)), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_low_precision_weights_over_float32_masters(processes, one, tmp_path, parallel):
    settings = case(precision="bf16", steps=6, average=0.9)
    processes.run("trained", 2, folder=str(tmp_path / "run"), parallel=parallel, **settings)
    expected = losses(one(**settings))
    assert losses(tmp_path / "run") == pytest.approx(expected, abs=0.05)
    model = load(tmp_path / "run" / "model", device="cpu", dtype="float32")
    other = load(one(**settings) / "model", device="cpu", dtype="float32")
    for (name, weight), (_, known) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert (weight - known).abs().max() < 0.01, name


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    "settings",
    [
        {"micro_batch": 2},
        {"loss": {"duplicates": "share", "chunk_rows": 2}, "batches": {"groups": True}},
        {"captioning": True},
        {"unlocked": 0},
        {"unlocked": 1},
        {"unlocked": 2},
        {"checkpointing": "both"},
    ],
    ids=["pieces", "groups", "captioning", "locked", "projection unlocked", "block unlocked", "checkpointing"],
)
def test_pieces_groups_and_other_losses_change_nothing(processes, one, tmp_path, settings, parallel):
    whole = {**case(precision="fp64", steps=3), **settings}
    processes.run("trained", 2, folder=str(tmp_path / "run"), parallel=parallel, **whole)
    assert losses(tmp_path / "run") == pytest.approx(losses(one(**whole)), abs=1e-9)


def test_all_processes_together_see_the_batches_of_one(processes, tmp_path):
    notes = {}
    for size in (1, 2, 3):
        note = tmp_path / f"seen-{size}"
        processes.run("trained", size, folder=str(tmp_path / f"run-{size}"), steps=5, batches={"note": str(note)})
        parts = [[line.split(": ") for line in Path(f"{note}.{rank}").read_text().splitlines()] for rank in range(size)]
        assert [step for step, _ in parts[0]] == ["0", "1", "2", "3", "4"]
        notes[size] = [[index for _, ids in step for index in json.loads(ids)] for step in zip(*parts, strict=True)]
    assert notes[1] == notes[2] == notes[3]


def test_one_folder_is_written_and_evaluations_are_those_of_the_first(processes, one, tmp_path):
    settings = {"steps": 4, "evaluate": True, "average": 0.9}
    found = processes.run("trained", 2, folder=str(tmp_path / "run"), parallel="fsdp", **settings)
    # An evaluation of averaged weights leaves nothing behind.
    assert losses(tmp_path / "run") == pytest.approx(losses(one(**settings)), abs=1e-4)
    assert found == [{"status": "finished", "step": 4}] * 2
    assert [record["kind"] for record in read_records(tmp_path / "run", ["start", "end"])] == ["start", "end"]
    assert len(read_records(tmp_path / "run", ["step"])) == 4
    evaluations = read_records(tmp_path / "run", ["evaluation"])
    assert [record["calls"] for record in evaluations] == [1, 2]
    model = load(tmp_path / "run" / "model", device="cpu", dtype="float32")
    mean = model.encode_image(torch.ones(2, 3, 32, 32), normalize=True).sum().item()
    assert mean == pytest.approx(evaluations[-1]["mean"], abs=1e-5)


def test_rejected_pairs_of_any_process_are_counted_by_the_first(processes, tmp_path):
    processes.run("trained", 2, folder=str(tmp_path / "run"), steps=3, batches={"reject": 1})
    assert read_records(tmp_path / "run", ["step"])[-1]["rejects"] == {"no image": 1}
    assert json.loads((tmp_path / "run" / "rejects.jsonl").read_text())["key"] == "bad-1"


def test_a_batch_that_cannot_be_divided_is_refused_by_all(processes, tmp_path):
    group = processes.start("trained", 2, folder=str(tmp_path / "run"), steps=3, batches={"batch_size": 9})
    assert group.wait() == [1, 1]
    for rank in range(2):
        (line,) = group.stderr(rank).strip().splitlines()
        assert "batch_size is 9 with 2 processes; expected a multiple of the number of processes" in line


def test_processes_with_other_data_are_refused(processes, tmp_path):
    group = processes.start("trained", 2, folder=str(tmp_path / "run"), steps=3, batches={"other": True})
    assert group.wait() == [1, 1]
    assert "has other settings than process 0" in group.stderr(0)
    assert "data.other" in group.stderr(1)


@pytest.mark.parametrize(("total", "size"), [(7, 3), (2, 3), (6, 3), (1, 2), (10, 4)])
def test_rows_are_cut_as_torch_cuts(total, size):
    cuts = [Rows.of(total, rank, size) for rank in range(size)]
    expected = [part.tolist() for part in torch.arange(total).chunk(size)]
    assert [list(range(cut.start, cut.stop)) for cut in cuts if len(cut)] == expected
    assert all(len(cut) <= cut.most and cut.total == total for cut in cuts)
