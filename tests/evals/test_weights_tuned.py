"""Soups of tuned predictors chosen, learned and re-estimated on held-out pictures; ends and identities in every command."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from colour_making import colour_task

from ostension.adapt import finetune
from ostension.adapt.base import Examples
from ostension.cli.main import main
from ostension.evals.adaptation import Plan, examples_of
from ostension.evals.held_out import HeldOut, pictures_of
from ostension.evals.store_inputs import Embedder
from ostension.evals.task_splits import TaskSplits
from ostension.formats.load import load, save
from ostension.model.clip import CLIP
from ostension.model.predictor import Predictor
from ostension.model.presets import preset
from ostension.store import Store
from ostension.weights.soups import greedy_soup

NUMBERS = (1, 2, 3)
SCALED = ("logit_scale", "head.weight", "head.bias")  # what a learned soup multiplies


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return colour_task(tmp_path_factory.mktemp("colours"), {"train": 3, "val": 4, "test": 2})


@pytest.fixture(scope="module")
def tuned(task, tmp_path_factory):
    """A model with batch normalisation, and three predictors that were tuned from it with other seeds."""
    root = tmp_path_factory.mktemp("tuned")
    save(CLIP(preset("tiny-resnet"), seed=0).eval(), root / "base")
    model = load(root / "base", device="cpu", dtype="float32")
    embedder = Embedder(model, Store(root / "store"))
    found: Examples = examples_of(TaskSplits(task), embedder, Plan(method="finetune", shots=2))
    for seed, rate in zip(NUMBERS, (1e-3, 1e-2, 3e-3), strict=True):
        recipe = dataclasses.replace(finetune.Config().recipe, epochs=1, batch_size=3, lr=rate, views=0)
        finetune.fit(model, found, finetune.Config(recipe=recipe), seed=seed).save(root / f"run-{seed}")
    return root


def runs(tuned, numbers=NUMBERS):
    return [str(tuned / f"run-{number}") for number in numbers]


def test_predictors_are_judged_by_their_heads_and_a_greedy_soup_of_them_is_not_below_the_best(task, tuned, tmp_path, capsys):
    held = HeldOut(TaskSplits(task), device="cpu", dtype="float32")
    alone = []
    for folder in runs(tuned):
        right = held.judge(Path(folder))(np.arange(held.count))
        pictures = [held.data.samples.read(index).image for index in range(held.count)]
        said = Predictor.load(folder).predict(pictures).argmax(dim=1).numpy()
        assert right.tolist() == (said == held.data.targets).tolist()
        alone.append(float(right.mean()))
    asked = ["weights", "soup", "greedy", *runs(tuned), "--task", str(task), "--dtype", "float32", "--device", "cpu"]
    assert main([*asked, "-o", str(tmp_path / "soup")]) == 0
    assert "on which they were chosen" in capsys.readouterr().err
    assert float(held.judge(tmp_path / "soup")(np.arange(held.count)).mean()) >= max(alone)
    record = json.loads((tmp_path / "soup" / "provenance.json").read_text())["weights"]
    again = greedy_soup(list(reversed(runs(tuned))), tmp_path / "again", held)
    assert [entry["source"] for entry in record["inputs"]] == [Path(name).name for name in again.members]
    soup, other = (folder / "predictor.safetensors" for folder in (tmp_path / "soup", tmp_path / "again"))
    assert soup.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("by", ["tensor", "model"])
def test_a_learned_soup_of_predictors_lowers_the_loss_of_their_heads(by, task, tuned, tmp_path, capsys):
    asked = ["weights", "soup", "learned", *runs(tuned), "--task", str(task), "--device", "cpu", "--epochs", "3", "--by", by]
    assert main([*asked, "-o", str(tmp_path / "soup")]) == 0
    losses = [float(line.split()[-1]) for line in capsys.readouterr().err.splitlines() if line.startswith("epoch")]
    assert len(losses) == 3 and losses[2] < losses[0]
    held = HeldOut(TaskSplits(task), device="cpu", dtype="float32")
    found = Predictor.load(tmp_path / "soup")
    with torch.no_grad():
        assert float(held.loss(found.module, np.arange(held.count))) < losses[0]
    learned = json.loads((tmp_path / "soup" / "provenance.json").read_text())["weights"]["learned"]
    states = [Predictor.load(name).module.state_dict() for name in runs(tuned)]
    for name, value in found.module.state_dict().items():
        shares = learned["coefficients"].get(name, learned["coefficients"].get("all"))
        if shares is None or not value.is_floating_point() or name == "logit_scale":
            continue
        mean = sum(share * state[name].double() for share, state in zip(shares, states, strict=True))
        scale = learned["scale"] if name in ("head.weight", "head.bias") else 1
        torch.testing.assert_close(value.double(), scale * mean, rtol=1e-4, atol=1e-5)


def test_statistics_of_predictors_are_estimated_on_the_pictures_that_are_named(task, tuned, tmp_path):
    asked = ["weights", "soup", "uniform", *runs(tuned), "-o", str(tmp_path / "soup"), "--recalibrate", f"{task}@val"]
    assert main(asked) == 0
    record = json.loads((tmp_path / "soup" / "provenance.json").read_text())["weights"]["batch_norm"]
    assert record["split"] == "val" and record["pictures"] == 12
    found, live = Predictor.load(tmp_path / "soup"), pictures_of(f"{task}@val")
    tower = found.module.live.visual
    with torch.no_grad():
        seen = torch.cat([tower.conv1(batch) for batch in live.batches(found.module.live)])
    torch.testing.assert_close(tower.bn1.running_mean, seen.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(tower.bn1.running_var, seen.transpose(0, 1).flatten(1).var(1), atol=1e-6, rtol=1e-4)
    greedy = ["weights", "soup", "greedy", *runs(tuned), "--task", str(task), "-o", str(tmp_path / "greedy")]
    assert main([*greedy, "--dtype", "float32", "--recalibrate", f"{task}@val"]) == 0
    held = HeldOut(TaskSplits(task), device="cpu", dtype="float32")
    best = max(float(held.judge(Path(name))(np.arange(held.count)).mean()) for name in runs(tuned))
    assert float(held.judge(tmp_path / "greedy")(np.arange(held.count)).mean()) >= best


@pytest.fixture(scope="module")
def signed(tmp_path_factory):
    """Two models and two predictors with negative zeros, in other places."""
    root = tmp_path_factory.mktemp("signed")
    model = CLIP(preset("tiny-vit"), seed=0).eval()
    save(model, root / "base")
    base = load(root / "base", device="cpu", dtype="float32")
    for number in (1, 2):
        other = load(root / "base", device="cpu", dtype="float32")
        with torch.no_grad():
            other.visual.conv1.weight.view(-1)[: 5 * number] = -0.0
            other.visual.ln_post.bias.fill_(-0.0 if number == 1 else 0.0)
            other.text.ln_final.weight += 0.01 * number
        save(other, root / f"model-{number}")
    for number in (1, 2):
        made = finetune.FineTuned(base, finetune.Config(), ("blue", "green", "red"))
        with torch.no_grad():
            made.live.visual.conv1.weight.view(-1)[: 5 * number] = -0.0
            made.head.bias.fill_(-0.0 if number == 1 else 0.5)
        made.predictor(("a photo of a {}.",)).save(root / f"predictor-{number}")
    return root


def weights(folder):
    names = ("model.safetensors", "predictor.safetensors")
    return next((folder / name).read_bytes() for name in names if (folder / name).is_file())


def bits(data, without=()):
    """Every tensor's bytes; a predictor's file has another header where it was averaged."""
    return {name: value.numpy().tobytes() for name, value in safetensors.torch.load(data).items() if name not in without}


@pytest.mark.parametrize("kind", ["model", "predictor"])
def test_ends_and_identities_keep_every_bit_through_every_command(kind, signed, task, tmp_path):
    one, two = signed / f"{kind}-1", signed / f"{kind}-2"
    numbers = itertools.count()

    def out(*words):
        target = tmp_path / str(next(numbers))
        assert main(["weights", *map(str, words), "-o", str(target)]) == 0
        return weights(target)

    assert out("interpolate", one, two, "--alpha", "0") == weights(one)
    assert out("interpolate", one, two, "--alpha", "1") == weights(two)
    assert bits(out("interpolate", one, one, "--alpha", "0.3")) == bits(weights(one))
    assert bits(out("interpolate", one, one, "--alpha", "-0.5")) == bits(weights(one))
    assert out("mix", f"{one}:1", f"{two}:0") == weights(one)
    assert out("mix", f"{one}:0", f"{two}:1") == weights(two)
    assert bits(out("mix", f"{one}:0.3", f"{one}:0.7")) == bits(weights(one))
    assert out("soup", "uniform", one) == weights(one)
    assert bits(out("soup", "uniform", one, one, one)) == bits(weights(one))
    assert out("soup", "greedy", one, "--task", task, "--dtype", "float32") == weights(one)
    assert weights(one) != weights(two)
    learned = tmp_path / "learned"
    words = ["soup", "learned", one, one, "--task", task, "--epochs", "1", "--device", "cpu", "-o", learned]
    assert main(["weights", *map(str, words)]) == 0
    assert bits(weights(learned), SCALED) == bits(weights(one), SCALED)
    if kind == "predictor":
        return
    vectors = [tmp_path / name for name in ("vector.safetensors", "none.safetensors")]
    for vector, end in zip(vectors, (two, one), strict=True):
        assert main(["weights", "diff", str(one), str(end), "-o", str(vector)]) == 0
    assert out("apply", one, vectors[0], "--scale", "0") == weights(one)
    assert out("apply", one, vectors[1], "--scale", "0.7") == weights(one)
    assert out("patch", one, one, "--learn", task, "--dtype", "float32") == weights(one)
