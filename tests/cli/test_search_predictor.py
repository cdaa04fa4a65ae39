"""Searching for the classes of a saved predictor."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from ostension.cli.main import main
from ostension.data.picture_lists import PictureTree
from ostension.formats.load import load, save
from ostension.model.clip import CLIP
from ostension.model.predictor import Predictor
from ostension.model.presets import preset
from ostension.store import Store, add


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number}.png")
    save(CLIP(preset("tiny-vit"), seed=4).eval(), tmp_path / "model")
    model = load(tmp_path / "model", device="cpu", dtype="float32")
    add(Store(tmp_path / "store"), model, PictureTree(tmp_path / "pictures"))
    Predictor.zero_shot(model, ["cat", "tea cup"], ["a photo of a {}."]).save(tmp_path / "predictor")
    return tmp_path


def hits(folder, capsys, *arguments):
    command = ["search", str(folder / "store"), *arguments, "--format", "jsonl", "--dtype", "float32", "--device", "cpu"]
    assert main(command) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [hit["id"] for hit in found], [hit["score"] for hit in found]


def test_a_class_is_found_as_its_row_says(folder, capsys):
    model, predictor = ["--model", str(folder / "model")], ["--predictor", str(folder / "predictor")]
    for words, name in (("a photo of a tea cup.", "tea cup"), ("a photo of a cat. - a photo of a tea cup.", "cat - tea cup")):
        ids, scores = hits(folder, capsys, words, *model)
        again, close = hits(folder, capsys, name, *predictor)
        assert again == ids and close == pytest.approx(scores, abs=1e-5)


def test_another_name_is_refused_with_the_nearest(folder, capsys):
    assert main(["search", str(folder / "store"), "cup", "--predictor", str(folder / "predictor")]) == 1
    error = capsys.readouterr().err
    assert "cup" in error and "tea cup" in error and "Traceback" not in error


def test_a_predictor_with_another_image_side_is_refused(folder, capsys, monkeypatch):
    monkeypatch.setattr(Predictor, "own_images", True)
    assert main(["search", str(folder / "store"), "cat", "--predictor", str(folder / "predictor")]) == 1
    assert "fixed row for each class" in capsys.readouterr().err
