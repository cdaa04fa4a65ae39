"""`ostension train` over several sources: the flags, what a resume refuses, and that captions are tokenised by workers."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from ostension.cli.main import main
from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.train.pairs import PairBatchesConfig
from ostension.train.prefetch import batches_ahead

sys.path.append(str(Path(__file__).parents[1] / "data"))
from shard_making import members, write_tar


@pytest.fixture
def shards(tmp_path):
    return [str(write_tar(tmp_path / f"{name}.tar", members(12, start))) for name, start in (("a", 0), ("b", 100))]


def train(*arguments):
    return main(["train", "--model", "tiny-vit", *arguments])


def test_the_flags_name_sources_and_weights(shards, capsys):
    assert train("--data", *shards, "--weights", "3", "1", "--steps", "2", "--dry-run") == 0
    batches = json.loads(capsys.readouterr().out)["batches"]
    assert batches["data"] == shards and batches["weights"] == [3, 1]
    assert train("--data", shards[0], "--steps", "2", "--dry-run") == 0
    assert json.loads(capsys.readouterr().out)["batches"]["data"] == shards[0]
    assert train("--data", shards[0], "--weights", "3", "1", "--steps", "2", "--dry-run") == 1
    assert "batches.weights is (3.0, 1.0); expected one for each of 1 entries" in capsys.readouterr().err


def test_a_resumed_run_refuses_other_weights_and_other_content(shards, tmp_path, capsys):
    run = ["--data", *shards, "--batch-size", "4", "--steps", "2", "--run", str(tmp_path / "run"), "--precision", "fp32"]
    assert train(*run, "--weights", "3", "1") == 0
    capsys.readouterr()
    assert train(*run, "--weights", "1", "1") == 1
    assert "data.weights" in capsys.readouterr().err
    write_tar(Path(shards[1]), members(12, 200))
    Path(shards[1] + ".idx").unlink()
    assert train(*run, "--weights", "3", "1") == 1
    assert "data.sources" in capsys.readouterr().err


class Counted:
    """A tokenizer that works in other processes only."""

    def __init__(self, tokenizer):
        self._tokenizer, self._home = tokenizer, os.getpid()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._tokenizer, name)

    def encode(self, text):
        assert os.getpid() != self._home, "tokenised by the loop"
        return self._tokenizer.encode(text)


@pytest.mark.slow
def test_pictures_are_decoded_and_captions_tokenised_by_the_workers(shards):
    model = CLIP(preset("tiny-vit"), seed=0)
    batches = PairBatchesConfig(data=shards[0], batch_size=4).build(model)
    expected = batches.batch(0).tokens
    batches.tokenizer = Counted(batches.tokenizer)
    with pytest.raises(AssertionError, match="tokenised by the loop"):
        batches.batch(0)
    with batches_ahead(batches, 0, 2, 1) as stream:
        assert next(stream).tokens.equal(expected)
