"""Inputs from a model and a store: embedded once, the task's own preprocessing, samples, folds, other tasks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from eval_making import a_model, a_task

from ostension.data.task import read_task
from ostension.errors import ConfigError, DataError
from ostension.evals.store_inputs import Embedder, StoreInputs
from ostension.evals.task_splits import TaskSplits, measured_splits, sample_of
from ostension.store import Store


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return a_model()


def test_rows_are_the_models_and_one_pass_gives_both_levels(tmp_path, model):
    told = []
    inputs = StoreInputs.open(model, a_task(tmp_path), store=tmp_path / "store", progress=lambda what, now: told.append(what))
    post, pre = inputs.features("test"), inputs.features("test", "pre")
    assert told == ["pets/test"] and post.rows.shape == (6, 32) and pre.rows.shape == (6, 48)
    paths = [tmp_path / "pets" / name for name in post.ids]
    expected = model.embed_images(paths).numpy()
    np.testing.assert_allclose(post.array(), expected, atol=2e-3)  # float16 on the disk
    assert post.targets.tolist() == [0 if "cat" in name else 1 for name in post.ids] and post.classes == ("cat", "dog")
    matrix, offset = inputs.projection()
    joint = pre.array() @ matrix + offset
    np.testing.assert_allclose(joint / np.linalg.norm(joint, axis=1, keepdims=True), expected, atol=5e-3)
    assert 0 < inputs.parameters()["visual"] < inputs.parameters()["backbone"]
    again = StoreInputs.open(
        model, tmp_path / "pets.toml", store=tmp_path / "store", progress=lambda what, now: told.append(what)
    )
    assert len(again.features("test", "pre")) == 6 and told == ["pets/test"]


def test_the_classifier_is_that_of_the_model(tmp_path, model):
    inputs = StoreInputs.open(model, a_task(tmp_path), store=tmp_path / "store")
    expected = model.classifier(["cat", "dog"], templates=["a {}."]).weights.numpy()
    np.testing.assert_allclose(inputs.classifier(), expected, atol=1e-6)
    assert inputs.classifier() is inputs.classifier()
    assert inputs.scale == pytest.approx(float(model.scale().detach()))


def test_a_tasks_preprocessing_is_applied_and_has_sets_of_its_own(tmp_path, model):
    plain = StoreInputs.open(model, a_task(tmp_path / "a"), store=tmp_path / "store")
    squashed = StoreInputs.open(
        model, a_task(tmp_path / "b", more='preprocess = { resize = "squash" }'), store=tmp_path / "store"
    )
    first, second = plain.features("test"), squashed.features("test")
    assert first.ids == second.ids and not np.allclose(first.array(), second.array(), atol=1e-3)
    assert plain.hashes()["preprocess"] != squashed.hashes()["preprocess"]
    assert model.transform.config.resize == "shortest"


def test_splits_that_are_not_there_are_said_with_the_reason(tmp_path, model):
    inputs = StoreInputs.open(model, a_task(tmp_path, train=0), store=tmp_path / "store")
    assert not inputs.has("train") and not inputs.has("val") and inputs.used == {"pets/train": "", "pets/val": ""}
    with pytest.raises(DataError, match="has no split 'train'"):
        inputs.features("train")
    (tmp_path / "bare").mkdir()
    missing = TaskSplits("cifar10", tmp_path / "bare")
    with pytest.raises((ConfigError, DataError), match="cifar10|sample|folder"):
        missing.missing("test")


def test_hashes_name_the_data_that_was_looked_at_and_no_other(tmp_path, model):
    inputs = StoreInputs.open(model, a_task(tmp_path), store=tmp_path / "store")
    inputs.features("test")
    assert set(inputs.hashes()) == {"weights", "preprocess", "tokenizer", "class_list", "data/pets/test"}
    fresh = inputs.fresh()
    assert set(fresh.hashes()) == {"weights", "preprocess", "tokenizer", "class_list"}
    fresh.features("train")
    assert "data/pets/train" in fresh.hashes() and "data/pets/train" not in inputs.hashes()


def test_prompts_that_are_too_long_are_refused_or_cut_and_said(tmp_path, model):
    inputs = StoreInputs.open(model, a_task(tmp_path), store=tmp_path / "store")
    long = "a cat " * 40
    with pytest.raises(Exception, match="more than 24 tokens"):
        inputs.texts(["a cat", long])
    rows = inputs.texts(["a cat", long, "a cat"], truncate=True)
    assert rows.shape == (3, 32) and np.array_equal(rows[0], rows[2])
    np.testing.assert_allclose(rows[:2], model.embed_texts(["a cat", long], truncate=True).numpy(), atol=1e-6)
    assert inputs.notes == ["1 of 2 texts are too long for the text tower and were cut"]
    assert inputs.texts([]).shape == (0, 32)


def test_ready_embeddings_are_taken_as_they_are(tmp_path, model):
    rows = np.random.default_rng(0).normal(size=(6, 32)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", test_embeddings=rows, test_labels=np.array(["cat", "dog"] * 3))
    record = a_task(tmp_path)
    text = record.read_text().replace(
        'kind = "folder"\npath = "pets"\nlevels = ["split", "label"]', 'kind = "npz"\npath = "rows.npz"'
    )
    record.write_text(text)
    inputs = StoreInputs.open(model, record, store=tmp_path / "store")
    np.testing.assert_allclose(inputs.features("test", "pre").array(), rows)
    np.testing.assert_allclose(inputs.features("test").array(), rows / np.linalg.norm(rows, axis=1, keepdims=True), rtol=1e-6)
    assert not (tmp_path / "store").exists()


def test_a_limited_split_is_embedded_alone_with_every_classs_share(tmp_path, model):
    inputs = StoreInputs.open(model, a_task(tmp_path, test=8), store=tmp_path / "store", limit=4)
    found = inputs.features("test")
    assert len(found) == 4 and np.bincount(found.targets).tolist() == [2, 2]
    assert len(inputs.embedder.store.open(inputs.embedder.store.find(model).key)) == 4


def test_a_sample_has_shares_to_one_and_is_a_function_of_the_seed():
    targets = np.repeat([0, 1, 2], [60, 30, 10])
    chosen = sample_of(targets, 100, 20, seed=3)
    assert len(np.unique(chosen)) == 20 and np.array_equal(chosen, np.sort(chosen))
    assert np.abs(np.bincount(targets[chosen]) - [12, 6, 2]).max() <= 1
    assert np.array_equal(chosen, sample_of(targets, 100, 20, seed=3))
    assert not np.array_equal(chosen, sample_of(targets, 100, 20, seed=4))
    assert len(np.unique(sample_of(None, 7, 5, seed=0))) == 5


def test_a_task_without_a_test_split_is_measured_on_each_of_its_others():
    assert measured_splits(read_task("cifar10")) == ("test",)
    assert measured_splits(read_task("pacs")) == ("photo", "art_painting", "cartoon", "sketch")
    assert "train" not in measured_splits(read_task("emoji"))


def write_csv_task(folder, split: str, folds: dict[str, list[str]]):
    """A task of a table whose samples say their folds."""
    record = a_task(folder, more=f'folds = {{ count = 2, split = "{split}" }}')
    lines = ["path,label,split,fold"]
    for name, of_samples in folds.items():
        files = sorted((folder / "pets" / name).rglob("*.png"), key=lambda path: int(path.stem))
        lines += [f"{path.relative_to(folder / 'pets')},{path.parent.name},{name},{fold}"
                  for path, fold in zip(files, of_samples, strict=True)]  # fmt: skip
    (folder / "pets" / "labels.csv").write_text("\n".join(lines) + "\n")
    text = record.read_text().replace(
        'kind = "folder"\npath = "pets"\nlevels = ["split", "label"]', 'kind = "csv"\npath = "pets/labels.csv"'
    )
    record.write_text(text)
    return record


def test_folds_of_training_take_their_samples(tmp_path, model):
    record = write_csv_task(tmp_path, "train", {"train": ["1", "1|2", "2", "2"], "test": [""] * 6})
    inputs = StoreInputs.open(model, record, store=tmp_path / "store")
    assert inputs.folds() == ("1", "2")
    whole, first, second = (inputs.fresh(fold).features("train") for fold in (None, "1", "2"))
    assert (len(whole), len(first), len(second)) == (4, 2, 3)
    assert first.ids == whole.ids[:2] and second.ids == whole.ids[1:]
    assert len(inputs.fresh("1").features("test")) == 6


def test_folds_of_both_parts_divide_all_samples(tmp_path, model):
    record = write_csv_task(tmp_path, "both", {"train": ["", "2", "2", ""], "test": ["1"] * 6})
    inputs = StoreInputs.open(model, record, store=tmp_path / "store")
    for fold, tested in (("1", 6), ("2", 2)):
        own = inputs.fresh(fold)
        train, test = own.features("train"), own.features("test")
        assert (len(train), len(test)) == (10 - tested, tested) and not set(train.ids) & set(test.ids)
        assert len(train.targets) == len(train) == train.array().shape[0]


def test_another_task_of_the_same_model_is_looked_at_in_the_same_name(tmp_path, model):
    tasks = {name: TaskSplits(a_task(tmp_path, name)) for name in ("pets", "beasts")}
    embedder = Embedder(model, Store(tmp_path / "store"))
    inputs = StoreInputs(embedder, tasks["pets"], others=lambda task: tasks[task.name])
    other = inputs.other(tasks["beasts"].task)
    assert other is not None and len(other.features("test")) == 6
    assert set(inputs.used) == {"beasts/test"} and inputs.used["beasts/test"]
    assert StoreInputs(embedder, tasks["pets"]).other(tasks["beasts"].task) is None


def test_a_picture_that_cannot_be_used_stops_each_split_once(tmp_path, model):
    record = a_task(tmp_path)
    (tmp_path / "pets" / "test" / "cat" / "0.png").write_bytes(b"no picture")
    inputs = StoreInputs.open(model, record, store=tmp_path / "store")
    for own in (inputs, inputs.fresh()):
        with pytest.raises(DataError, match="0.png"):
            own.features("test")
    assert len(inputs.features("train")) == 4
