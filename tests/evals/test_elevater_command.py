"""`ostension eval elevater submit` with a small model and pictures, and the protocol in a run."""

from __future__ import annotations

import json
import zipfile

import pytest
from eval_making import a_model, a_task

import ostension
from ostension.cli.main import main
from ostension.evals.elevater import sets
from ostension.evals.elevater.sets import ImageSet
from ostension.evals.results import Results

TRAINING = ("learning_rate=0.01", "weight_decay=0.001", "epochs=1", "final_epochs=2")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a model and two tasks, of which the second has an image too few for its set."""
    known = [ImageSet(name="pets-hub", task="pets", test_images=6, classes=2, order=("dog", "cat")),
             ImageSet(name="few-hub", task="few", test_images=9, classes=2)]  # fmt: skip
    for module in ("checking", "sets", "knowledge"):
        monkeypatch.setattr(f"ostension.evals.elevater.{module}.image_sets", lambda: {entry.name: entry for entry in known})
    monkeypatch.setattr(sets, "OPTIONAL", "none")
    monkeypatch.chdir(tmp_path)
    ostension.save(a_model(), tmp_path / "model")
    a_task(tmp_path, "pets", train=12)
    return tmp_path


def settings(prefix: str = "") -> list[str]:
    return [part for setting in TRAINING for part in ("--set", f"{prefix}probe.{setting}")]


def submit(*words: str) -> int:
    return main(["eval", "elevater", "submit", *words, "--model", "model", "--data", ".", "-o", "out.zip"])


def test_submit_writes_an_entry_with_three_draws_and_goes_on_where_it_was(place, capsys):
    (place / "hub").mkdir()
    names = [f"{index}" for index in (5, 4, 3, 2, 1, 0)]
    (place / "hub" / "pets-hub.txt").write_text("".join(f"test.zip@{name}.png 0\n" for name in names))
    words = ["pets.toml", "--track", "few", "--set", "head.init=merged", *settings(), "--index", "hub"]
    assert submit(*words) == 1  # the other set is missing
    found = capsys.readouterr()
    assert "pets-hub" in found.out and "1 of 2 data sets are missing: few-hub" in found.out and "warning" not in found.err
    with zipfile.ZipFile("out.zip") as archive:
        (entry,) = json.loads(archive.read("all_predictions.json"))["data"]
    assert (entry["n_shot"], entry["rnd_seeds"]) == (5, [0, 1, 2])
    assert [len(seed) for seed in entry["predictions"]] == [6, 6, 6]
    width = a_model().config.vision.width
    assert entry["num_trainable_params"] == 2 * width + 2
    parts = {path: path.stat().st_mtime_ns for path in (place / "out.parts").iterdir()}
    assert len(parts) == 3
    submit(*words)
    assert {path: path.stat().st_mtime_ns for path in (place / "out.parts").iterdir()} == parts


def test_submit_lists_what_it_cannot_use(place, capsys):
    a_task(place, "few")
    assert submit("pets.toml", "few.toml") == 1
    found = capsys.readouterr()
    assert "failed: few.toml: few-hub: 6 images, expected 9" in found.err and "see --index" in found.err
    assert "valid" in found.out
    assert submit("pets.toml", "--set", "shots=[1]") == 2
    assert "--track decides it" in capsys.readouterr().err


def test_the_protocol_runs_with_a_model_and_its_store(place, capsys):
    words = ["--protocol", "elevater", "--set", "elevater.shots=[0,5]", "--set", "elevater.seeds=[0]", *settings("elevater.")]
    assert main(["eval", "run", "pets.toml", *words, "--model", "model", "--data", ".", "-o", "results"]) == 0
    (result,) = [one for one in Results(place / "results").readable()[0] if one.record.protocol == "elevater"]
    parameters = result.record.details["parameters"]
    assert parameters["trainable"] == 2 * a_model().config.embed_dim + 2
    assert parameters["backbone"] == sum(part.numel() for part in a_model().parameters())
