"""From a model's rows to a submission that is valid: planted tasks, three draws, the commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from elevater_suite import planted

from ostension.cli.main import main
from ostension.errors import DataError
from ostension.evals.elevater import sets
from ostension.evals.elevater.checking import check_archive
from ostension.evals.elevater.heads import HeadConfig
from ostension.evals.elevater.merging import merge
from ostension.evals.elevater.probing import ProbeConfig
from ostension.evals.elevater.runs import Run, Settings
from ostension.evals.elevater.sets import ImageSet
from ostension.evals.elevater.submitting import index_order, write_predictions
from ostension.evals.scores import score_value, softmax

SHORT = ProbeConfig(rates=(1e-2,), epochs=2, final_epochs=3, batch_size=8)


@pytest.fixture(autouse=True)
def small_leaderboard(monkeypatch):
    """Two sets; the first has its classes in another order than the task."""
    known = [
        ImageSet(name="pets-hub", task="pets", test_images=48, classes=4, order=("c2", "c0", "c3", "c1")),
        ImageSet(name="scenes-hub", task="scenes", test_images=48, classes=4, multilabel=True),
    ]
    for module in ("checking", "sets", "knowledge"):
        monkeypatch.setattr(f"ostension.evals.elevater.{module}.image_sets", lambda: {entry.name: entry for entry in known})
    monkeypatch.setattr(sets, "OPTIONAL", "none")


def suite() -> list:
    return [planted("pets"), planted("scenes", several=True, per_class=20)]


@pytest.mark.parametrize(("shots", "init"), [(0, "text"), (5, "random"), (5, "text"), (5, "merged"), (-1, "text")])
def test_a_suite_becomes_a_valid_submission(tmp_path, shots, init):
    settings = Settings(head=HeadConfig(init=init), probe=SHORT)
    files = [
        path
        for inputs in suite()
        for path in write_predictions(inputs, settings, shots=shots, model_name="planted", folder=tmp_path / "parts")
    ]
    assert len(files) == (6 if shots == 5 else 2)
    headers = merge(files, tmp_path / "all.zip")
    report = check_archive(tmp_path / "all.zip")
    assert report.valid, report.all_problems
    assert headers[0].rnd_seeds == ((0, 1, 2) if shots == 5 else (0,))
    assert headers[0].num_trainable_params == (0 if shots == 0 else 4 * (17 if init == "merged" else 9))
    backbone = 9_000 - 128 * (init == "merged")
    assert headers[0].num_params == (9_000 if shots == 0 else backbone + headers[0].num_trainable_params + 1)


def test_columns_are_in_the_leaderboards_order_and_score_as_here(tmp_path):
    inputs = suite()[0]
    (path,) = write_predictions(inputs, Settings(), shots=0, model_name="planted", folder=tmp_path)
    rows = np.array(json.loads(path.read_text())["predictions"][0])
    logits = Run(inputs, Settings()).zero_shot()
    np.testing.assert_allclose(rows, softmax(logits)[:, [2, 0, 3, 1]], atol=5e-7)
    targets = inputs.features("test").targets
    theirs = np.array([1, 3, 0, 2])[targets]  # where c0, c1, c2, c3 stand
    assert (rows.argmax(axis=1) == theirs).mean() == score_value(inputs.task, logits, targets)


def test_files_that_are_there_are_kept_and_other_settings_make_others(tmp_path):
    inputs = suite()[0]
    (first,) = write_predictions(inputs, Settings(), shots=0, model_name="planted", folder=tmp_path)
    first.write_text("kept")
    assert write_predictions(inputs, Settings(), shots=0, model_name="planted", folder=tmp_path) == [first]
    assert first.read_text() == "kept"
    assert write_predictions(inputs, Settings(), shots=0, model_name="other", folder=tmp_path) != [first]


def test_an_index_gives_the_order_of_the_images(tmp_path):
    index = tmp_path / "set.txt"
    index.write_text("test.zip@images/b.jpg 3\n\ntest.zip@images/c.jpg 1\na.png 2\n")
    assert index_order(index, ("x/a.jpg", "b", "deep\\c.png")).tolist() == [1, 2, 0]
    with pytest.raises(DataError, match="names 'c', which is no image of the task"):
        index_order(index, ("a", "b"))
    with pytest.raises(DataError, match="two images are called 'a'"):
        index_order(index, ("x/a", "y/a"))
    with pytest.raises(DataError, match="cannot be read"):
        index_order(tmp_path / "none.txt", ("a",))


def test_commands_merge_and_check(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for inputs in suite():
        write_predictions(inputs, Settings(), shots=0, model_name="planted", folder=Path("parts"))
    assert main(["eval", "elevater", "merge", "parts", "-o", "out.zip"]) == 0
    assert "out.zip: valid" in capsys.readouterr().out
    assert main(["eval", "elevater", "check", "out.zip", "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["valid"] and [entry["images"] for entry in tree["entries"]] == [48, 48]
    (one,) = sorted(Path("parts").glob("*pets*.json"))
    assert main(["eval", "elevater", "check", str(one), "--single"]) == 0
    assert main(["eval", "elevater", "merge", str(one), "-o", "out.zip"]) == 1
    assert "problem: 1 of 2 data sets are missing: scenes-hub" in capsys.readouterr().out
    one.write_text(one.read_text().replace('"n_shot": 0', '"n_shot": 3'))
    assert main(["eval", "elevater", "check", str(one), "--single"]) == 1
    assert main(["eval", "elevater", "check", "none.zip"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
