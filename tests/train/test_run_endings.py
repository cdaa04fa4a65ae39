"""What a run folder says of runs that end badly, and what trackers can do to a run: nothing."""

from __future__ import annotations

import pytest
import torch

from ostension.errors import DataError
from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.runlog import read_records
from ostension.train.batches import Batch
from ostension.train.loop import train
from ostension.train.objective import Contrastive
from ostension.train.run_reader import open_run, sittings
from ostension.train.train_config import TrainConfig


class Noise:
    """Four pairs of noise a step; from some step on the data cannot be read."""

    worker_kind = "threads"
    batch_size, num_samples = 4, 16

    def __init__(self, until=10**9):
        self.until = until

    def identity(self):
        return {"fingerprint": "noise"}

    def batch(self, step, rank=0, world_size=1):
        if step >= self.until:
            raise DataError("gone", source="disk")
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(4, 3, 32, 32, generator=generator)
        tokens = torch.stack([torch.full((4,), 1022), torch.arange(4) + 5, torch.full((4,), 1023)], dim=1)
        return Batch(images=images, tokens=tokens, keys=[f"k{index}" for index in range(4)])


class Failing:
    """A tracker that goes down in the middle."""

    def open(self, folder, facts):
        self.records = 0

    def write(self, record):
        self.records += 1
        if self.records == 3:
            raise TimeoutError("no answer")

    def close(self):
        raise AssertionError("closed after it failed")


def run(folder, batches, trackers=()):
    objective = Contrastive(CLIP(preset("tiny-vit"), seed=0))
    return train(objective, batches, TrainConfig(steps=5, precision="fp32", log_every=1), folder, trackers=trackers)


def test_a_run_that_ends_with_an_error_says_which(tmp_path):
    with pytest.raises(DataError, match="disk: gone"):
        run(tmp_path, Noise(until=3))
    found = open_run(tmp_path)
    assert (found.status, found.step, found.steps) == ("failed", 3, 5)
    assert sittings(found)[-1]["message"] == "disk: gone"


def test_a_tracker_that_fails_changes_nothing_of_the_run(tmp_path, capsys):
    run(tmp_path / "plain", Noise())
    tracker = Failing()
    assert run(tmp_path / "watched", Noise(), [tracker]).status == "finished"
    assert capsys.readouterr().err.count("the tracker Failing failed (TimeoutError: no answer)") == 1
    assert tracker.records == 3
    for name in ("plain", "watched"):
        assert [record["step"] for record in read_records(tmp_path / name, ["step"])] == [1, 2, 3, 4, 5]
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("plain", "watched")]
    assert weights[0] == weights[1]
