"""Arithmetic on folders of tuned predictors: as models, and WiSE-FT between a model and what was tuned from it."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "conformance"))
from adapt_making import NAMES, examples, tiny_clip

from ostension.adapt import coop, finetune, flyp, wise_ft
from ostension.cli.main import main
from ostension.errors import CheckpointError, ConfigError
from ostension.formats.load import load, save
from ostension.model.predictor import Predictor
from ostension.weights import arithmetic
from ostension.weights.comparison import compare

SHORT = {"epochs": 1, "batch_size": 4, "lr": 1e-3, "views": 0}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, and what was tuned from it."""
    root = tmp_path_factory.mktemp("tuned")
    save(tiny_clip(), root / "base")
    model = load(root / "base", device="cpu", dtype="float32")
    for method, seed in ((finetune, 1), (finetune, 2), (flyp, 3)):
        config = method.Config(recipe=dataclasses.replace(method.Config().recipe, **SHORT))
        predictor = method.fit(model, examples(), config, seed=seed)
        predictor.save(root / f"{predictor.kind}-{seed}")
    return root


def tensors(folder):
    return Predictor.load(folder).module.state_dict()


def test_a_point_between_a_model_and_what_was_tuned_from_it_is_wise_ft(place, tmp_path):
    model = load(place / "base", device="cpu", dtype="float32")
    for name in ("finetune-1", "flyp-3"):
        arithmetic.interpolate(place / "base", place / name, {0.0: tmp_path / f"{name}-0", 0.35: tmp_path / name})
        tuned = Predictor.load(place / name, model)
        live = wise_ft.fit(model, examples(), wise_ft.Config(alpha=0.35), start=tuned)
        found = Predictor.load(tmp_path / name, place / "base")
        for key, value in live.module.state_dict().items():
            assert torch.equal(found.module.state_dict()[key], value), key
        images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert torch.equal(found.forward(images), live.forward(images))
            zero_shot = model.classifier(NAMES, examples().templates).forward(images)
            assert torch.allclose(Predictor.load(tmp_path / f"{name}-0").forward(images), zero_shot, atol=1e-4)


def test_a_soup_of_predictors_is_their_mean_and_says_what_it_is_made_of(place, tmp_path):
    folders = [place / "finetune-1", place / "finetune-2"]
    assert arithmetic.soup(folders, tmp_path / "soup") == []
    one, two, found = (tensors(folder) for folder in (*folders, tmp_path / "soup"))
    for name, value in found.items():
        assert torch.equal(value, ((one[name].double() + two[name].double()) / 2).to(value.dtype)), name
    record = json.loads((tmp_path / "soup" / "provenance.json").read_text())["weights"]
    assert [entry["source"] for entry in record["inputs"]] == ["finetune-1", "finetune-2"]
    arithmetic.soup([folders[0]] * 3, tmp_path / "same")
    arithmetic.interpolate(*folders, {1.0: tmp_path / "end"})
    assert all(torch.equal(value, one[name]) for name, value in tensors(tmp_path / "same").items())
    end = tmp_path / "end" / "predictor.safetensors"
    assert end.read_bytes() == (folders[1] / "predictor.safetensors").read_bytes()
    assert main(["weights", "soup", "uniform", *map(str, folders), "-o", str(tmp_path / "by-command")]) == 0
    assert tensors(tmp_path / "by-command").keys() == found.keys()
    assert compare(folders)[0]["differences"] == []


def test_predictors_of_other_classes_prompts_methods_or_models_are_refused(place, tmp_path):
    for key, what in (("class_list_sha256", "class lists"), ("prompts_sha256", "templates"), ("encoder", "base")):
        other = tmp_path / key
        other.mkdir()
        tree = json.loads((place / "finetune-2" / "predictor.json").read_text())
        tree[key] = {**tree[key], "fingerprint": "0" * 64} if key == "encoder" else "0" * 64
        (other / "predictor.json").write_text(json.dumps(tree))
        (other / "predictor.safetensors").write_bytes((place / "finetune-2" / "predictor.safetensors").read_bytes())
        with pytest.raises(ConfigError, match=f"have other {what}"):
            arithmetic.soup([place / "finetune-1", other], tmp_path / "out")
    with pytest.raises(CheckpointError, match="the tensor"):
        arithmetic.soup([place / "finetune-1", place / "flyp-3"], tmp_path / "out")
    save(tiny_clip(seed=5), tmp_path / "stranger")
    with pytest.raises(CheckpointError, match="made with the encoder"):
        arithmetic.interpolate(tmp_path / "stranger", place / "finetune-1", {0.5: tmp_path / "out"})
    assert not (tmp_path / "out").exists()


def test_damage_prompts_and_task_vectors_are_refused(place, tmp_path):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    data = bytearray((place / "finetune-2" / "predictor.safetensors").read_bytes())
    data[-2] ^= 1
    (damaged / "predictor.safetensors").write_bytes(data)
    (damaged / "predictor.json").write_text((place / "finetune-2" / "predictor.json").read_text())
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        arithmetic.soup([place / "finetune-1", damaged], tmp_path / "out")
    model = load(place / "base", device="cpu", dtype="float32")
    config = coop.Config(recipe=dataclasses.replace(coop.Config().recipe, epochs=1, views=0))
    coop.fit(model, examples(), config).save(tmp_path / "prompts")
    with pytest.raises(ConfigError, match="tunes no tower"):
        arithmetic.soup([tmp_path / "prompts"] * 2, tmp_path / "out")
    with pytest.raises(ConfigError, match="is a predictor"):
        arithmetic.diff(place / "base", place / "finetune-1", tmp_path / "v.safetensors")
    assert not (tmp_path / "out").exists()
