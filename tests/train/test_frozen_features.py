"""Features of frozen towers: the run that reads them is the run that computes them, and nothing stale is ever read."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image

from ostension.errors import CheckpointError, ConfigError
from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.runlog import read_records
from ostension.runtime import numpy_generator
from ostension.train import frozen_features
from ostension.train.feature_batches import FeatureBatchesConfig
from ostension.train.freeze import FreezeConfig, TowerLock
from ostension.train.loop import train
from ostension.train.objective import Contrastive
from ostension.train.optim import OptimConfig
from ostension.train.pairs import PairBatchesConfig
from ostension.train.schedule import ScheduleConfig
from ostension.train.train_config import TrainConfig

LOCKED = TowerLock(locked=True, unlocked_groups=1)
BOTH = FreezeConfig(image=LOCKED, text=LOCKED)
WORDS = ("red", "green", "blue", "small", "large", "round")


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "pairs"
    folder.mkdir()
    random = numpy_generator("frozen features")
    for index in range(24):
        picture = Image.fromarray(random.integers(0, 256, (40, 56, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        (folder / f"{index:02d}.png").write_bytes(buffer.getvalue())
        (folder / f"{index:02d}.txt").write_text(f"a {WORDS[index % 6]} thing number {index}\n")
    return folder


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(frozen_features, "PART", 10)


def made(freeze=BOTH, seed=3):
    model = CLIP(preset("tiny-vit"), seed=seed)
    freeze.apply(model)
    return model


def features(data, tmp_path, model, **settings):
    settings = {"crop": "center", "batch_size": 6, "cache": tmp_path / "cache", **settings}
    return FeatureBatchesConfig(data=str(data), **settings).build(model)


def run(folder, model, batches):
    config = TrainConfig(
        steps=5, precision="fp32", log_every=1, optim=OptimConfig(lr=1e-2), schedule=ScheduleConfig(warmup_steps=0)
    )
    train(Contrastive(model), batches, config, folder)
    return [record["loss"] for record in read_records(folder, ["step"])], model.state_dict()


@pytest.mark.parametrize(
    "freeze",
    [BOTH, FreezeConfig(image=LOCKED), FreezeConfig(text=LOCKED), FreezeConfig(image=TowerLock(locked=True))],
    ids=["both", "image", "text", "image-without-head"],
)
def test_a_run_from_features_is_the_run_from_pictures(freeze, data, tmp_path):
    live, cached = made(freeze), made(freeze)
    pairs = PairBatchesConfig(data=str(data), batch_size=6, crop="center").build(live)
    batches = features(data, tmp_path, cached)
    assert (batches.batch(0).images.ndim, batches.batch(0).tokens.is_floating_point()) == (
        2 if freeze.image.locked else 4, freeze.text.locked
    )  # fmt: skip
    assert batches.batch(3).keys == pairs.batch(3).keys
    losses, weights = run(tmp_path / "live", live, pairs)
    from_features, same = run(tmp_path / "cached", cached, batches)
    assert from_features == pytest.approx(losses, abs=1e-5)
    for name, value in weights.items():
        # Adam divides a small gradient by its own size, and with it what rounding left of another order of captions.
        torch.testing.assert_close(same[name], value, rtol=1e-3, atol=1e-4)


def test_features_are_those_of_the_tower_in_full_precision_and_nearly_so_in_half(data, tmp_path):
    model = made()
    pairs = PairBatchesConfig(data=str(data), batch_size=6, crop="center").build(model).batch(1)
    with torch.no_grad():
        image = model.eval().image_features(pairs.images)["pooled"]
        text = model.text_features(pairs.tokens)["pooled"]
    for stored, tolerance in (("float32", 1e-5), ("float16", 2e-3), ("bfloat16", 2e-2)):
        batch = features(data, tmp_path, model, stored=stored).batch(1)
        torch.testing.assert_close(batch.images, image, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(batch.tokens, text, rtol=tolerance, atol=tolerance)


def files(tmp_path):
    return {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("part-*")}


def test_what_is_there_is_not_computed_again_and_a_missing_part_is(data, tmp_path, capsys):
    model = made()
    first = features(data, tmp_path, model)
    before = files(tmp_path)
    assert len(before) == 3 * (2 + 2 + 4)
    features(data, tmp_path, model)
    assert files(tmp_path) == before
    gone = next(path for path in before if path.parent.name.startswith("image-") and path.name == "part-00001.json")
    gone.unlink()  # as after a kill: the array may be there, its facts are written last
    capsys.readouterr()
    again = features(data, tmp_path, model)
    assert capsys.readouterr().err == "features: image 2/3\n"
    assert torch.equal(again.batch(2).images, first.batch(2).images)


def test_other_weights_data_crops_and_numbers_have_other_features(data, tmp_path):
    def keys(model=None, **settings):
        found = features(data, tmp_path, model or made(), **settings).features
        return found["image"].parts.folder, found["text"].parts.folder

    base = keys()
    moved = made()
    moved.visual.conv1.weight.data[0, 0, 0, 0] += 1e-6
    assert (keys(moved)[0] != base[0], keys(moved)[1] == base[1]) == (True, True)
    headed = made()
    headed.visual.proj.data += 1  # a projection does not change what comes before it
    assert keys(headed) == base
    assert keys(stored="float16")[0] != base[0]
    assert keys(crop="random", crops=2)[0] != keys(crop="random", crops=2, seed=1)[0] != base[0]
    (data / "00.txt").write_text("another caption\n")
    assert all(new != old for new, old in zip(keys(), base, strict=True))


def test_random_crops_are_k_of_each_picture_drawn_once(data, tmp_path):
    model = made()
    batches = features(data, tmp_path, model, crop="random", crops=3)
    seen = {}
    for step in range(40):
        batch = batches.batch(step)
        for key, row in zip(batch.keys, batch.images, strict=True):
            seen.setdefault(key, set()).add(tuple(row[:4].tolist()))
    assert len(seen) == 24
    assert {len(rows) for rows in seen.values()} <= {2, 3}
    again = features(data, tmp_path, made(), crop="random", crops=3).batch(7)
    assert torch.equal(again.images, batches.batch(7).images)


def test_a_broken_picture_is_replaced_and_told_as_in_the_run_from_pictures(data, tmp_path):
    (data / "05.png").write_bytes(b"no picture")
    model = made()
    pairs = PairBatchesConfig(data=str(data), batch_size=6, crop="center").build(model)
    batches = features(data, tmp_path, model)
    told = []
    for step in range(4):
        live, cached = pairs.batch(step), batches.batch(step)
        assert cached.keys == live.keys
        assert [key for key, _ in cached.rejects] == [key for key, _ in live.rejects]
        told += cached.rejects
    assert len(told) == 1 and told[0][0] == "05.png"


def test_settings_that_cannot_be_meant_are_refused_and_a_damaged_part_is_named(data, tmp_path):
    with pytest.raises(ConfigError, match="no tower is frozen, so there are no features to keep"):
        features(data, tmp_path, CLIP(preset("tiny-vit"), seed=0))
    with pytest.raises(ConfigError, match="batches.crops is 2; expected 1: crop = 'center' has no others"):
        features(data, tmp_path, made(), crops=2)
    with pytest.raises(ConfigError, match="which reads the pictures"):
        features(data, tmp_path, made(), groups="image")
    batches = features(data, tmp_path, made())
    path = batches.features["image"].parts.path(0, ".npy")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CheckpointError, match=r"part-00000.npy: features cannot be read .*remove the file and the .json"):
        [features(data, tmp_path, made()).batch(step) for step in range(4)]


def test_a_window_of_the_pairs_can_be_taken(data, tmp_path):
    batches = features(data, tmp_path, made(), first=4, last=16)
    keys = {key for step in range(2) for key in batches.batch(step).keys}
    assert keys == {f"{index:02d}.png" for index in range(4, 16)}
    assert dataclasses.replace(batches.config, last=None).first == 4
