"""Processes that are killed, stopped, or meet bad numbers: the others end soon with one line, and the run goes on later."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from ostension.runlog import read_records
from ostension.train.checkpoint import CheckpointStore, load_checkpoint

SECONDS = 15  # for the others to end, on a busy machine; on a quiet one it is about three


def final_bytes(folder):
    newest = folder / "checkpoints" / (folder / "checkpoints" / "LATEST").read_text().strip()
    return {path.name: path.read_bytes() for path in [folder / "model" / "model.safetensors", *newest.glob("*.safetensors")]}


@pytest.fixture(scope="module")
def whole(processes, tmp_path_factory):
    """What two processes leave that are not disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    processes.run("trained", 2, folder=str(folder), steps=8)
    return final_bytes(folder)


def one_line(group, rank):
    (line,) = group.stderr(rank).strip().splitlines()
    assert line.startswith("ostension: error: ")
    return line


@pytest.mark.parametrize("lost", [0, 1])
def test_the_end_of_one_ends_all_and_the_run_goes_on(processes, whole, tmp_path, lost):
    folder = tmp_path / "run"
    started = time.monotonic()
    group = processes.start("trained", 2, folder=str(folder), steps=8, batches={"kill": 5, "rank": lost})
    codes = group.wait(limit_s=SECONDS + 10)
    assert time.monotonic() - started < SECONDS + 10
    assert (codes[lost], codes[1 - lost]) == (-signal.SIGKILL, 1)
    assert f"process {lost} (pid {group.pids[lost]}" in one_line(group, 1 - lost)
    assert one_line(group, 1 - lost).endswith("has ended; the same command again resumes the run")
    assert list(CheckpointStore(folder).paths()) == [3]
    if lost == 1:
        (end,) = read_records(folder, ["end"])
        assert (end["step"], end["status"]) == (5, "failed")
    processes.run("trained", 2, folder=str(folder), steps=8)
    assert final_bytes(folder) == whole


@pytest.mark.parametrize(("moment", "rank"), [("facts_of", 1), ("publish", 0), ("point_to", 0)])
def test_a_kill_in_any_phase_of_a_common_save_leaves_a_complete_checkpoint(processes, whole, tmp_path, moment, rank):
    folder = tmp_path / "run"
    group = processes.start("trained", 2, folder=str(folder), steps=8, kill=[moment, 6, rank])
    codes = group.wait(limit_s=SECONDS + 10)
    assert (codes[rank], codes[1 - rank]) == (-signal.SIGKILL, 1)
    store = CheckpointStore(folder)
    assert (store.folder / "LATEST").read_text().strip() == "step_00000003"
    assert bool(list(store.folder.glob("*.partial"))) == (moment != "point_to")
    processes.run("trained", 2, folder=str(folder), steps=8)
    assert read_records(folder, ["resume"])[0]["step"] == (6 if moment == "point_to" else 3)
    assert not list(store.folder.glob("*.partial"))
    assert final_bytes(folder) == whole


@pytest.mark.slow
def test_a_process_that_stands_still_is_given_up_after_the_time_limit(processes, tmp_path):
    folder = tmp_path / "run"
    group = processes.start("trained", 2, folder=str(folder), steps=8, timeout_s=4, batches={"freeze": 4})
    try:
        assert group.wait(limit_s=SECONDS + 10, ranks=[0]) == [1]
    finally:
        os.kill(group.pids[1], signal.SIGKILL)
    assert f"process 1 (pid {group.pids[1]}" in one_line(group, 0)
    assert "did not answer for 4 s" in one_line(group, 0)
    group.wait(ranks=[1])


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_bad_numbers_in_one_process_stop_all_at_the_same_step(processes, tmp_path, parallel):
    folder = tmp_path / "run"
    group = processes.start("trained", 2, folder=str(folder), steps=8, parallel=parallel, batches={"nan": 4})
    assert group.wait() == [3, 3]
    assert one_line(group, 0) == one_line(group, 1)
    assert "the loss is nan at step 4" in one_line(group, 0)
    (bundle,) = folder.glob("diverged_step_*")
    report = json.loads((bundle / "report.json").read_text())
    assert len(report["keys"]) == 12
    assert report["keys"][7] in report["cause"]  # the second pair of the second process
    assert report["non_finite_gradients"]
    assert set(report["weight_norms"]) >= {"visual.transformer.resblocks.0", "text.transformer.resblocks.0"}
    assert list(CheckpointStore(folder).paths()) == [3]
    weights = load_checkpoint(CheckpointStore(folder).path(3)).tensors["weights"]
    assert all(torch.isfinite(value).all() for value in weights.values())


@pytest.mark.parametrize("preset", ["tiny-vit", "tiny-resnet"])
def test_a_step_with_bad_numbers_can_be_skipped_by_all(processes, tmp_path, preset):
    size = {"tiny-vit": 32, "tiny-resnet": 64}[preset]
    folder, batches = tmp_path / "run", {"nan": 1, "size": size}
    processes.run("trained", 2, folder=str(folder), steps=3, preset=preset, non_finite="skip:2", batches=batches)
    assert [record["step"] for record in read_records(folder, ["skip"])] == [1]
    assert [record["step"] for record in read_records(folder, ["step"])] == [1, 3]
    weights = load_checkpoint(CheckpointStore(folder).path(3)).tensors["weights"]
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_a_signal_to_one_saves_and_ends_all_at_the_same_step(processes, whole, tmp_path):
    folder = tmp_path / "run"
    found = processes.run("trained", 2, folder=str(folder), steps=8, batches={"term": 4})
    assert found == [{"status": "stopped", "step": 4}] * 2
    assert list(CheckpointStore(folder).paths()) == [3, 4]
    processes.run("trained", 2, folder=str(folder), steps=8)
    assert final_bytes(folder) == whole


def test_data_that_one_cannot_read_ends_all_and_says_what(processes, tmp_path):
    group = processes.start("trained", 2, folder=str(tmp_path / "run"), steps=8, batches={"data_error": 4})
    assert group.wait() == [1, 1]
    assert one_line(group, 1).endswith("shard-7: the shard is gone")
    assert one_line(group, 0).endswith("stopped: shard-7: the shard is gone")
    assert f"process 1 (pid {group.pids[1]}" in one_line(group, 0)


@pytest.mark.slow
def test_a_data_worker_that_is_killed_ends_all_and_says_where(processes, tmp_path):
    started = time.monotonic()
    group = processes.start("trained", 2, folder=str(tmp_path / "run"), steps=8, workers=1, batches={"kill": 4})
    assert group.wait(limit_s=60) == [1, 1]
    assert time.monotonic() - started < 60
    assert "SIGKILL" in one_line(group, 1)
    assert "the batch of step 4" in one_line(group, 1)
    assert "the batch of step 4" in one_line(group, 0)


def test_two_runs_in_one_folder_are_refused_by_all(processes, tmp_path):
    folder = tmp_path / "run"
    first = processes.start("trained", 2, folder=str(folder), steps=200, batches={"sleep_s": 0.05})
    deadline = time.monotonic() + 120
    while not (folder / "log.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    second = processes.start("trained", 2, folder=str(folder), steps=200)
    assert second.wait() == [1, 1]
    first.kill()
    assert f"in use by another run (process {first.pids[0]})" in one_line(second, 0)
    assert "in use by another run" in one_line(second, 1)


def test_a_missing_checkpoint_is_told_before_anything_is_made(processes, tmp_path):
    group = processes.start("trained", 2, folder=str(tmp_path / "run"), resume=str(tmp_path / "nothing"))
    assert group.wait() == [2, 2]
    assert "no checkpoint at" in one_line(group, 0)
    assert not Path(tmp_path / "run").exists()
