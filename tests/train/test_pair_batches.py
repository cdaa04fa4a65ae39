"""Batches from encoded pairs: a function of the step, full whatever is broken, cut as asked."""

from __future__ import annotations

import dataclasses
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ostension.config import from_tree, to_tree
from ostension.data.layout import Layout
from ostension.data.pairs import Pair, Summary
from ostension.errors import ConfigError, DataError
from ostension.image.transforms import Transform
from ostension.losses import LossConfig
from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.train.objective import Contrastive
from ostension.train.pairs import PairBatches, PairBatchesConfig
from ostension.train.prefetch import batches_ahead

sys.path.append(str(Path(__file__).parents[1] / "data"))
from shard_making import members, write_tar


class Pictures:
    """Pairs in memory: picture i is grey level i, wider than high, with two captions; some are broken."""

    def __init__(self, count=20, broken=(), silent=()):
        self.count, self.broken, self.silent = count, broken, silent

    def __len__(self):
        return self.count

    def key(self, index):
        return f"mem/{index}"

    def read(self, index):
        stream = io.BytesIO()
        pixels = np.full((20, 40, 3), index, np.uint8)
        pixels[:, :, 2] = np.arange(40) * 6  # blue tells where the square was cut
        Image.fromarray(pixels).save(stream, "PNG")
        data = stream.getvalue()[:60] if index in self.broken else stream.getvalue()
        texts = ("  ",) if index in self.silent else (f"number {index}", f"the {index}th picture of many")
        return Pair(key=self.key(index), image=data, texts=texts, meta={})

    def fingerprint(self):
        return f"pictures {self.count}"

    def image_digests(self):
        return np.arange(self.count, dtype=np.uint64)

    def summary(self):
        return Summary(num_pairs=self.count, num_bytes=0, rejects={})


MODEL = CLIP(preset("tiny-vit"), seed=0)


def make(source=None, **settings):
    config = PairBatchesConfig(data="memory", batch_size=settings.pop("batch_size", 6), **settings)
    return PairBatches(source or Pictures(), config, MODEL.transform, MODEL.tokenizer, MODEL.config.text)


def same(one, other):
    return torch.equal(one.images, other.images) and torch.equal(one.tokens, other.tokens) and one.keys == other.keys


def test_a_batch_is_a_function_of_its_step():
    assert same(make().batch(4), make().batch(4))
    assert not same(make().batch(4), make().batch(5))
    assert not same(make(seed=1).batch(4), make().batch(4))


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_parts_of_all_processes_make_the_batch_of_one(world_size):
    batches = make(Pictures(broken=(3, 7)), groups="caption", captions="first")
    for step in range(4):
        whole = batches.batch(step)
        parts = [batches.batch(step, rank, world_size) for rank in range(world_size)]
        assert {len(part) for part in parts} == {6 // world_size}
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert torch.equal(torch.cat([part.groups for part in parts]), whole.groups)
        assert [key for part in parts for key in part.keys] == list(whole.keys)
        assert [reject for part in parts for reject in part.rejects] == list(whole.rejects)
        for part, rows in zip(parts, whole.tokens.split(6 // world_size), strict=True):
            assert torch.equal(part.tokens, rows[:, : part.tokens.shape[1]]) and not rows[:, part.tokens.shape[1] :].any()


def test_parts_that_cannot_be_equal_are_refused():
    with pytest.raises(ConfigError, match="batch_size is 6 with 4 processes"):
        make().batch(0, 0, 4)


def test_an_epoch_visits_different_samples_and_the_next_crops_them_anew():
    batches = make(batch_size=5)
    first = [key for step in range(4) for key in batches.batch(step).keys]
    assert len(set(first)) == batches.num_samples == 20
    pictures, again = (
        {key: image for batch in map(batches.batch, steps) for key, image in zip(batch.keys, batch.images, strict=True)}
        for steps in (range(4), range(4, 8))
    )
    assert pictures.keys() == again.keys()
    assert sum(not torch.equal(pictures[key], again[key]) for key in pictures) > 15


def test_captions_are_drawn_or_the_first():
    drawn = {tuple(row.tolist()) for step in range(12) for row in make().batch(step).tokens}
    first = make(captions="first")
    expected = first.tokenizer.ragged([f"number {int(key.split('/')[1])}" for key in first.batch(0).keys])
    longest = max(map(len, expected))
    assert first.batch(0).tokens.tolist() == [row + [0] * (longest - len(row)) for row in expected]
    assert len(drawn) > 20


def test_the_center_crop_is_the_models_own_preprocessing():
    batch = make(crop="center").batch(0)
    for key, image in zip(batch.keys, batch.images, strict=True):
        assert torch.equal(image, MODEL.transform(Pictures().read(int(key.split("/")[1])).image))


def test_the_random_square_reaches_both_ends_whatever_the_models_own_resize():
    squash = Transform(dataclasses.replace(MODEL.transform.config, resize="squash"))
    config = PairBatchesConfig(data="memory", batch_size=20)
    batches = PairBatches(Pictures(), config, squash, MODEL.tokenizer, MODEL.config.text)
    blue = np.array([batches.batch(step).images[:, 2].mean((1, 2)).numpy() for step in range(4)]).ravel()
    left, right = (squash(np.full((9, 9, 3), level, np.uint8))[2].mean().item() for level in (9.5 * 6, 29.5 * 6))
    assert left - 0.2 < blue.min() < left + 0.3 and right - 0.3 < blue.max() < right + 0.2
    assert len(np.unique(blue.round(3))) > 20


@pytest.mark.parametrize("fault", ["broken", "silent"])
def test_what_cannot_be_used_is_replaced_and_told(fault):
    batches = make(Pictures(**{fault: (3, 7)}))
    reasons = {}
    for step in range(6):
        batch = batches.batch(step)
        assert len(batch.keys) == len(set(batch.keys)) == 6
        assert not {"mem/3", "mem/7"} & set(batch.keys)
        reasons |= dict(batch.rejects)
    assert set(reasons) == {"mem/3", "mem/7"}
    assert same(batches.batch(2), make(Pictures(**{fault: (3, 7)})).batch(2))


def test_nothing_usable_is_an_error():
    with pytest.raises(DataError, match="20 samples in a row could not be used"):
        make(Pictures(broken=range(20))).batch(0)


def test_long_captions_are_cut_with_the_end_last_and_counted():
    class Wordy(Pictures):
        def read(self, index):
            return dataclasses.replace(super().read(index), texts=("word " * 100,))

    batch = make(Wordy()).batch(0)
    assert batch.tokens.shape == (6, MODEL.config.text.context_length)
    assert (batch.tokens[:, -1] == MODEL.tokenizer.end_id).all()
    assert batch.texts_cut == 6


def test_equal_captions_make_a_group():
    class Alike(Pictures):
        def read(self, index):
            return dataclasses.replace(super().read(index), texts=(("A  cat", "a cat", "a dog")[index % 3],))

    batch = make(Alike(), groups="caption").batch(0)
    kinds = ["dog" if int(key.split("/")[1]) % 3 == 2 else "cat" for key in batch.keys]
    equal = batch.groups[:, None] == batch.groups
    assert equal.tolist() == [[one == other for other in kinds] for one in kinds]
    assert make().batch(0).groups is None


def test_equal_images_make_a_group_in_every_process():
    class Twins(Pictures):
        def read(self, index):
            return dataclasses.replace(super().read(index % 5), texts=(f"text {index}", f"text {index}"))

    whole = make(Twins(), groups="image", captions="first").batch(0)
    kinds = [int(key.split("/")[1]) % 5 for key in whole.keys]
    assert (whole.groups[:, None] == whole.groups).tolist() == [[one == other for other in kinds] for one in kinds]
    parts = [make(Twins(), groups="both", captions="first").batch(0, rank, 3).groups for rank in range(3)]
    assert torch.equal(torch.cat(parts)[:, 1], whole.groups) and len(set(torch.cat(parts)[:, 0].tolist())) == 6
    objective = Contrastive(MODEL, LossConfig(duplicates="share"))
    with torch.no_grad():
        embedded = objective.embed(whole)
        assert objective.loss(embedded, torch.cat(parts)).loss == objective.loss(embedded, whole.groups).loss


def test_captions_are_drawn_by_their_shares():
    class Weighted(Pictures):
        def read(self, index):
            return dataclasses.replace(super().read(index), texts=("often", " ", "seldom"), weights=(3, 5, 1))

    batches = make(Weighted(), batch_size=20)
    often, seldom = (tuple(batches.tokenizer.ragged([text])[0]) for text in ("often", "seldom"))
    drawn = [tuple(row.tolist()) for step in range(20) for row in batches.batch(step).tokens]
    assert set(drawn) == {often, seldom} or {row[: len(often)] for row in drawn} <= {often, seldom[: len(often)]}
    share = sum(row[: len(often)] == often for row in drawn) / len(drawn)
    assert 0.69 < share < 0.81  # standard deviation 0.022


def test_all_captions_are_pairs_of_an_epoch():
    batches = make(Pictures(10), batch_size=5, captions="all")
    assert batches.num_samples == 20 and batches.identity()["num_pairs"] == 20
    keys = [key for step in range(4) for key in batches.batch(step).keys]
    assert set(keys) == {f"mem/{index}#{caption}" for index in range(10) for caption in (1, 2)}


def mixture(tmp_path, **settings):
    for name, start in (("a", 0), ("b", 100)):
        write_tar(tmp_path / f"{name}.tar", members(30, start))
    data = (str(tmp_path / "a.tar"), str(tmp_path / "b.tar"))
    return PairBatchesConfig(data=data, weights=(3, 1), batch_size=8, **settings).build(MODEL)


def test_sources_with_weights_give_their_shares_in_every_batch(tmp_path):
    batches = mixture(tmp_path)
    for step in range(12):
        keys = batches.batch(step).keys
        assert sum(key.startswith("b/") for key in keys) == 2
    parts = [batches.batch(7, rank, 4).keys for rank in range(4)]
    assert [key for part in parts for key in part] == list(batches.batch(7).keys)
    first = [key for step in range(5) for key in batches.batch(step).keys if key.startswith("a/")]
    assert len(set(first)) == 30


def test_a_bad_sample_of_a_mixture_is_replaced_by_one_of_its_source(tmp_path):
    bad = [("bad.png", b"no image"), ("bad.txt", b"x")]
    write_tar(tmp_path / "a.tar", members(10))
    write_tar(tmp_path / "b.tar", [*members(10, 100), *bad])
    data = (str(tmp_path / "a.tar"), str(tmp_path / "b.tar"))
    batches = PairBatchesConfig(data=data, weights=(1, 1), batch_size=10).build(MODEL)
    found = [batches.batch(step) for step in range(6)]
    assert all(sum(key.startswith("b/") for key in batch.keys) == 5 for batch in found)
    assert {key for batch in found for key, _ in batch.rejects} == {"b/bad"}


def test_the_identity_of_a_mixture_tells_weights_and_every_content(tmp_path):
    one = mixture(tmp_path)
    assert one.identity()["weights"] == [3, 1] and [part["num_pairs"] for part in one.identity()["sources"]] == [30, 30]
    assert len({part["fingerprint"] for part in one.identity()["sources"]}) == 2
    assert not {"data", "fingerprint"} & one.identity().keys()
    assert from_tree(PairBatchesConfig, to_tree(one.config)) == one.config


@pytest.mark.parametrize(
    "settings",
    [{"data": "x", "weights": (1, 2)}, {"data": ("x", "y"), "weights": (1,)}, {"data": ()}, {"data": "x", "batch_size": 0}],
)
def test_settings_that_cannot_be_meant_are_refused(settings):
    with pytest.raises(ConfigError, match="batches"):
        PairBatchesConfig(**settings).open()


def test_shares_without_drawing_are_refused():
    with pytest.raises(ConfigError, match=r"batches\.layout\.shares"):
        PairBatchesConfig(data="x", captions="all", layout=Layout(texts=("a",), shares=(1,)))


def test_one_sample_and_drawing_with_replacement_make_full_batches():
    batch = make(Pictures(1), batch_size=4, replacement=True).batch(3)
    assert list(batch.keys) == ["mem/0"] * 4 and len({image.numpy().tobytes() for image in batch.images}) > 1


def test_the_identity_holds_the_content_and_not_the_place():
    one, other = make().identity(), make(captions="first").identity()
    assert "data" not in one
    assert one["fingerprint"] == "pictures 20"
    assert {key for key in one if one[key] != other[key]} == {"captions"}


@pytest.mark.slow
def test_worker_processes_give_the_same_batches():
    batches = PairBatchesConfig(data="emoji:train", batch_size=8).build(MODEL)
    with batches_ahead(batches, 3, 9, 2) as stream:
        found = list(stream)
    assert len(found) == 6
    assert all(same(batch, batches.batch(step)) for step, batch in enumerate(found, 3))


def test_pairs_take_part_in_an_epoch_with_the_probability_beside_their_shard(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    write_tar(tmp_path / "00000.tar", members(20))
    keys = [f"{number:05}" for number in range(20)]
    keep = [1.0 if number < 4 else 0.25 for number in range(20)]
    pq.write_table(pyarrow.table({"key": keys, "balance.keep": keep}), tmp_path / "00000.parquet")
    config = PairBatchesConfig(data=str(tmp_path), batch_size=4, keep="balance.keep")
    batches = config.build(MODEL)
    assert batches.num_samples == 8  # the sum of the probabilities
    epochs = [{key for step in (2 * epoch, 2 * epoch + 1) for key in batches.batch(step).keys} for epoch in range(4)]
    assert all({f"00000/{key}" for key in keys[:4]} < epoch and len(epoch) == 8 for epoch in epochs)
    assert len(set.union(*epochs)) > 10
    other = dataclasses.replace(config, keep=None).build(MODEL).identity()
    assert batches.identity()["keep"]["column"] == "balance.keep" and "keep" not in other
    for settings in ({"replacement": True}, {"captions": "all"}, {"weights": (1.0,)}):
        with pytest.raises(ConfigError, match=r"none beside batches\.keep"):
            dataclasses.replace(config, **settings)
