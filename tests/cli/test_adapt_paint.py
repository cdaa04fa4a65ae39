"""`ostension adapt paint`: tasks to keep, the tuned model as a folder, attacked tasks measured on the way."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from ostension.cli.main import main
from ostension.formats.load import load, save
from ostension.model.clip import CLIP
from ostension.model.predictor import Predictor
from ostension.model.presets import preset

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (250, 250, 250)}


def write_task(tmp_path, name: str, colours: tuple[str, ...]) -> None:
    generator = np.random.default_rng(len(name))
    for split, count in (("train", 8), ("val", 2), ("test", 2)):
        for colour in colours:
            folder = tmp_path / name / split / colour
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(np.array(COLOURS[colour]) + generator.normal(0, 20, (16, 16, 3)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    assert main(["task", "new", str(tmp_path / name), "-o", str(tmp_path / f"{name}.toml")]) == 0


@pytest.fixture
def folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save(CLIP(preset("tiny-vit"), seed=0).eval(), tmp_path / "model")
    write_task(tmp_path, "new", ("red", "green"))
    write_task(tmp_path, "old", ("blue", "white"))
    assert main(["task", "typographic", "old.toml", "--splits", "test", "--side", "64", "-o", "attacked"]) == 0
    capsys.readouterr()
    return tmp_path


FAST = ["--set", "recipe.epochs=1", "--set", "recipe.lr=0.001", "--set", "grid=2", "--set", "recipe.views=0"]
BASE = ["adapt", "paint", "--model", "model", "--task", "new.toml", "--shots", "4", "--device", "cpu", "--dtype", "float32"]


def test_it_keeps_tasks_writes_the_model_and_measures_attacks(folder, capsys):
    more = ["--keep", "old.toml", "--test", "old.toml", "--test", "attacked/attacked.toml", "--model-out", "patched"]
    assert main([*BASE, *FAST, *more, "-o", "out"]) == 0
    said = capsys.readouterr().out
    assert "attacked@test/two_way: " in said and "old@test: " in said
    result = json.loads((folder / "out" / "result.json").read_text())
    patch = result["details"]["fit"]["patches"][0]
    assert patch["tasks"] == ["new"] and set(patch["seen"][0]["scores"]) == {"new", "old"} and len(patch["seen"]) == 3
    assert result["config"]["method"] == "paint keeping old" and result["details"]["fit"]["keep"] == ["old"]
    start, patched = load(folder / "model", dtype="float32"), load(folder / "patched", dtype="float32")
    for name, value in start.state_dict().items():
        assert name.startswith("visual.") or (patched.state_dict()[name] == value).all()
    predictor = Predictor.load(folder / "out", start)
    for name, value in predictor.module.visual.state_dict().items():
        assert (patched.visual.state_dict()[name] == value).all()
    assert main([*BASE, *FAST, "--model-out", "patched", "-o", "again"]) == 2  # nothing is overwritten, and nothing is trained
    assert capsys.readouterr().err.count("\n") == 1 and not (folder / "again").exists()


def test_flags_without_effect_are_one_line(folder, capsys):
    coop = ["adapt", "coop", "--model", "model", "--task", "new.toml", "--shots", "4", "--keep", "old.toml", "-o", "coop"]
    assert main(coop) == 2
    assert "--keep has no effect on coop; expected a method such as paint" in capsys.readouterr().err
    assert main([*BASE, *FAST, "--keep", "new.toml", "-o", "twice"]) == 1
    assert "each once" in capsys.readouterr().err
