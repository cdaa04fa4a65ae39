"""Predictors of rows before the projection are measured from the store, and rivals stand in the record of a fit."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.append(str(Path(__file__).parents[1] / "conformance"))
from adapt_making import tiny_clip

from ostension.adapt import prior, probe
from ostension.cli.main import main
from ostension.errors import ConfigError
from ostension.evals.adaptation import Plan, logits_of, run_plan
from ostension.evals.store_inputs import Embedder
from ostension.evals.task_splits import TaskSplits
from ostension.formats.load import save
from ostension.store import Store

COLOURS = {"red": (220, 20, 20), "green": (20, 160, 20), "blue": (20, 20, 220)}


def drawn(folder, each, light=1.0):
    """Pictures of three colours, a folder each."""
    for label, colour in COLOURS.items():
        (folder / label).mkdir(parents=True)
        for index in range(each):
            noise = np.random.default_rng([index, *colour, each]).integers(-20, 20, (32, 32, 3))
            pixels = np.clip(light * np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{index}.png")


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Three colours in train and test; beside it "dark.toml", the same in the dark."""
    root = tmp_path_factory.mktemp("colours")
    drawn(root / "data" / "train", 6)
    drawn(root / "data" / "test", 3)
    drawn(root / "night", 3, light=0.4)
    for name, folder in (("colours", "data"), ("dark", "night")):
        assert main(["task", "new", str(root / folder), "-o", str(root / f"{name}.toml")]) == 0
    return root / "colours.toml"


@pytest.fixture
def embedder(tmp_path):
    return Embedder(tiny_clip(), Store(tmp_path / "store"), name="tiny")


@pytest.mark.parametrize("level", ["pre", "post"])
def test_a_probe_is_measured_from_kept_rows_of_its_level(task, embedder, level, monkeypatch):
    splits = TaskSplits(task)
    record, predictor = run_plan(Plan(method="probe", config=probe.Config(level=level), shots=2), splits, embedder)
    assert record.metrics["accuracy"].value > 0.5 and record.details["fit"]["strength"] > 0
    test = splits.split("test")
    pixels = torch.stack([embedder.model.transform(test.samples.read(index).image) for index in range(len(test))])
    with torch.no_grad():
        expected = predictor.forward(pixels).softmax(-1).numpy()

    def never(*given, **more):
        raise AssertionError("a picture went through the tower again")

    monkeypatch.setattr(type(embedder.model), "encode_image", never)
    monkeypatch.setattr(type(embedder.model), "image_features", never)
    found = torch.from_numpy(logits_of(predictor, test, embedder)).softmax(-1).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-2)  # the store has float16


def test_a_prior_s_record_has_its_rivals_on_every_split_and_what_was_chosen(task, embedder):
    splits = TaskSplits(task)
    plan = Plan(method="prior", config=prior.Config(), shots=2)
    record, predictor = run_plan(plan, splits, embedder, targets=[TaskSplits(task.parent / "dark.toml")])
    places = ("accuracy", "dark@test")
    rivals = ("zero-shot", "unpulled", "probe", "wise", "mix")
    assert set(record.metrics) == {*places, *(f"{name}/{place}" for name in rivals for place in places)}
    assert next(iter(record.metrics)) == "accuracy"
    zero_shot, _ = run_plan(Plan(method="zero-shot"), splits, embedder)
    assert record.metrics["zero-shot/accuracy"] == zero_shot.metrics["accuracy"]
    fit = record.details["fit"]
    assert fit["strength"] == predictor.facts["strength"]
    assert [len(fit[name]) for name in ("curve", "mix_curve", "wise_curve")] == [25, 21, 21]


def test_heads_of_labels_have_no_new_classes(task, embedder):
    plan = Plan(method="probe", config=probe.Config(strength=1.0), shots=2, base_to_new=True)
    with pytest.raises(ConfigError, match="belongs to its 2 classes, and 'red' is none of them"):
        run_plan(plan, TaskSplits(task), embedder)


def test_the_command_learns_a_probe_that_classify_uses(task, tmp_path, capsys):
    save(tiny_clip(), tmp_path / "model")
    words = ["--model", str(tmp_path / "model"), "--store", str(tmp_path / "store"), "-o", str(tmp_path / "probe")]
    assert main(["adapt", "probe", "--task", str(task), "--shots", "4", *words]) == 0
    assert "accuracy: " in capsys.readouterr().out
    picture = next((task.parent / "data" / "test" / "red").iterdir())
    assert main(["classify", str(picture), "--predictor", str(tmp_path / "probe")]) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("red")
