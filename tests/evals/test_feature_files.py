"""Ready features from npz files: splits from names, classes from arrays, rows of classes or prompts."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ostension.cli.main import main
from ostension.errors import ConfigError, DataError
from ostension.evals.feature_files import open_features

NAMES = np.array(["cat", "dog", "fox"])


def write_split(path, count: int, seed: int = 0, **changes):
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    rows = np.eye(3, 8)[labels] * 5 + 0.1 * generator.normal(size=(count, 8))
    np.savez(path, **{"embeddings": rows.astype(np.float32), "labels": labels, "names": NAMES, **changes})
    return path


def write_texts(path, names=NAMES, width: int = 8):
    np.savez(path, embeddings=np.eye(len(names), width).astype(np.float32) * 3, names=np.asarray(names))
    return path


def test_splits_come_from_the_names_of_files_and_classes_from_the_arrays(tmp_path):
    files = [write_split(tmp_path / "train_b32.npz", 12), write_split(tmp_path / "test.npz", 6, seed=1)]
    inputs = open_features(files, texts=write_texts(tmp_path / "rows.npz"))
    assert inputs.has("train") and inputs.has("test") and inputs.missing("val") == "no file of the split 'val'"
    assert tuple(inputs.names()) == ("cat", "dog", "fox") and inputs.task.metric == "accuracy"
    np.testing.assert_allclose(inputs.classifier(), np.eye(3, 8), atol=1e-6)
    assert (inputs.features("test").unit() @ inputs.classifier().T).argmax(axis=1).tolist() == [0, 1, 2, 0, 1, 2]
    assert open_features([write_split(tmp_path / "anything.npz", 3)]).has("test")


def test_texts_may_be_in_another_order_or_be_prompts(tmp_path):
    file = write_split(tmp_path / "test.npz", 6)
    inputs = open_features([file], texts=write_texts(tmp_path / "a.npz", NAMES[::-1]))
    assert inputs.classifier().argmax(axis=1).tolist() == [2, 1, 0]
    prompts = [f"{word} {name}" for word in ("a", "the") for name in NAMES]
    inputs = open_features([file], texts=write_texts(tmp_path / "b.npz", prompts))
    assert inputs.classifier(templates=["a {}"]).argmax(axis=1).tolist() == [0, 1, 2]
    with pytest.raises(ConfigError, match="prompt"):
        inputs.classifier()


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    train = write_split(tmp_path / "train.npz", 6)
    for name, changes, error, message in (
        ("features.npz", {}, ConfigError, "the split is not clear"),
        ("train_2.npz", {}, ConfigError, "both of the split 'train'"),
        ("test.npz", {"names": np.array(["cat", "dog", "cow"])}, DataError, "has the classes"),
        ("val.npz", {"labels": np.full(6, 7)}, DataError, "targets from 7 to 7"),
    ):
        with pytest.raises(error, match=message):
            open_features([train, write_split(tmp_path / name, 6, **changes)])
    with pytest.raises(DataError, match="no name for each row"):
        np.savez(tmp_path / "rows.npz", embeddings=np.eye(3))
        open_features([train], texts=tmp_path / "rows.npz")
    np.savez(tmp_path / "bare.npz", embeddings=np.eye(3))
    with pytest.raises(DataError, match="has no labels"):
        open_features([tmp_path / "bare.npz"])


def test_the_command_measures_them_and_resumes(tmp_path, capsys):
    files = [str(write_split(tmp_path / "train.npz", 12)), str(write_split(tmp_path / "test.npz", 6, seed=1))]
    words = ["eval", "run", "--features", *files, "--texts", str(write_texts(tmp_path / "rows.npz")),
             "--protocol", "zeroshot", "-o", str(tmp_path / "results"), "--json"]  # fmt: skip
    assert main(words) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["model"], row["task"], row["status"]) == ("features", "features", "done")
    assert row["metrics"]["accuracy"]["value"] == 1.0
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "recorded"
    write_split(tmp_path / "test.npz", 6, seed=2)
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["status"] == "done" and "test/post was" in err
    words.remove("--texts"), words.remove(str(tmp_path / "rows.npz"))
    assert main(words) == 1
    assert "rows of" in capsys.readouterr().err
