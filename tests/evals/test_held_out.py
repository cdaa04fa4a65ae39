"""Choosing models on held-out pictures: answers as the classifier's, the test split refused, soups and patches by command."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from colour_making import colour_task

from ostension.cli.main import main
from ostension.errors import ConfigError, DataError
from ostension.evals.held_out import HeldOut, pictures_of
from ostension.evals.task_splits import TaskSplits
from ostension.formats.load import load, save
from ostension.model.clip import CLIP
from ostension.model.presets import preset


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return colour_task(tmp_path_factory.mktemp("colours"), {"val": 4, "test": 2})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A model and three that were trained from it, as far as averaging can tell."""
    root = tmp_path_factory.mktemp("runs")
    base = CLIP(preset("tiny-vit"), seed=0).eval()
    save(base, root / "base")
    for seed in (1, 2, 3):
        model = load(root / "base", device="cpu", dtype="float32")
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
        save(model, root / f"run-{seed}")
    return root


def test_answers_are_the_classifiers(task, runs):
    held = HeldOut(TaskSplits(task), device="cpu", dtype="float32")
    model = load(runs / "base", device="cpu", dtype="float32")
    right = held.judge(runs / "base")(np.arange(held.count))
    names = ("blue", "green", "red")
    pictures = [held.data.samples.read(index).image for index in range(held.count)]
    said = [names.index(found.label) for found in model.classifier(names)(pictures)]
    assert right.tolist() == [answer == target for answer, target in zip(said, held.data.targets, strict=True)]
    assert held.accuracy(model) == right.mean() and held.judge(runs / "base")(np.array([3])).tolist() == [right[3]]


def test_the_measured_split_decides_nothing(task):
    with pytest.raises(ConfigError, match="measured on"):
        HeldOut(TaskSplits(task), "test")
    with pytest.raises(DataError, match="train"):
        HeldOut(TaskSplits(task), "train")


def test_a_greedy_soup_by_command_is_not_below_the_best_model(task, runs, tmp_path, capsys):
    models = [str(runs / f"run-{seed}") for seed in (1, 2, 3)]
    asked = ["weights", "soup", "greedy", *models, "--task", str(task), "--dtype", "float32", "-o", str(tmp_path / "soup")]
    assert main(asked) == 0
    held = HeldOut(TaskSplits(task), device="cpu", dtype="float32")
    alone = [held.accuracy(load(model, device="cpu", dtype="float32")) for model in models]
    assert held.accuracy(load(tmp_path / "soup", device="cpu", dtype="float32")) >= max(alone)
    assert "on which they were chosen" in capsys.readouterr().err


def test_a_patch_by_command_takes_the_best_point_of_the_line(task, runs, tmp_path, capsys):
    asked = ["weights", "patch", str(runs / "base"), str(runs / "run-1"), "--learn", str(task), "--dtype", "float32"]
    assert main([*asked, "-o", str(tmp_path / "patched")]) == 0
    err = capsys.readouterr().err
    scores = [float(line.rpartition(" ")[0].rpartition(" ")[2]) for line in err.splitlines() if line.startswith("alpha")]
    held = HeldOut(TaskSplits(task), device="cpu", dtype="float32")
    found = held.accuracy(load(tmp_path / "patched", device="cpu", dtype="float32"))
    assert len(scores) == 21 and 100 * found == pytest.approx(max(scores), abs=0.006)
    assert json.loads((tmp_path / "patched" / "provenance.json").read_text())


def test_a_learned_soup_by_command_lowers_the_loss_on_what_it_learned_from(task, runs, tmp_path, capsys):
    models = [str(runs / f"run-{seed}") for seed in (1, 2)]
    asked = ["weights", "soup", "learned", *models, "--task", str(task), "--device", "cpu", "--epochs", "3"]
    assert main([*asked, "-o", str(tmp_path / "soup")]) == 0
    losses = [float(line.split()[-1]) for line in capsys.readouterr().err.splitlines() if line.startswith("epoch")]
    assert len(losses) == 3 and losses[2] < losses[0]
    held = HeldOut(TaskSplits(task), device="cpu", dtype="float32")
    soup = load(tmp_path / "soup", device="cpu", dtype="float32")
    with torch.no_grad():
        assert float(held.loss(soup, np.arange(held.count))) < losses[0]
        soup.requires_grad_(False)
        constant = float(held.loss(soup, np.arange(held.count)))  # prompts encoded once
        soup.requires_grad_(True)
        assert float(held.loss(soup, np.arange(held.count))) == pytest.approx(constant, abs=1e-5)


def test_statistics_are_estimated_on_the_pictures_that_are_named(task, tmp_path, capsys):
    base = CLIP(preset("tiny-resnet"), seed=0).eval()
    save(base, tmp_path / "a")
    other = load(tmp_path / "a", device="cpu", dtype="float32")
    with torch.no_grad():
        other.visual.conv1.weight.mul_(1.5)
    save(other, tmp_path / "b")
    asked = ["weights", "soup", "uniform", str(tmp_path / "a"), str(tmp_path / "b"), "-o", str(tmp_path / "soup")]
    assert main([*asked, "--recalibrate", f"{task}@val"]) == 0
    record = json.loads((tmp_path / "soup" / "provenance.json").read_text())["weights"]["batch_norm"]
    assert record["split"] == "val" and record["pictures"] == 12
    soup = load(tmp_path / "soup", device="cpu", dtype="float32")
    pictures = pictures_of(f"{task}@val")
    with torch.no_grad():
        seen = torch.cat([soup.visual.conv1(batch) for batch in pictures.batches(soup)])
    assert torch.allclose(soup.visual.bn1.running_mean, seen.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(soup.visual.bn1.running_var, seen.transpose(0, 1).flatten(1).var(1), rtol=1e-4)
    assert main([*asked, "--recalibrate", f"{task}@test", "--overwrite"]) == 1
    assert "measured on" in capsys.readouterr().err
    assert main([*asked, "--recalibrate-limit", "5", "--overwrite"]) == 2
