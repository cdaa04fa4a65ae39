"""Small parts: the cache of texts, the canary's tolerance, the flags."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from service_making import png, tiny_model

from ostension.cli.serve import Serve, named_folders
from ostension.errors import CheckpointError, ConfigError, UsageError
from ostension.formats.load import load, save
from ostension.model.fingerprint import fingerprint
from ostension.serve.cache import TextCache
from ostension.serve.compute import load_computation
from ostension.serve.model_card import without_paths
from ostension.serve.model_files import read_model_files
from ostension.serve.pace import Pace
from ostension.serve.settings import Limits, ServeSettings


def test_the_cache_keeps_within_its_bytes_what_was_used_last():
    row = np.ones(64, np.float32)
    one = 3 * 4 + 256 + 200
    cache = TextCache(3 * one)
    for number in range(3):
        cache.put([number, 0, 0], row * number)
    assert cache.get([0, 0, 0])[0] == 0 and cache.bytes == 3 * one
    cache.put([3, 0, 0], row * 3)
    assert cache.get([1, 0, 0]) is None and len(cache) == 3 and cache.bytes == 3 * one
    cache.put([0, 0, 0], row * 9)
    assert cache.get([0, 0, 0])[0] == 0 and len(cache) == 3
    row *= 7
    assert cache.get([3, 0, 0])[0] == 3


def test_what_a_batch_takes_is_learned_as_a_fixed_part_and_a_slope():
    pace = Pace()
    assert pace.seconds(100) == 0 and pace.ratio == 0
    pace.add(1, 0.03)
    assert pace.seconds(1) == pytest.approx(0.03) and pace.seconds(100) == pytest.approx(0.03) and pace.ratio == 0.03
    for _ in range(30):
        for cost in (1, 8, 64, 200):
            pace.add(cost, 0.03 + 0.001 * cost)
    assert pace.slope == pytest.approx(0.001, rel=0.1) and pace.fixed == pytest.approx(0.03, rel=0.3)
    for _ in range(200):
        pace.add(50, 1.0)  # the machine became slow
    assert pace.seconds(50) == pytest.approx(1.0, rel=0.05)


def test_noise_of_batches_that_are_nearly_alike_is_no_slope():
    pace, rng = Pace(), np.random.default_rng(0)
    for _ in range(100):
        pace.add(6 + rng.integers(0, 2), 0.03 + 0.02 * rng.random())
        assert pace.slope * 6 < 0.3 * 0.05 and pace.fixed > 0


def test_a_cache_of_nothing_keeps_nothing():
    cache = TextCache(0)
    cache.put([1], np.ones(4, np.float32))
    assert cache.get([1]) is None and cache.bytes == 0


def test_predictors_are_named_on_the_command_line():
    assert named_folders(("a=x", "b=y=z")) == {"a": "x", "b": "y=z"}
    for wrong in (("a",), ("=x",), ("a=",), ("a=x", "a=y")):
        with pytest.raises(UsageError):
            named_folders(wrong)


def test_flags_become_settings(tmp_path, monkeypatch):
    monkeypatch.delenv("OSTENSION_KEYS", raising=False)
    (tmp_path / "keys").write_text("a-key-of-some-length-0001\n")
    settings = Serve(
        model="m", store="s", previews=True, host="0.0.0.0", keys_file=tmp_path / "keys", max_body_mb=200, queue=7,
        deadline=2.5, predictor=("a=x",), allow_url_host=("example.org",), max_pixels=1000,
    ).settings()  # fmt: skip
    assert settings.keys == ("a-key-of-some-length-0001",) and settings.queue_images == 7 and settings.deadline_s == 2.5
    assert settings.limits.max_body_bytes == 200_000_000 and settings.limits.max_waiting_bytes >= 800_000_000
    assert settings.limits.max_pixels == 1000 and settings.predictors == {"a": "x"}
    with pytest.raises(UsageError, match="store"):
        Serve(model="m", previews=True).settings()
    with pytest.raises(UsageError, match="key"):
        Serve(model="m", host="0.0.0.0").settings()


@pytest.mark.parametrize("wrong", [{"port": 70_000}, {"max_batch": 0}, {"deadline_s": 0}, {"max_wait_ms": -1}, {"threads": 0}])
def test_settings_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(ConfigError):
        ServeSettings(model="m", **wrong)
    with pytest.raises(ConfigError):
        Limits(max_pixels=0)


def test_paths_of_the_server_are_not_told():
    tree = {"source": "/home/me/model", "before": [{"at": "~/x/y"}, "hf-hub:a/b"], "n": 3}
    assert without_paths(tree) == {"source": "model", "before": [{"at": "y"}, "hf-hub:a/b"], "n": 3}


def test_what_the_process_loads_is_what_was_saved(tmp_path):
    model = tiny_model()
    save(model, tmp_path / "model")
    predictor = model.classifier(["cat", "dog", "boat"])
    predictor.encoder = load(tmp_path / "model", device="cpu", dtype="float32")
    predictor.save(tmp_path / "pets")
    threads = torch.get_num_threads()
    try:
        made = load_computation(
            str(tmp_path / "model"), device="cpu", dtype="float32", engine="torch", threads=1,
            predictors={"pets": str(tmp_path / "pets")},
        )  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    made.warm()
    pixels = np.stack([model.transform.pixels(png(seed)).numpy() for seed in range(2)])
    expected = predictor.logits(model.embed_images([png(0), png(1)]))
    np.testing.assert_allclose(made.run("predictor:pets", pixels), expected.numpy(), atol=1e-4)
    facts = made.facts()
    assert facts.predictors["pets"]["class_names"] == ["cat", "dog", "boat"] and facts.sha256 == fingerprint(model)
    files = read_model_files(tmp_path / "model")
    assert files.name == "tiny-vit" and files.tokenizer.ragged(["a cat"]) == model.tokenizer.ragged(["a cat"])
    with pytest.raises(CheckpointError):
        read_model_files(tmp_path / "nothing")
