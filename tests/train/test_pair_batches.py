"""Batches from encoded pairs: a function of the step, full whatever is broken, cut as asked."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image

from ostension.data.pairs import Pair, Summary
from ostension.errors import ConfigError, DataError
from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.runtime import numpy_generator
from ostension.train.pairs import PairBatches, PairBatchesConfig, random_square
from ostension.train.prefetch import batches_ahead


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


def test_the_random_square_reaches_both_ends_and_stays_inside():
    wide, high = Image.new("RGB", (40, 20)), Image.new("RGB", (20, 40))
    wide.putpixel((39, 0), (255, 0, 0))
    high.putpixel((0, 0), (255, 0, 0))
    assert random_square(wide, 0.999).getpixel((19, 0)) == (255, 0, 0)
    assert random_square(high, 0.0).getpixel((0, 0)) == (255, 0, 0)
    places = numpy_generator("squares").random(50)
    assert {random_square(wide, where).size for where in places} == {(20, 20)}


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
