"""`ostension train`: flags, recipes, what is printed, how it ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from ostension.cli.main import main
from ostension.errors import ConfigError
from ostension.model.presets import preset
from ostension.recipes import RECIPES
from ostension.runlog import read_records
from ostension.train.pairs import PairBatchesConfig
from ostension.train.pretraining import Pretraining, parse_settings
from ostension.train.train_config import TrainConfig

BASE = ["train", "--model", "tiny-vit", "--data", "emoji:train"]


def resolved(capsys, *flags):
    assert main([*BASE, *flags, "--dry-run"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_a_small_run_from_the_command_line_and_the_same_again(tmp_path, capsys, one_thread):
    flags = ["--steps", "2", "--batch-size", "8", "--precision", "fp32", "--log-every", "1"]
    command = [*BASE, *flags, "--run", str(tmp_path / "run")]
    assert main(command) == 0
    told = capsys.readouterr()
    result = json.loads(told.out)
    assert (result["status"], result["step"]) == ("finished", 2)
    assert (Path(result["model"]) / "model.safetensors").is_file()
    assert told.err.startswith(f"run folder: {tmp_path / 'run'}")
    assert "step 2/2 | epoch 0 [16/" in told.err
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "finished"
    assert len(read_records(tmp_path / "run", ["step"])) == 2
    assert main([*command, "--lr", "1e-3"]) == 1
    assert "train.optim.lr was 0.0005 and is 0.001" in capsys.readouterr().err


def test_flags_and_settings_land_where_they_belong(capsys):
    tree = resolved(
        capsys, "--epochs", "3", "--batch-size", "64", "--lr", "1e-3", "--warmup-steps", "7", "--seed", "5", "--workers", "2",
        "--checkpoint-every", "9", "--set", "train.optim.beta2=0.95", "batches.captions=first", "model.embed_dim=16",
    )
    assert tree["train"]["epochs"] == 3
    assert tree["train"]["steps"] is None
    assert tree["batches"]["batch_size"] == 64
    assert tree["batches"]["captions"] == "first"
    assert tree["train"]["optim"]["lr"] == 1e-3
    assert tree["train"]["optim"]["beta2"] == 0.95
    assert tree["train"]["schedule"]["warmup_steps"] == 7
    assert tree["train"]["seed"] == tree["batches"]["seed"] == 5
    assert tree["train"]["workers"] == 2
    assert tree["train"]["checkpoint"]["every"] == 9
    assert tree["model"]["embed_dim"] == 16


def test_each_kind_of_tower_gets_the_papers_adam(capsys):
    assert resolved(capsys, "--steps", "5")["train"]["optim"]["beta2"] == 0.98
    assert main(["train", "--model", "tiny-resnet", "--data", "emoji", "--steps", "5", "--dry-run"]) == 0
    optim = json.loads(capsys.readouterr().out)["train"]["optim"]
    assert (optim["beta2"], optim["eps"]) == (0.999, 1e-8)


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["train"], 2, "--model and --data are missing"),
        (["train", "--model", "tiny-vit", "--data", "emoji"], 2, "one of --steps and --epochs"),
        ([*BASE, "--steps", "3", "--epochs", "1"], 2, "one of --steps and --epochs"),
        ([*BASE, "--steps", "3"], 2, "--run is missing"),
        ([*BASE, "--steps", "3", "--smoke"], 2, "--smoke is a form of a recipe"),
        (["train", "--recipe", "nothing"], 1, "unknown recipe 'nothing'"),
        (["train", "--recipe", "nothing", "--model", "tiny-vit"], 2, "a recipe names its model"),
        (["train", "--recipe", "demo", "--data", "emoji"], 2, "the recipe demo brings its own data"),
        (["train", "--recipe", "clip-rn50"], 2, "--run is missing"),
        (["train", "--recipe", "clip-rn50", "--run", "x"], 2, "the recipe clip-rn50 has no data of its own"),
        ([*BASE, "--fixres", "64"], 2, "--fixres goes on from a trained model"),
        (["train", "--model", "tiny-vitt", "--data", "emoji", "--steps", "3"], 1, "'tiny-vit'"),
        ([*BASE, "--steps", "3", "--set", "train.optim.betta2=1"], 1, "unknown setting 'optim.betta2'"),
        ([*BASE, "--steps", "3", "--set", "optim.lr=1"], 1, "--set: unknown setting 'optim.lr'"),
        ([*BASE, "--steps", "3", "--set", "train.optim.lr=fast"], 1, "optim.lr is 'fast'; expected a value of type float"),
        ([*BASE, "--steps", "3", "--set", "train.optim.lr"], 1, "is no setting; expected KEY=VALUE"),
        ([*BASE, "--steps", "3", "--lr", "-1"], 1, "optim.lr is -1.0; expected more than 0"),
    ],
)
def test_a_command_that_cannot_be_meant_is_one_clear_line(capsys, flags, status, message):
    assert main(flags) == status
    told = capsys.readouterr().err
    assert message in told
    assert len(told.strip().splitlines()) == 1


def test_recipes_are_listed_by_name(capsys):
    assert main(["train", "--list-recipes"]) == 0
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == RECIPES.names()


def test_settings_are_json_where_they_can_be():
    found = parse_settings(["a.b=1e-3", "c=null", "d=text", 'e={"x": 1}', "f=1=2"])
    assert found == {"a.b": 1e-3, "c": None, "d": "text", "e": {"x": 1}, "f": "1=2"}
    with pytest.raises(ConfigError, match="expected KEY=VALUE"):
        parse_settings(["=3"])


def test_a_pretraining_can_be_changed_and_read_back():
    base = Pretraining(model=preset("tiny-vit"), batches=PairBatchesConfig(data="x"), train=TrainConfig(steps=3))
    assert base.changed({}) == base
    assert base.changed({"model.vision.layers": 2, "train.optim.lr_factors": {"text.": 0.5}}).model.vision.layers == 2


def test_another_objective_takes_over_what_both_have(capsys):
    demo = ["train", "--recipe", "demo", "--smoke", "--dry-run", "--set"]
    assert main([*demo, "objective.kind=captioning", "objective.caption_weight=1.5"]) == 0
    found = json.loads(capsys.readouterr().out)["objective"]
    assert (found["kind"], found["caption_weight"], found["loss"]["duplicates"]) == ("captioning", 1.5, "share")
    assert main([*demo, "objective.kind=distillation", "objective.teacher=models/large"]) == 0
    assert json.loads(capsys.readouterr().out)["objective"]["teacher"] == "models/large"
    assert main([*demo, "objective.kind=distillation"]) == 1
    assert "'teacher' is missing" in capsys.readouterr().err
    assert main([*demo, "objective.kind=captions"]) == 1
    assert "'captioning'" in capsys.readouterr().err


def test_help_names_no_heavy_module(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--help"])
    assert stopped.value.code == 0
    assert "--allow-change" in capsys.readouterr().out
    assert "ostension.cli.train" in sys.modules
