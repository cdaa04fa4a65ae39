"""A run that cannot go on says why in one line, leaves what was saved whole, and is stopped politely when asked."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
import torch
from training_harness import FakeBatches, final_bytes, harness, run_training

from ostension.cli.main import main
from ostension.errors import ConfigError, DataError, DivergenceError
from ostension.runlog import read_records
from ostension.train.checkpoint import CheckpointStore, load_checkpoint

__all__ = ["harness"]


def weights(folder, step):
    return load_checkpoint(CheckpointStore(folder).path(step)).tensors["weights"]


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_resuming_from_a_missing_path_names_it_lists_what_is_there_and_creates_nothing(tmp_path, capsys):
    run_training(tmp_path / "run", steps=4)
    missing = tmp_path / "run" / "checkpoints" / "step_00000003"
    command = ["train", "--model", "tiny-vit", "--data", "emoji", "--steps", "4", "--run", str(tmp_path / "new")]
    assert main([*command, "--resume", str(missing)]) == 2
    told = capsys.readouterr().err
    assert str(missing) in told
    assert "holds step_00000004" in told
    assert not (tmp_path / "new").exists()


def test_a_full_disk_is_survived_and_the_save_tried_again(harness, tmp_path):
    folder = tmp_path / "run"
    harness.run(tmp_path / "whole", steps=26, every=10)
    run = harness.run(folder, steps=26, every=10, batches={"disk_full_from": 12, "disk_full_until": 21})
    assert "WARNING" in run.stderr()
    assert "step 20 could not be saved: " in run.stderr()
    assert "Traceback" not in run.stderr()
    assert [record["step"] for record in read_records(folder, ["warning"])] == [20, 21]
    assert [record["step"] for record in read_records(folder, ["checkpoint"])] == [10, 22, 26]
    assert not list(CheckpointStore(folder).folder.glob("*.partial"))
    assert final_bytes(folder) == final_bytes(tmp_path / "whole")


def test_a_disk_that_stays_full_ends_with_one_line_and_the_old_checkpoint(harness, tmp_path):
    run = harness.run(tmp_path / "run", steps=12, every=5, batches={"disk_full_from": 6}, expect=1)
    assert "step 12 could not be saved; step 5 is; make room and resume" in run.stderr()
    assert CheckpointStore(tmp_path / "run").newest().step == 5
    assert "Traceback" not in run.stderr()


def test_a_folder_that_cannot_be_written_is_told_before_anything_else(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match="file/run: cannot be used: .*; expected a folder that can be written"):
        run_training(tmp_path / "file" / "run")


def test_a_read_only_folder_is_told_in_one_line(harness, tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    # The superuser may write anywhere, so the run becomes somebody else.
    run = harness.run(folder / "run", user=65534 if os.getuid() == 0 else None, expect=1)
    assert "closed/run: cannot be used: Permission denied; expected a folder that can be written" in run.stderr()
    assert "Traceback" not in run.stderr()
    assert list(folder.iterdir()) == []


def test_a_relative_folder_stays_where_it_was_when_the_process_moves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    original = FakeBatches.batch

    def moving(self, step):
        os.chdir("/")
        return original(self, step)

    monkeypatch.setattr(FakeBatches, "batch", moving)
    result = run_training("here/run", steps=2)
    assert result.folder == tmp_path / "here" / "run"
    assert (tmp_path / "here" / "run" / "model" / "model.safetensors").is_file()


def test_two_runs_in_one_folder_are_refused_with_the_others_process(harness, tmp_path):
    run = harness.start(tmp_path / "run", steps=1000, batches={"sleep_s": 0.05})
    run.until(1)
    with pytest.raises(DataError, match=rf"in use by another run \(process {run.pid}\)"):
        run_training(tmp_path / "run")
    run.signal(signal.SIGKILL)
    run.wait()


def test_a_broken_picture_stops_the_run_before_the_weights_move(tmp_path):
    with pytest.raises(DivergenceError) as stopped:
        run_training(tmp_path / "run", steps=12, every=3, batches={"nan_at": [7]})
    assert stopped.value.exit_code == 3
    assert "the loss is nan at step 7" in str(stopped.value)
    key = FakeBatches().batch(7).keys[1]
    assert f"the image of {key} holds non-finite numbers" in str(stopped.value)
    report = json.loads((tmp_path / "run" / "diverged_step_00000007" / "report.json").read_text())
    assert report["keys"] == FakeBatches().batch(7).keys
    assert report["loss"] == "nan"
    assert report["logit_scale"] == pytest.approx(2.66, abs=0.1)
    assert "visual.transformer.resblocks.0" in report["weight_norms"]
    assert "visual.conv1.weight" in report["non_finite_gradients"]
    assert list(CheckpointStore(tmp_path / "run").paths()) == [3, 6]
    (end,) = read_records(tmp_path / "run", ["end"])
    assert (end["status"], end["step"]) == ("diverged", 7)
    assert not (tmp_path / "run" / "model").exists()


def test_the_weights_are_those_before_the_broken_batch(tmp_path):
    from ostension.model.clip import CLIP

    kept = []
    build = CLIP.__init__

    def keeping(self, *arguments, **named):
        build(self, *arguments, **named)
        kept.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CLIP, "__init__", keeping)
        with pytest.raises(DivergenceError):
            run_training(tmp_path / "broken", preset="tiny-resnet", batches={"nan_at": [4], "size": 64})
    run_training(tmp_path / "whole", preset="tiny-resnet", every=4, keep=9, batches={"size": 64})
    before = weights(tmp_path / "whole", 4)
    for name, weight in kept[0].named_parameters():
        assert torch.equal(weight, before[name]), name


@pytest.mark.parametrize("preset", ["tiny-vit", "tiny-resnet"])
def test_skipping_counts_leaves_everything_unchanged_and_ends(tmp_path, preset):
    """With a residual network, batch norm's statistics are put back as well."""
    size = 32 if preset == "tiny-vit" else 64
    with pytest.raises(DivergenceError, match=r"at step 7 after 3 skipped ones in the last 100"):
        run_training(
            tmp_path / "run", preset=preset, steps=12, every=1, keep=20, non_finite="skip:3", inf_gradient_at=[2, 4, 5, 7],
            batches={"size": size},
        )
    skips = read_records(tmp_path / "run", ["skip"])
    assert [record["step"] for record in skips] == [2, 4, 5]
    assert all(record["grad_norm"] in ("inf", "nan") and len(record["keys"]) == 8 for record in skips)
    for step in (2, 4, 5):
        assert same(weights(tmp_path / "run", step), weights(tmp_path / "run", step + 1))
    assert not same(weights(tmp_path / "run", 3), weights(tmp_path / "run", 4))
    records = read_records(tmp_path / "run", ["step"])
    assert [record["step"] for record in records] == [1, 2, 4, 7]  # no record of a skipped step alone
    assert records[-1]["skipped"] == 3


def test_skips_are_remembered_over_a_resume(tmp_path):
    faults = {"non_finite": "skip:2", "steps": 12, "every": 1}
    with pytest.raises(RuntimeError, match="fell over"):
        run_training(tmp_path / "run", batches={"nan_at": [1, 2], "raise_at": 5}, **faults)
    with pytest.raises(DivergenceError, match="at step 6 after 2 skipped"):
        run_training(tmp_path / "run", batches={"nan_at": [1, 2, 6]}, **faults)


@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_absurd_learning_rate_stops_readably_and_saves_no_ruin(tmp_path, precision, weight_decay):
    cause = r"diverged: .*; the norm of the weights is .* times what it was: lower the learning rate"
    with pytest.raises(DivergenceError, match=cause):
        run_training(tmp_path / "run", lr=1e6, steps=30, every=2, precision=precision, optim={"weight_decay": weight_decay})
    assert read_records(tmp_path / "run", ["start"])[0]["step"] == 0
    assert len(read_records(tmp_path / "run", ["step"])) < 10
    assert not CheckpointStore(tmp_path / "run").paths()


def test_a_policy_that_is_none_is_refused(tmp_path):
    for policy in ("skip", "skip:0", "skip:-1", "go on"):
        with pytest.raises(ConfigError, match=r"non_finite is .*; expected 'stop' or 'skip:N'"):
            run_training(tmp_path / "run", non_finite=policy)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_polite_stop_saves_ends_well_and_can_be_resumed(harness, tmp_path, workers):
    settings = {"steps": 60, "every": 50, "workers": workers, "batches": {"sleep_s": 0.01}}
    harness.run(tmp_path / "whole", **settings)
    run = harness.start(tmp_path / "run", **settings)
    run.until(5)
    run.signal(signal.SIGTERM)
    assert run.wait() == 0
    assert "SIGTERM: saving after this step" in run.stderr()
    (end,) = read_records(tmp_path / "run", ["end"])
    assert end["status"] == "stopped"
    assert list(CheckpointStore(tmp_path / "run").paths()) == [end["step"]]
    harness.run(tmp_path / "run", **settings)
    assert final_bytes(tmp_path / "run") == final_bytes(tmp_path / "whole")


def test_a_signal_to_the_whole_group_is_a_polite_stop_too(harness, tmp_path):
    run = harness.run(tmp_path / "run", batches={"group_term_at": 5})
    assert CheckpointStore(tmp_path / "run").newest().step == 5
    assert read_records(tmp_path / "run", ["end"])[0]["status"] == "stopped"
    assert "Traceback" not in run.stderr()


def test_a_second_request_ends_the_process_at_once(harness, tmp_path):
    run = harness.start(tmp_path / "run", steps=60, batches={"sleep_s": 3.0})
    while not (tmp_path / "run" / "log.jsonl").exists():
        time.sleep(0.01)
    time.sleep(0.3)
    run.signal(signal.SIGTERM)
    time.sleep(0.3)
    run.signal(signal.SIGTERM)
    assert run.wait() == 128 + signal.SIGTERM
    assert not CheckpointStore(tmp_path / "run").paths()


@pytest.mark.slow
def test_a_data_worker_that_is_killed_ends_the_run_with_its_step(harness, tmp_path):
    run = harness.run(tmp_path / "run", steps=20, workers=2, batches={"exit_at": 5}, expect=1)
    assert "ended with exit status 9 at the batch of step 5" in run.stderr()
    assert "Traceback" not in run.stderr()


def test_a_batch_of_one_trains_with_no_loss(tmp_path):
    result = run_training(tmp_path / "run", steps=3, batches={"batch_size": 1})
    assert result.last["loss"] == 0.0
    assert result.last["grad_norm"] == 0.0


def test_identical_pairs_give_ln_b(tmp_path, monkeypatch):
    original = FakeBatches.batch

    def alike(self, step):
        import dataclasses

        batch = original(self, step)
        images, tokens = (value[:1].expand_as(value).clone() for value in (batch.images, batch.tokens))
        return dataclasses.replace(batch, images=images, tokens=tokens)

    monkeypatch.setattr(FakeBatches, "batch", alike)
    result = run_training(tmp_path / "run", steps=2)
    assert result.last["loss"] == pytest.approx(torch.tensor(8.0).log().item(), abs=1e-5)


def test_less_data_than_one_batch_is_refused(tmp_path):
    with pytest.raises(DataError, match="7 samples are fewer than one global batch of 8"):
        run_training(tmp_path / "run", batches={"num_samples": 7})
