"""`ostension adapt ...`: what cannot be meant, or cannot be done, is one clear line; a stopped fit goes on."""

from __future__ import annotations

import errno
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from ostension import files
from ostension.adapt import _fit
from ostension.cli.main import main
from ostension.formats.load import save
from ostension.model.clip import CLIP
from ostension.model.predictor import Predictor
from ostension.model.presets import preset

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}
FAST = ["--set", "recipe.epochs=1", "--set", "recipe.views=0"]
TPT = ["--set", "views=4", "--set", "keep=0.5"]
COMMON = ["--model", "model", "--store", "store", "--device", "cpu", "--dtype", "float32"]


def write_pictures(folder, counts):
    generator = np.random.default_rng(0)
    for split, count in counts.items():
        for name, colour in COLOURS.items():
            place = folder / split / name
            place.mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(np.array(colour) + generator.normal(0, 20, (16, 16, 3)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{index}.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two models, tasks with and without each split, a predictor."""
    root = tmp_path_factory.mktemp("adapt")
    for number in (0, 1):
        save(CLIP(preset("tiny-vit"), seed=number).eval(), root / ("model", "other")[number])
    splits = {"train": 4, "val": 2, "test": 3}
    for name, missing in (("pics", ""), ("notrain", "train"), ("noval", "val"), ("notest", "test")):
        write_pictures(root / name, {split: count for split, count in splits.items() if split != missing})
    write_pictures(root / "broken", splits)
    (root / "broken/train/red/0.png").write_bytes(b"no picture")
    write_pictures(root / "gap", splits)
    shutil.rmtree(root / "gap/train/green")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for name in ("pics", "notrain", "noval", "notest", "broken", "gap"):
            assert main(["task", "new", name, "-o", f"{name}.toml"]) == 0
        assert main(["adapt", "coop", *COMMON, "--task", "pics.toml", *FAST, "--shots", "2", "-o", "coop"]) == 0
    record = (root / "pics.toml").read_text()
    for name, written in (("alike", 'green = "red"'), ("empty", 'green = ""')):
        (root / f"{name}.toml").write_text(record.replace('green = "green"', written))
    (root / "one.toml").write_text(record.replace('blue = "blue"\ngreen = "green"\n', ""))
    (root / "file").write_text("in the way")
    return root


@pytest.fixture
def told(folder, monkeypatch, capsys):
    """Exit status and the last line of what a command says."""
    monkeypatch.chdir(folder)

    def told(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = main(list(arguments))
        said = capsys.readouterr().err.strip().splitlines()
        return code, said[-1] if said else ""

    return told


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--shots", "-1"], 1, "shots is -1; expected 0 for all training pictures, or more"),
        (["--set", "lenght=4"], 1, "unknown setting 'lenght'; expected a known one; nearest: 'length'"),
        (["--set", "recepe.epochs=4"], 1, "unknown setting 'recepe.epochs'"),
        (["--set", "recipe.epoch=4"], 1, "unknown setting 'recipe.epoch'; expected a known one; nearest: 'epochs'"),
        (["--set", "recipe.epochs=four"], 1, "recipe.epochs is 'four'; expected a value of type int"),
        (["--set", "length=100"], 1, "with 100 contexts takes 10"),
        (["--task", "local_cifar1O"], 1, "nearest: 'local_cifar10'"),
        (["--task", "alike.toml"], 1, "class_names[2] is 'red', as is class_names[1]"),
        (["--task", "empty.toml"], 1, "class_names[1] is ''; expected a name that is not empty"),
        (["--task", "one.toml"], 1, "classes is ['red']; expected two or more"),
        (["--task", "notrain.toml"], 1, "has no split 'train'; adapt on a task with a training split"),
        (["--task", "notest.toml"], 1, "notest.toml has no split to measure"),
        (["--task", "broken.toml"], 1, "red/0.png: not a picture that can be read"),
        (["--task", "pics.toml@train"], 1, "pics@train is learned from and measured"),
        (["--task", "pics.toml@tset"], 1, "nearest: 'test'"),
        (["--val", "test"], 1, "'test' is to choose and is learned from or measured"),
        (["--model", "nomodel"], 1, "nomodel: no such file or folder"),
        (["--model-out", "tuned"], 2, "coop tunes no tower"),
        (["--start", "coop"], 1, "coop takes no start; expected tpt, wise-ft"),
        (["--sources", "noval.toml"], 2, "--sources has no effect on coop"),
        (["-o", "file"], 1, "file: cannot be written: File exists"),
        (["-o", "file/below"], 1, "file/below: cannot be written: Not a directory"),
    ],
)
def test_a_fit_that_cannot_be_meant_is_refused_in_one_line(told, arguments, code, words):
    found, line = told("adapt", "coop", *COMMON, "--task", "pics.toml", *FAST, "-o", "out", *arguments)
    assert found == code and line.startswith("ostension: error: ") and words in line


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["adapt", "coopp"], 2, "nearest: coop"),
        (["adapt", "tpt", *COMMON, "--task", "pics.toml", "--start", "model"], 1, "model: holds no predictor"),
        (["adapt", "tpt", *COMMON, "--task", "pics.toml", "--start", "nowhere"], 1, "nowhere: no such folder"),
        (["adapt", "tpt", *COMMON, "--model", "other", "--task", "pics.toml", "--start", "coop"], 1, "pass the encoder"),
        (["adapt", "dpl", *COMMON, "--task", "pics.toml"], 1, "the pictures have no domains"),
        (["adapt", "probe", *COMMON, "--task", "noval.toml", "--shots", "4"], 1, "no training sample is left to choose by"),
        (["adapt", "auto", *COMMON, "--task", "notest.toml"], 1, "has no split to measure"),
        (["adapt", "auto", *COMMON, "--task", "pics.toml", "-o", "file"], 1, "file: cannot be written"),
        (["adapt", "curve", "nowhere", "--task", "pics.toml"], 1, "nowhere: no such folder"),
        (["adapt", "curve", "coop", "--task", "notest.toml"], 1, "has no split to measure"),
        (["adapt", "curve", "coop", "--model", "other", "--task", "pics.toml"], 1, "pass the encoder"),
        (["adapt", "attack", "--predictor", "coop", "--task", "pics.toml", "--limit", "0"], 2, "--limit is 0"),
        (["adapt", "attack", "--predictor", "coop", "--task", "pics.toml", "--steps", "0"], 2, "--steps is 0"),
        (["adapt", "attack", "--predictor", "coop", "--task", "pics.toml", "--attacks", "pgt"], 1, "nearest: 'pgd'"),
        (["adapt", "domains", "--methods", "coop", "--task", "pics.toml", *COMMON], 1, "expected three domains or more"),
        (["adapt", "study", "--data", "nowhere", "-o", "study"], 1, "there is no such pack"),
    ],
)
def test_so_is_any_other_command(told, arguments, code, words):
    found, line = told(*arguments)
    assert found == code and line.startswith("ostension: error: ") and words in line


@pytest.mark.parametrize(
    ("flag", "value", "code", "words"),
    [
        ("--methods", "", 2, "--methods is empty"),
        ("--methods", "zero-shot,cop", 1, "unknown method 'cop'; expected one of the known names; nearest: 'coop'"),
        ("--methods", "zero-shott", 1, "unknown method 'zero-shott'; expected one of the known names; nearest: 'zero-shot'"),
        ("--tasks", " , ", 2, "--tasks is empty"),
        ("--tasks", "notest.toml", 1, "has no split to measure"),
        ("--shots", "", 2, "--shots is empty; expected whole numbers"),
        ("--shots", "1,x", 2, "--shots is '1,x'; expected whole numbers"),
        ("--seeds", "-1", 2, "--seeds is '-1'; expected numbers from 0"),
        ("--alphas", "2", 1, "alphas is (2.0,); expected numbers from 0 to 1"),
        ("--set", "recipe.epochs=1", 2, "expected METHOD.SETTING=VALUE"),
        ("--set", "coop.recipe.epoch=1", 1, "unknown setting 'recipe.epoch'"),
        ("-o", "file", 1, "file: is not a folder"),
    ],
)
def test_a_comparison_that_cannot_be_meant_is_refused_in_one_line(told, flag, value, code, words):
    command = ["adapt", "compare", *COMMON, "--methods", "coop", "--tasks", "pics.toml", "-o", "compared"]
    found, line = told(*command, flag, value)
    assert found == code and line.startswith("ostension: error: ") and words in line


def test_methods_seeds_and_shots_that_are_named_twice_count_once(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    command = ["adapt", "compare", *COMMON, "--tasks", "pics.toml", "--methods", "probe,probe", "--json", "-o", "twice"]
    assert main([*command, "--shots", "1,01", "--seeds", "1,1"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["method"], row["shots"], row["seeds"]) for row in rows if row["metric"] == "accuracy"] == [("probe", 1, 1)]


def test_one_fit_that_fails_does_not_stop_the_others(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    command = ["adapt", "compare", *COMMON, "--methods", "dpl,zero-shot", "--seeds", "1", "--tasks", "pics.toml"]
    assert main([*command, "-o", "partly"]) == 1
    captured = capsys.readouterr()
    assert "adapt-dpl-16shot-seed1: the pictures have no domains" in captured.err and "zero-shot" in captured.out


@pytest.mark.parametrize(("task", "shots", "words"), [
    ("pics", "9", "note: 3 of 3 classes have fewer than 9 training pictures ('blue' 4, 'green' 4, 'red' 4); all that"),
    ("gap", "2", "note: 1 of 3 classes have fewer than 2 training pictures ('green' 0)"),
    ("gap", "0", "note: 1 of 3 classes have no training picture ('green' 0)"),
])  # fmt: skip
def test_classes_with_fewer_pictures_than_asked_for_are_named(folder, monkeypatch, capsys, task, shots, words):
    monkeypatch.chdir(folder)
    assert main(["adapt", "coop", *COMMON, "--task", f"{task}.toml", *FAST, "--shots", shots, "-o", f"short-{task}"]) == 0
    assert words in capsys.readouterr().err
    counts = json.loads((folder / f"short-{task}/result.json").read_text())["counts"]
    assert counts["short_classes"] == (3 if task == "pics" else 1)
    assert counts["train_samples"] == {"pics": 12, "gap": 4 if shots == "2" else 8}[task]


def test_a_method_without_labels_needs_no_training_pictures(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    found = []
    for task in ("notrain", "pics"):
        assert main(["adapt", "tpt", *COMMON, "--task", f"{task}.toml", *TPT, "-o", f"tpt-{task}"]) == 0
        found.append(json.loads((folder / f"tpt-{task}/result.json").read_text()))
    assert found[0]["metrics"] == found[1]["metrics"] and found[0]["counts"]["train_samples"] == 0


def test_a_full_disk_is_one_line(told, folder, monkeypatch):
    monkeypatch.setattr(_fit, "KEEP_S", 0.0)
    write = files.write_bytes

    def full(path, data):
        if "full" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    monkeypatch.setattr(files, "write_bytes", full)
    expected = "full/fit: cannot be written: No space left on device; make room or give another folder, then run it again"
    assert told("adapt", "coop", *COMMON, "--task", "pics.toml", *FAST, "-o", "full") == (1, f"ostension: error: {expected}")
    monkeypatch.setattr(_fit, "KEEP_S", 1e9)
    code, line = told("adapt", "coop", *COMMON, "--task", "pics.toml", *FAST, "-o", "full")
    assert code == 1 and line.startswith("ostension: error: full: cannot be written: No space left on device")


def test_a_fit_that_was_interrupted_goes_on_and_belongs_to_its_settings(told, folder, monkeypatch, capsys):
    monkeypatch.setattr(_fit, "KEEP_S", 0.0)
    command = ["adapt", "coop", *COMMON, "--task", "pics.toml", "--set", "recipe.views=0", "--set", "recipe.epochs=4"]
    assert told(*command, "-o", "whole")[0] == 0
    keep, kept = _fit._keep, []

    def interrupted(*arguments):
        keep(*arguments)
        kept.append(1)
        if len(kept) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(_fit, "_keep", interrupted)
    assert told(*command, "-o", "parts") == (130, "ostension: interrupted")
    monkeypatch.setattr(_fit, "_keep", keep)
    code, line = told(*command, "--set", "length=3", "-o", "parts")
    assert code == 1 and "parts/fit/fit.safetensors: a fit of other settings or data; use another folder, or remove it" in line
    capsys.readouterr()
    assert main([*command, "-o", "parts"]) == 0
    said = capsys.readouterr().err
    assert "epoch 2:" not in said and "epoch 3:" in said and "epoch 4:" in said
    whole, parts = (Predictor.load(folder / name).module.context for name in ("whole", "parts"))
    assert (whole == parts).all() and not (folder / "parts/fit").exists()
    assert told(*command, "--set", "length=3", "-o", "parts")[0] == 0  # a fit that has ended stands in no one's way
