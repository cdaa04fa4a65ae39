"""A run that is killed, resumed, damaged or changed ends as it should: with the same bits, or with a clear refusal."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training_harness import FakeBatches, final_bytes, harness, run_training

from ostension.errors import CheckpointError, ConfigError
from ostension.runlog import read_records
from ostension.train.checkpoint import CheckpointStore

__all__ = ["harness"]


@pytest.mark.slow
@pytest.mark.timeout(1200)  # some thirty processes, on a machine that may be busy
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_twenty_kills_at_random_moments_leave_the_bits_of_an_uninterrupted_run(harness, tmp_path, precision):
    chance = random.Random(f"kills {precision}")
    settings = {"steps": 130, "every": 2, "precision": precision, "average": 0.95}
    harness.run(tmp_path / "whole", **settings)
    kills = [0] * 16 + [1] * 2 + [2] * 2 if precision == "fp32" else [0] * 5
    chance.shuffle(kills)
    for workers in kills:
        run = harness.start(tmp_path / "killed", workers=workers, **settings)
        before = run.steps()
        run.until(before + chance.randrange(6))
        time.sleep(chance.random() * 0.03)
        run.signal(signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL, run.stderr()
    harness.run(tmp_path / "killed", **settings)
    assert final_bytes(tmp_path / "killed") == final_bytes(tmp_path / "whole")
    assert len({record["step"] for record in read_records(tmp_path / "killed", ["resume"])}) > len(kills) / 3
    assert [record["step"] for record in read_records(tmp_path / "killed", ["step"])] == list(range(1, 131))
    losses = [[record["loss"] for record in read_records(tmp_path / name, ["step"])] for name in ("killed", "whole")]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("moment", "left"),
    [("manifest_of", 4), ("publish", 4), ("point_to", 8)],
    ids=["before the manifest", "before the rename", "between rename and pointer"],
)
def test_a_kill_in_any_phase_of_a_save_leaves_a_complete_checkpoint(harness, tmp_path, moment, left):
    folder = tmp_path / "run"
    harness.run(tmp_path / "whole")
    harness.run(folder, kill=(moment, 8), expect=-signal.SIGKILL)
    store = CheckpointStore(folder)
    assert (store.folder / "LATEST").read_text().strip() == "step_00000004"
    assert bool(list(store.folder.glob("*.partial"))) == (moment != "point_to")
    harness.run(folder)
    (resumed,) = read_records(folder, ["resume"])
    assert resumed["step"] == left
    assert not list(store.folder.glob("*.partial"))
    assert final_bytes(folder) == final_bytes(tmp_path / "whole")


@pytest.mark.parametrize("stop", [4, 5, 6], ids=["one step before", "at", "one step after"])
def test_resuming_around_an_epoch_boundary_sees_the_same_batches(tmp_path, stop):
    assert FakeBatches().num_samples == 40  # 44 pairs in batches of 8: five steps an epoch
    keys = {"whole": [], "parts": []}

    def run(name, **batches):
        drawn = keys[name]
        original = FakeBatches.batch

        def noting(self, step):
            batch = original(self, step)
            drawn.append((step, tuple(batch.keys)))
            return batch

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FakeBatches, "batch", noting)
            return run_training(tmp_path / name, steps=11, every=1, batches=batches)

    run("whole")
    with pytest.raises(RuntimeError, match="fell over"):
        run("parts", raise_at=stop)
    run("parts")
    assert keys["parts"] == keys["whole"]
    assert [step for step, _ in keys["parts"]] == list(range(11))
    first, second = ([key for _, batch in keys["whole"][part] for key in batch] for part in (slice(0, 5), slice(5, 10)))
    assert len(set(first)) == len(set(second)) == 40
    assert first != second
    assert final_bytes(tmp_path / "parts") == final_bytes(tmp_path / "whole")


def test_a_run_stopped_before_its_first_batch_and_resumed_twice_only_goes_forward(harness, tmp_path):
    folder = tmp_path / "run"
    harness.run(tmp_path / "whole")
    harness.run(folder, batches={"term_before_step_0": True})
    harness.run(folder, batches={"term_before_step_0": True})
    harness.run(folder, batches={"exit_at": 3}, every=1, expect=9)
    harness.run(folder, batches={"term_at": [5]}, every=1)
    harness.run(folder, batches={"exit_at": 9}, every=1, expect=9)
    harness.run(folder)
    sittings = [record["step"] for record in read_records(folder, ["start", "resume"])]
    assert sittings == [0, 0, 0, 3, 6, 9]
    assert [record["step"] for record in read_records(folder, ["step"])] == list(range(1, 13))
    assert final_bytes(folder) == final_bytes(tmp_path / "whole")


def test_a_finished_run_started_again_trains_nothing(tmp_path):
    run_training(tmp_path / "run", steps=3)
    before = final_bytes(tmp_path / "run")
    result = run_training(tmp_path / "run", steps=3)
    assert (result.status, result.step) == ("finished", 3)
    assert final_bytes(tmp_path / "run") == before
    assert len(read_records(tmp_path / "run", ["step"])) == 3


def test_a_flipped_byte_falls_back_in_auto_and_is_refused_by_name(tmp_path, capsys):
    run_training(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="fell over"):
        run_training(tmp_path / "run", batches={"raise_at": 10})
    newest = CheckpointStore(tmp_path / "run").path(8)
    data = bytearray((newest / "weights.safetensors").read_bytes())
    data[-2] ^= 4
    (newest / "weights.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"weights.safetensors: its content is not what was saved"):
        run_training(tmp_path / "run", resume=newest)
    capsys.readouterr()
    run_training(tmp_path / "run")
    assert "WARNING: checkpoint not used" in capsys.readouterr().err
    assert read_records(tmp_path / "run", ["resume"])[0]["step"] == 4
    assert final_bytes(tmp_path / "run") == final_bytes(tmp_path / "whole")


def test_a_named_checkpoint_starts_a_branch_in_another_folder_only(tmp_path):
    run_training(tmp_path / "run")
    older = CheckpointStore(tmp_path / "run").path(8)
    with pytest.raises(ConfigError, match="holds step 12, which a start from step 8 would come to replace"):
        run_training(tmp_path / "run", resume=older)
    run_training(tmp_path / "branch", resume=older)
    assert final_bytes(tmp_path / "branch") == final_bytes(tmp_path / "run")
    with pytest.raises(ConfigError, match="holds a run, at step 12"):
        run_training(tmp_path / "run", resume="never")


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"lr": 2e-3}, "train.optim.lr"),
        ({"batches": {"fingerprint": "other"}}, "data.fingerprint"),
        ({"seed": 1}, "train.seed"),
        ({"steps": 16}, "train.steps"),
    ],
)
def test_a_changed_setting_is_refused_and_can_be_allowed(tmp_path, changed, key):
    folder = tmp_path / "run"
    run_training(folder, steps=8)
    with pytest.raises(ConfigError, match=rf"{key} was .* and is .*--allow-change {key}"):
        run_training(folder, **{"steps": 8, **changed})
    result = run_training(folder, allow_change=[key], **{"steps": 8, **changed})
    assert result.status == "finished"
    (change,) = json.loads((folder / "run.json").read_text())["changes"]
    assert (change["step"], change["key"]) == (8, key)
    (logged,) = read_records(folder, ["change"])
    assert logged["key"] == key


def test_an_allowed_beginning_covers_what_is_below_it_and_an_unknown_key_is_refused(tmp_path):
    run_training(tmp_path / "run", steps=4)
    run_training(tmp_path / "run", steps=4, lr=0.1, optim={"beta1": 0.8}, allow_change=["train.optim"])
    with pytest.raises(ConfigError, match=r"--allow-change: unknown setting 'train.optim.lrr'.*'train.optim.lr'"):
        run_training(tmp_path / "run", steps=4, allow_change=["train.optim.lrr"])


def test_a_wider_model_cannot_take_the_weights_even_when_allowed(tmp_path):
    run_training(tmp_path / "run", steps=4)
    with pytest.raises(ConfigError, match=r"model.vision"):
        run_training(tmp_path / "run", steps=4, preset="tiny-resnet", batches={"size": 64})
    with pytest.raises(CheckpointError, match="weights.safetensors: the tensor"):
        run_training(tmp_path / "run", steps=4, preset="tiny-resnet", batches={"size": 64}, allow_change=["model"])


def test_what_does_not_decide_the_result_may_change_freely(tmp_path):
    run_training(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="fell over"):
        run_training(tmp_path / "run", batches={"raise_at": 7})
    run_training(tmp_path / "run", every=2, keep=1, log_every=3)
    assert final_bytes(tmp_path / "run") == final_bytes(tmp_path / "whole")
    assert list(CheckpointStore(tmp_path / "run").paths()) == [12]


def test_jumping_clocks_change_nothing(tmp_path, monkeypatch):
    run_training(tmp_path / "whole", steps=6)
    jumps = iter(range(10**6, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(jumps)))
    run_training(tmp_path / "run", steps=6)
    assert final_bytes(tmp_path / "run") == final_bytes(tmp_path / "whole")


@pytest.mark.slow
def test_hash_seeds_and_threads_leave_the_order_alone_and_equal_threads_the_bits(tmp_path):
    code = """
import hashlib, json, sys
from training_harness import FakeBatches, final_bytes, run_training
folder, threads = sys.argv[1], int(sys.argv[2])
run_training(folder, steps=4, threads=threads)
keys = [FakeBatches().batch(step).keys for step in range(12)]
weights = hashlib.sha256(repr(sorted(final_bytes(folder).items())).encode()).hexdigest()
print(json.dumps({"keys": keys, "weights": weights}))
"""
    found = []
    for number, (hash_seed, threads) in enumerate([("1", "1"), ("77", "1"), ("2", "2")]):
        fixed = {"PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": threads, "PYTHONPATH": str(Path(__file__).parent)}
        command = [sys.executable, "-c", code, str(tmp_path / str(number)), threads]
        done = subprocess.run(command, env={**os.environ, **fixed}, check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout))
    assert found[0]["keys"] == found[1]["keys"] == found[2]["keys"]
    assert found[0]["weights"] == found[1]["weights"]
