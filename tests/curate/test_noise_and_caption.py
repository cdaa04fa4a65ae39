"""The stages of NLIP: noise by the mixture of losses, and synthetic captions that are mixed in and never replace."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parent))
from curating import parts_of
from test_agreement import pictures
from test_filter_stage import table, tar_of

from ostension.curate.candidates import describe
from ostension.curate.run import begin, run_stage
from ostension.curate.stages import caption, noise
from ostension.curate.write import write
from ostension.curate.write_order import WriteConfig
from ostension.data.completed import caption_weights
from ostension.data.layout import Layout, weights_of
from ostension.data.open import open_pairs
from ostension.errors import ConfigError, DataError
from ostension.formats.load import load
from ostension.losses import pair_losses
from ostension.model.clip import CLIP
from ostension.model.decoder import DecoderConfig
from ostension.model.presets import preset
from ostension.runtime import numpy_generator
from ostension.train.captioning import CaptioningConfig
from ostension.train.concepts import Concepts
from ostension.train.mixture import fit_mixture

COUNT = 14


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with a captioner, random weights, and a vocabulary: what it says means nothing, and is the same every time."""
    path = tmp_path_factory.mktemp("captioner")
    made = CaptioningConfig(decoder=DecoderConfig(layers=1, head_width=16)).build(CLIP(preset("tiny-vit"), seed=2))
    made.save(path / "model")
    Concepts(words=("dog", "hat", "tree"), counts=(3, 2, 1)).save(path / "concepts.json")
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "a.tar"
    return tar_of(path, [(f"a picture of thing number {place % 9}", data) for place, data in enumerate(pictures(COUNT))])


def noisy(tmp_path, folder, source, name="work", workers=0, **settings):
    work = begin(tmp_path / name, describe([str(source)], part_size=8))
    config = noise.Config(**{"model": str(folder / "model"), "batch": 4, **settings})
    return work, run_stage(work, "noise", config, workers=workers)


def test_losses_are_those_of_batches_of_the_part_and_noise_their_mixtures(tmp_path, folder, source):
    _, entry = noisy(tmp_path, folder, source, strength=0.5)
    found = table(entry, "loss", "noise", "dropped")
    model, pairs, expected = load(folder / "model", device="cpu", dtype="float32"), open_pairs(source), []
    for part, rows in enumerate((range(8), range(8, COUNT))):
        read = [pairs.read(row) for row in rows]
        image = model.embed_images([pair.image for pair in read]).double()
        text = model.embed_texts([pair.texts[0] for pair in read]).double()
        groups = torch.tensor([row % 9 for row in rows])
        losses = np.zeros(len(read))
        order = numpy_generator(0, "noise", part).permutation(len(read))
        for chosen in np.array_split(order, 2):
            each = pair_losses(
                image[chosen], text[chosen], model.scale().detach().double(), groups=groups[chosen], duplicates="ignore"
            )
            losses[chosen] = each.numpy()
        expected += losses.tolist()
    np.testing.assert_allclose([row["loss"] for row in found], expected, atol=2e-4)
    mixture = fit_mixture(np.array([row["loss"] for row in found]))
    assert entry.counts()["facts"]["pairs"] == COUNT
    expected = 0.5 * mixture.posterior(np.array([row["loss"] for row in found]))
    np.testing.assert_allclose([row["noise"] for row in found], expected, atol=1e-6)
    assert all(row["dropped"] is None for row in found)


@pytest.mark.slow
def test_two_workers_write_the_same_bytes(tmp_path, folder, source):
    one, two = (noisy(tmp_path, folder, source, name, workers) for name, workers in (("one", 0), ("two", 2)))
    settings = caption.Config(model=str(folder / "model"), vocabulary=str(folder / "concepts.json"), temperature=1.0)
    assert parts_of(one[1]) == parts_of(two[1])
    said = [run_stage(work, "caption", settings, workers=workers) for (work, _), workers in ((one, 0), (two, 2))]
    assert parts_of(said[0]) == parts_of(said[1])


class Knows:
    """Rows by what is drawn, and by what is said."""

    made = dataclasses.make_dataclass("Made", [("weights", str, "table")])()

    def __init__(self, shown, said):
        self.shown, self.said = shown, said
        self.model = type("Model", (), {"scale": staticmethod(lambda: torch.tensor(8.0))})()

    def pictures(self, part):
        return self._rows([self.shown[key] for key in part.keys], 1), {0: "gone"} if part.number == 1 else {}

    def captions(self, part, texts):
        return self._rows([self.said[text] for text in texts], 2)

    def _rows(self, kinds, seed):
        rows = np.eye(12, dtype=np.float32)[kinds] + numpy_generator("rows", seed).normal(0, 0.05, (len(kinds), 12))
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_planted_noise_is_found_and_can_be_dropped(tmp_path, monkeypatch):
    generator = numpy_generator("planted")
    kinds = np.arange(240) % 12
    moved = generator.random(240) < 0.3
    words = np.where(moved, (kinds + 1 + generator.integers(0, 11, 240)) % 12, kinds)
    data = next(iter(pictures(1)))
    path = tar_of(tmp_path / "a.tar", [(f"thing {word}", data) for word in words])
    shown = {open_pairs(path).key(index): kind for index, kind in enumerate(kinds)}
    said = {f"thing {word}": word for word in range(12)}
    monkeypatch.setattr("ostension.curate.embeddings.embedder_of", lambda *_: Knows(shown, said))
    work = begin(tmp_path / "work", describe([str(path)], part_size=80))
    entry = run_stage(work, "noise", noise.Config(model="table", batch=40, threshold=0.5))
    reasons = [row["dropped"] for row in table(entry, "dropped")]
    called = np.array([reason == "likely noise" for reason in reasons])
    right = moved & (kinds != words)
    assert (called & right).sum() >= 0.95 * called.sum() and (called & right).sum() >= 0.95 * right.sum()
    assert reasons.count("unreadable") == 1 and reasons[80] == "unreadable"
    assert entry.counts()["facts"]["mixture"]["why_not"] is None


def test_captions_come_behind_the_originals_and_are_favoured_where_noise_is_likely(tmp_path, folder, source):
    work, before = noisy(tmp_path, folder, source)
    settings = caption.Config(model=str(folder / "model"), vocabulary=str(folder / "concepts.json"), concepts=2)
    entry = run_stage(work, "caption", settings)
    amounts = [row["noise"] for row in table(before, "noise")]
    pairs = open_pairs(source)
    for number, row in enumerate(table(entry, "texts", "sources", "weights", "said", "concepts", "dropped")):
        assert row["texts"][0] == pairs.read(number).texts[0] and row["sources"][0] == "original"
        assert row["dropped"] is None and len(set(row["concepts"])) == 2
        if row["said"]:
            assert row["texts"][1:] == [row["said"]] and row["sources"] == ["original", "synthetic"]
            assert row["weights"] == pytest.approx(caption_weights(1, 1, amounts[number]))
    assert any(row["said"] for row in table(entry, "said"))
    written = write(work, tmp_path / "out", WriteConfig())
    assert written is not None
    back = open_pairs(str(tmp_path / "out"), layout=Layout(texts=("captions",), weights="lineage/caption.weights"))
    lines = {row["texts"][0]: row for row in table(entry, "texts", "weights")}
    for index in range(len(back)):
        pair = back.read(index)
        assert len(pair.texts) == len(pair.weights) == len(lines[pair.texts[0]]["texts"])
        assert sum(pair.weights) == pytest.approx(1.0)


def test_pairs_below_a_noise_get_no_caption_and_without_the_stage_noise_there_is_none(tmp_path, folder, source):
    work, before = noisy(tmp_path, folder, source)
    entry = run_stage(work, "caption", caption.Config(model=str(folder / "model"), above=0.5))
    amounts = [row["noise"] for row in table(before, "noise")]
    for amount, row in zip(amounts, table(entry, "said", "texts", "concepts"), strict=True):
        if amount < 0.5:
            assert row["said"] == "" and len(row["texts"]) == 1 and row["concepts"] == []
    other = begin(tmp_path / "other", describe([str(source)], part_size=8))
    with pytest.raises(ConfigError, match=r"noise\.noise"):
        run_stage(other, "caption", caption.Config(model=str(folder / "model")))


def test_settings_that_cannot_be_meant_are_refused():
    for settings in ({"model": ""}, {"threshold": 1.5}, {"batch": 1}, {"strength": 0.0}):
        with pytest.raises(ConfigError):
            noise.Config(**{"model": "m", **settings})
    for settings in ({"model": ""}, {"model": "m", "beams": 2, "temperature": 1.0}, {"model": "m", "floor": 0.7}):
        with pytest.raises(ConfigError):
            caption.Config(**settings)


def test_originals_are_never_lost_and_shares_follow_noise():
    assert caption_weights(3, 0, 0.9) == (1 / 3,) * 3
    assert caption_weights(2, 1, 0.5) == pytest.approx((0.25, 0.25, 0.5))
    assert caption_weights(1, 2, 1.0) == pytest.approx((0.1, 0.45, 0.45))
    assert caption_weights(1, 1, 0.0) == pytest.approx((0.9, 0.1))
    with pytest.raises(ConfigError, match="never lost"):
        caption_weights(0, 1, 0.5)


def test_weights_in_a_samples_json_are_checked():
    layout = Layout(texts=("captions",), weights="a/b.c")
    assert weights_of({"a": {"b.c": [1, 3]}}, layout, 2, "x") == (1.0, 3.0)
    assert weights_of({"a": {}}, layout, 2, "x") == ()
    for bad in ([1], [0, 0], [1, -1], "no", [1, True]):
        with pytest.raises(DataError, match="a weight for each of 2"):
            weights_of({"a": {"b.c": bad}}, layout, 2, "x")
    with pytest.raises(ConfigError, match="neither shares nor lines"):
        Layout(texts=("captions",), weights="w", lines=True)
    with pytest.raises(ConfigError, match="tar shards alone"):
        open_pairs("emoji", layout=Layout(weights="w"))
