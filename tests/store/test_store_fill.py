"""Filling a store: the model's own numbers, the same bits whatever the workers and the stops, nothing dropped in silence."""

from __future__ import annotations

import dataclasses
import io
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from labelled_making_store import labelled_task
from PIL import Image
from store_making import Pictures, StopsAt, picture

from ostension.data.pairs import image_digest
from ostension.errors import ConfigError, DataError
from ostension.image.augment import CropConfig
from ostension.model.clip import CLIP
from ostension.model.fingerprint import fingerprint
from ostension.model.presets import preset
from ostension.store import Features, Store, embed, perceptual_hash, text_embeddings
from ostension.store.fill import image_key
from ostension.store.perceptual import distances


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return CLIP(preset("tiny-vit"), seed=3)


def files(store):
    return {path.relative_to(store.path): path.read_bytes() for path in sorted(store.path.rglob("rows-*"))}


def test_rows_are_those_of_the_model_with_everything_known_of_the_samples(tmp_path, model):
    source = Pictures(7)
    told = []
    found = embed(
        Store(tmp_path),
        model,
        source,
        split="test",
        levels=("pre", "post"),
        stored="float32",
        batch_size=4,
        progress=told.append,
    )
    post, pre = found["post", 0], found["pre", 0]
    pictures = [source.read(index).image for index in range(7)]
    expected = torch.cat([model.embed_images(pictures[:4]), model.embed_images(pictures[4:])]).numpy()
    np.testing.assert_allclose(np.asarray(post.rows), expected, atol=1e-7)
    with torch.no_grad():
        pooled = model.eval().image_features(model.transform.batch(pictures))["pooled"].numpy()
    np.testing.assert_allclose(np.asarray(pre.rows), pooled, atol=1e-6)
    assert pre.width == 48 and post.width == 32
    assert post.ids == [f"p{index}" for index in range(7)] and post.column("sample").tolist() == list(range(7))
    assert post.column("labels", [0, 1]) == ['["even"]', '["odd"]']
    assert json.loads(post.column("fields")[2]) == {"camera": "c2"} and post.column("texts")[2] == '["picture 2"]'
    assert post.column("digest").tolist() == [image_digest(image) for image in pictures]
    assert post.column("perceptual").tolist() == [perceptual_hash(image) for image in pictures]
    assert post.key.weights == fingerprint(model) and (post.key.split, post.key.data) == ("test", "pictures 7")
    assert post.complete and post.position == 7
    assert [progress.done for progress in told] == [4, 7] and told[-1].left_s == 0 and "7 of 7" in str(told[-1])


TWO_BY_TWO = {"levels": ("pre", "post"), "views": (0, 2), "batch_size": 4, "shard_batches": 1, "seed": 5}  # two pictures


@pytest.mark.slow  # a worker imports torch
@pytest.mark.parametrize("options", [TWO_BY_TWO, {"batch_size": 4, "bad": "list"}], ids=["strict", "listing"])
def test_bits_do_not_depend_on_the_workers(tmp_path, model, options):
    source = Pictures(11, broken=(5,) if "bad" in options else ())
    alone, with_workers = Store(tmp_path / "alone"), Store(tmp_path / "workers")
    embed(alone, model, source, **options)
    embed(with_workers, model, source, workers=2, **options)
    assert files(alone) == files(with_workers)


@pytest.mark.slow  # processes import torch and load the model
def test_bits_do_not_depend_on_the_processes(tmp_path, model):
    alone, several = Store(tmp_path / "alone"), Store(tmp_path / "several")
    embed(alone, model, Pictures(11), **TWO_BY_TWO)
    with pytest.raises(DataError, match="the disk is gone"):
        embed(several, model, StopsAt(11, 7), processes=2, **TWO_BY_TWO)
    told = []
    embed(several, model, Pictures(11), processes=2, progress=told.append, **TWO_BY_TWO)
    assert files(alone) == files(several) and [progress.done for progress in told][-4:] == [6, 8, 10, 11]


@pytest.mark.parametrize(("views", "most"), [(1, 4), (3, 3), (5, 5)])
def test_no_more_views_pass_the_tower_together_than_a_batch_has(tmp_path, model, monkeypatch, views, most):
    """64 views of 64 pictures of 224 pixels would be ten gigabytes."""
    seen, features = [], model.image_features
    monkeypatch.setattr(model, "image_features", lambda pixels, taps: seen.append(len(pixels)) or features(pixels, taps))
    embed(Store(tmp_path), model, Pictures(7), views=range(views), batch_size=4)
    assert max(seen) == most and sum(seen) == 7 * views


def test_bits_do_not_depend_on_where_a_run_was_stopped(tmp_path, model):
    options = TWO_BY_TWO
    whole, stopped = Store(tmp_path / "whole"), Store(tmp_path / "stopped")
    embed(whole, model, Pictures(11), **options)
    for stop in (3, 7, 9):
        with pytest.raises(DataError, match="the disk is gone"):
            embed(stopped, model, StopsAt(11, stop), **options)
    embed(stopped, model, Pictures(11), **options)
    assert len(files(whole)) == 4 * 3 * 2
    assert files(whole) == files(stopped)


def test_a_set_that_a_kill_left_behind_the_other_catches_up(tmp_path, model):
    options = {"batch_size": 2, "shard_batches": 2, "stored": "float32"}
    store = Store(tmp_path)
    with pytest.raises(DataError):
        embed(store, model, StopsAt(11, 9), levels=("pre",), **options)
    both = embed(store, model, Pictures(11), levels=("pre", "post"), **options)
    again = embed(Store(tmp_path / "other"), model, Pictures(11), levels=("pre", "post"), **options)
    for place in both:
        assert both[place].ids == again[place].ids
        assert np.array_equal(np.asarray(both[place].rows), np.asarray(again[place].rows))


def test_a_complete_set_is_not_computed_again(tmp_path, model):
    embed(Store(tmp_path), model, Pictures(3))
    before = files(Store(tmp_path))
    found = embed(Store(tmp_path), model, StopsAt(3, 0))
    assert len(found["post", 0]) == 3 and files(Store(tmp_path)) == before


def test_a_sample_that_cannot_be_used_stops_the_run_or_is_listed(tmp_path, model):
    source = Pictures(9, broken=(1, 4, 8))
    with pytest.raises(DataError, match="p1: .*not a picture|p1"):
        embed(Store(tmp_path / "strict"), model, source, batch_size=2)
    found = embed(Store(tmp_path / "index"), model, source, batch_size=2, shard_batches=2, bad="list")["post", 0]
    assert found.ids == ["p0", "p2", "p3", "p5", "p6", "p7"] and found.complete and found.position == 9
    assert [name for name, _ in found.rejects()] == ["p1", "p4", "p8"] and all(reason for _, reason in found.rejects())
    found.verify()


def test_a_view_is_the_same_whatever_other_views_there_are(tmp_path, model):
    crop = CropConfig(kind="resized", scale=(0.3, 0.8))
    several = embed(Store(tmp_path / "a"), model, Pictures(3), views=(0, 1, 2), crop=crop, stored="float32")
    one = embed(Store(tmp_path / "b"), model, Pictures(3), views=(2,), crop=crop, stored="float32")
    rows = {view: np.asarray(several["post", view].rows) for view in (0, 1, 2)}
    np.testing.assert_allclose(rows[2], np.asarray(one["post", 2].rows), atol=1e-6)
    assert not np.allclose(rows[1], rows[2], atol=1e-3) and not np.allclose(rows[0], rows[1], atol=1e-3)
    assert several["post", 2].key == one["post", 2].key and several["post", 1].key != one["post", 2].key


def test_mirrored_views_have_a_key_of_their_own_and_keep_that_of_others_as_it_was(tmp_path, model):
    crop = CropConfig(kind="resized", scale=(0.3, 0.8))
    plain = image_key(model, Pictures(1), view=1, crop=crop)
    assert plain.view["crop"] == {"kind": "resized", "scale": [0.3, 0.8], "ratio": [0.75, 4 / 3]}  # before there were any
    mirrored = dataclasses.replace(crop, mirror=True)
    assert image_key(model, Pictures(1), view=1, crop=mirrored).view["crop"]["mirror"] is True
    found = embed(Store(tmp_path), model, Pictures(2), views=(1, 2, 3, 4, 5, 6), crop=mirrored, stored="float32")
    views = [np.asarray(found["post", view].rows) for view in range(1, 7)]
    store = embed(Store(tmp_path), model, Pictures(2), views=(1, 2, 3, 4, 5, 6), crop=crop, stored="float32")
    same = [np.allclose(rows, np.asarray(store["post", view].rows), atol=1e-5) for view, rows in enumerate(views, 1)]
    assert not all(same)


def test_another_model_gets_a_set_of_its_own(tmp_path, model):
    store = Store(tmp_path)
    embed(store, model, Pictures(2))
    other = CLIP(preset("tiny-vit"), seed=4)
    with pytest.raises(DataError, match=f"{fingerprint(model)[:16]}, and this model is {fingerprint(other)[:16]}"):
        store.find(other)
    embed(store, other, Pictures(2))
    assert len(store.keys()) == 2 and store.find(other).key.weights == fingerprint(other)


def test_settings_that_cannot_be_meant_are_refused(tmp_path, model):
    for options in (
        {"levels": ()},
        {"levels": ("mid",)},
        {"views": (0, 0)},
        {"views": (-1,)},
        {"batch_size": 0},
        {"processes": 2, "workers": 1},
    ):
        with pytest.raises(ConfigError):
            embed(Store(tmp_path), model, Pictures(2), **options)


def test_a_text_is_embedded_once_and_comes_back_in_order(tmp_path, model, monkeypatch):
    store, asked = Store(tmp_path), []
    plain = type(model).embed_texts
    monkeypatch.setattr(
        type(model), "embed_texts", lambda self, texts, **rest: (asked.extend(texts), plain(self, texts, **rest))[1]
    )
    first = text_embeddings(store, model, ["a cat", "a dog", "a cat"])
    assert asked == ["a cat", "a dog"] and np.array_equal(first[0], first[2])
    second = text_embeddings(store, model, ["a bird", "a dog", "", "ça"], batch_size=2)
    assert asked[2:] == ["a bird", "", "ça"] and np.array_equal(second[1], first[1])
    np.testing.assert_allclose(second[0], plain(model, ["a bird"]).numpy()[0], atol=1e-6)
    assert np.array_equal(text_embeddings(store, model, ["a bird", "a cat"]), np.stack([second[0], first[0]]))
    assert len(asked) == 5
    assert text_embeddings(store, model, []).shape == (0, 32)
    (opened,) = [store.open(key) for key in store.keys().values()]
    assert sorted(opened.ids) == sorted({"a cat", "a dog", "a bird", "", "ça"})
    with pytest.raises(DataError, match="expected a list of strings"):
        text_embeddings(store, model, "a cat")


def test_features_of_texts_before_the_projection_are_kept_apart(tmp_path, model):
    texts = ["a cat", "a dog"]
    found = text_embeddings(Store(tmp_path), model, texts, level="pre")
    assert np.array_equal(found, text_embeddings(Store(tmp_path), model, texts, level="pre"))
    projected = model.project_text(torch.from_numpy(found), normalize=True).detach().numpy()
    np.testing.assert_allclose(projected, text_embeddings(Store(tmp_path), model, texts), atol=1e-6)
    assert text_embeddings(Store(tmp_path), model, [], level="pre").shape == (0, found.shape[1])


def test_texts_asked_for_at_once_are_stored_once(tmp_path, model):
    texts = [f"number {number}" for number in range(12)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda start: text_embeddings(Store(tmp_path), model, texts[start : start + 8]), range(5)))
    for start, rows in enumerate(found):
        np.testing.assert_allclose(rows, model.embed_texts(texts[start : start + 8]).numpy(), atol=1e-6)
    (opened,) = [Store(tmp_path).open(key) for key in Store(tmp_path).keys().values()]
    opened.verify()
    assert sorted(opened.ids) == sorted(texts)


def test_similar_pictures_have_similar_hashes():
    hashes = np.array([perceptual_hash(picture(seed, side=(200, 160))) for seed in range(40)], dtype=np.uint64)
    original = Image.open(io.BytesIO(picture(7, side=(200, 160))))
    buffer = io.BytesIO()
    original.resize((90, 72)).save(buffer, "JPEG", quality=60)
    apart = distances(hashes, perceptual_hash(buffer.getvalue()))
    assert apart[7] <= 6 and sorted(apart.tolist())[1] >= 14
    flat = [perceptual_hash(Image.new("RGB", (50, 40), colour)) for colour in ("white", "#123456")]
    assert flat == [1, 1]  # a flat picture has no frequency but the first
    assert perceptual_hash(Image.new("RGBA", (9, 9), (0, 0, 0, 0))) == 1


def test_features_of_a_task_have_its_targets_and_refuse_another_split(tmp_path, model):
    data = labelled_task(tmp_path / "pets")
    opened = embed(Store(tmp_path / "store"), model, data.samples, split="test")["post", 0]
    features = Features.of_set(opened, data)
    assert features.classes == data.classes and np.array_equal(features.targets, data.targets)
    assert features.ids == tuple(data.ids) and features.array().dtype == np.float32
    with pytest.raises(DataError, match="4 samples, which are not the 3 of the task's split"):
        Features.of_set(opened, labelled_task(tmp_path / "fewer", cats=1))
    with pytest.raises(DataError, match="holds pictures and no embeddings"):
        Features.of_task(data)


def test_ready_embeddings_of_a_task_are_features(tmp_path):
    data = labelled_task(tmp_path / "pets", embeddings=np.eye(4, dtype=np.float32))
    features = Features.of_task(data)
    assert np.array_equal(features.rows, np.eye(4)) and features.classes == data.classes
    assert features.targets.tolist() == data.targets.tolist() == [0, 0, 1, 1]
