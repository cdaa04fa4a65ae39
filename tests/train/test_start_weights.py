"""A run that begins with the weights of a model folder, at its own image size or at another."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from ostension.cli.main import main
from ostension.config import changed_keys, to_tree
from ostension.errors import CheckpointError, ConfigError
from ostension.files import read_json
from ostension.formats.load import load, save
from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.recipes._fixres import fixres
from ostension.train.pairs import PairBatchesConfig
from ostension.train.pretraining import Pretraining
from ostension.train.train_config import TrainConfig


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "model"
    save(CLIP(preset("tiny-vit"), seed=7), folder)
    return folder


def run_of(**changes) -> Pretraining:
    train = TrainConfig(steps=2, precision="fp32", log_every=1)
    made = Pretraining(model=preset("tiny-vit"), batches=PairBatchesConfig(data="emoji:train", batch_size=4), train=train)
    return dataclasses.replace(made, **changes)


def equal_weights(one: CLIP, other: CLIP) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_start_gives_its_weights_and_not_random_ones(trained):
    model = run_of(start=trained).initial_model()
    assert equal_weights(model, load(trained, dtype="float32"))
    assert not equal_weights(model, run_of().initial_model())
    assert model.config.name == "tiny-vit"


def test_a_fixres_start_is_the_loaded_model_resized_bit_for_bit(trained):
    model = fixres(run_of(), 48, trained).initial_model()
    assert equal_weights(model, load(trained, dtype="float32").resized(image_size=48))
    assert model.config.vision.image_size == model.config.preprocess.image_size == 48
    assert len(model.visual.positional_embedding) == 6 * 6 + 1
    assert model.transform.config.image_size == 48


def test_fixres_is_one_epoch_at_a_small_rate_and_nothing_else():
    before = run_of()
    changes = changed_keys(before.tree(), fixres(before, 48, None).tree())
    assert {key: new for key, (_, new) in changes.items()} == {
        "model.vision.image_size": 48, "model.preprocess.image_size": 48, "train.steps": None, "train.epochs": 1,
        "train.optim.lr": 2e-5,
    }


def test_a_start_that_is_another_model_is_refused_with_what_differs(trained):
    other = run_of(start=trained).changed({"model.vision.layers": 4})
    with pytest.raises(ConfigError, match="model.vision.layers is 3 in it and 4 here"):
        other.initial_model()
    with pytest.raises(CheckpointError):
        run_of(start=trained / "nothing").initial_model()


def test_the_cap_of_the_logits_may_change_with_a_start(trained):
    model = run_of(start=trained).changed({"model.logit_scale_cap": 50.0}).initial_model()
    assert model.config.logit_scale_cap == 50


def test_a_whole_fixres_run_from_the_command_line(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    flags = ["train", "--from", str(trained), "--data", "emoji:train", "--fixres", "48", "--precision", "fp32"]
    assert main([*flags, "--dry-run"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["start"] == str(trained) and tree["train"]["epochs"] == 1 and tree["model"]["name"] == "tiny-vit"
    small = ["--steps", "2", "--batch-size", "4", "--run", str(tmp_path / "run")]
    assert main([*flags, *small]) == 0
    model = load(json.loads(capsys.readouterr().out)["model"])
    assert model.config.vision.image_size == 48
    start = model.provenance["before"]["start"]
    assert start["resized_from"] == {"image_size": 32, "context_length": 24}
    assert read_json(tmp_path / "run" / "config.json")["start"] == start["fingerprint"]
    # Resuming from other initial weights would be another run.
    save(CLIP(preset("tiny-vit"), seed=8), tmp_path / "other")
    flags[2] = str(tmp_path / "other")
    assert main([*flags, *small]) == 1
    assert "the run was made with other settings: start was" in capsys.readouterr().err


def test_a_start_is_a_setting_like_any_other(trained):
    made = run_of().changed({"start": str(trained)})
    assert made.start == trained and made.changed({}) == made
    assert to_tree(made)["start"] == str(trained)
    with pytest.raises(ConfigError, match="unknown setting 'startt'"):
        made.changed({"startt": "x"})
