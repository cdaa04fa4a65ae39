"""What settings and epochs are chosen by: never the test split, unless a published protocol is asked for, and then said."""

from __future__ import annotations

import dataclasses
import json

import pytest

from ostension.adapt import contrastive_adapter, tip_adapter, tip_adapter_f
from ostension.adapt.base import METHODS
from ostension.cli.main import main
from ostension.evals.adaptation import Plan, examples_of, run_plan
from ostension.evals.store_inputs import Embedder
from ostension.evals.task_splits import TaskSplits
from ostension.formats.load import save
from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.store import Store

SELECTING = [name for name in METHODS.names() if METHODS.load(name).SPEC.selects]
STILL = {"views": 0, "alpha_steps": 2, "beta_steps": 2}


@pytest.fixture(scope="module")
def model():
    return CLIP(preset("tiny-vit"), seed=0).eval()


@pytest.fixture(scope="module")
def embedder(model, tmp_path_factory):
    return Embedder(model, Store(tmp_path_factory.mktemp("store")), name="tiny")


class Watched(TaskSplits):
    """Some emoji on backgrounds; notes which splits are asked for."""

    def __init__(self):
        super().__init__("emoji_backgrounds", limit=24)
        self.asked: list[str] = []

    def split(self, split):
        self.asked.append(split)
        return super().split(split)


@pytest.mark.parametrize("name", SELECTING)
def test_nobody_who_learns_or_chooses_is_given_the_test_split(name, embedder):
    splits = Watched()
    found = examples_of(splits, embedder, Plan(method=name, config=METHODS.load(name).Config(), shots=4))
    assert "test" not in splits.asked and found.facts["selection"] == "val"
    assert not {found.train.source.key(place) for place in range(len(found.train))} & set(TaskSplits.split(splits, "test").ids)
    assert all(found.val.source.key(place).startswith("val/") for place in range(len(found.val)))


@pytest.mark.parametrize("method", [tip_adapter, tip_adapter_f])
def test_the_published_protocol_is_a_switch_that_the_record_names(method, embedder):
    config = method.Config(selection="test", **({} if method is tip_adapter_f else {"views": 0}), alpha_steps=2, beta_steps=2)
    if method is tip_adapter_f:
        config = dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, epochs=1, views=0))
    splits = Watched()
    record, predictor = run_plan(Plan(method=method.TipAdapter.kind if method is tip_adapter else "tip-adapter-f",
                                      config=config, shots=2), splits, embedder)  # fmt: skip
    assert splits.asked.index("test") < len(splits.asked) - 1  # asked for before it is measured
    assert record.config["selection"] == record.config["settings"]["selection"] == record.details["fit"]["selection"] == "test"
    assert record.details["fit"]["pictures"] == 24 == record.counts["test_samples"]
    default, _ = run_plan(Plan(method=predictor.kind, config=dataclasses.replace(config, selection="val"), shots=2),
                          Watched(), embedder)  # fmt: skip
    assert default.config["selection"] == default.details["fit"]["selection"] == "val"


def test_groups_go_from_the_task_into_training_and_record(embedder):
    config = contrastive_adapter.Config()
    config = dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, epochs=2, batch_size=8))
    record, predictor = run_plan(Plan(method="contrastive-adapter", config=config, shots=0), Watched(), embedder)
    cells = record.details["groups"]
    assert set(cells) == {"animal/forest", "animal/water", "vehicle/forest", "vehicle/water"}
    assert min(value for value, _ in cells.values()) == record.headline.value
    weights = {"animal/forest": 923, "animal/water": 49, "vehicle/forest": 28, "vehicle/water": 527}
    average = sum(weights[name] * value for name, (value, _) in cells.items()) / sum(weights.values())
    assert record.metrics["average"].value == pytest.approx(average)
    assert record.metrics["gap"].value == pytest.approx(average - record.headline.value)
    assert sum(predictor.facts["anchors"].values()) <= 24 and record.details["fit"]["initial"] == "zero-shot"


def test_the_command_takes_the_switch(model, tmp_path, capsys):
    save(model, tmp_path / "model")
    settings = [part for name, value in {**STILL, "selection": "test"}.items() for part in ("--set", f"{name}={value}")]
    args = ["adapt", "tip-adapter", "--model", str(tmp_path / "model"), "--task", "local_made.toml", "--shots", "1"]
    made = tmp_path / "local_made.toml"
    assert main(["task", "new", str(colours(tmp_path / "data")), "-o", str(made)]) == 0
    args[args.index("local_made.toml")] = str(made)
    assert main([*args, "--store", str(tmp_path / "store"), "-o", str(tmp_path / "out"), *settings]) == 0
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert record["config"]["selection"] == "test" and record["details"]["fit"]["alpha"] in (0.1, 1.55)
    capsys.readouterr()


def colours(root):
    """A folder of two classes, with a split for training and one for test."""
    from PIL import Image

    for split, each in (("train", 3), ("test", 2)):
        for label, colour in (("red", (220, 20, 20)), ("blue", (20, 20, 220))):
            (root / split / label).mkdir(parents=True)
            for index in range(each):
                made = Image.new("RGB", (32, 32), tuple(part + index * 5 for part in colour))
                made.save(root / split / label / f"{index}.png")
    return root
