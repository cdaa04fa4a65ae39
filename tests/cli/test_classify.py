"""The classify command: every way to give classes and images, and what happens when some of it is wrong."""

from __future__ import annotations

import io
import json
import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import ostension
from ostension.cli.main import main
from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.runtime import numpy_generator

LABELS = "cat,dog,a cup of tea"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random model, and pictures: two good ones, one in a sub-folder, a broken one and a text file."""
    root = tmp_path_factory.mktemp("classify")
    ostension.save(CLIP(preset("tiny-vit"), seed=0), root / "model")
    (root / "pictures" / "sub").mkdir(parents=True)
    for index, name in enumerate(("a.png", "b.JPG", "sub/c.webp")):
        pixels = numpy_generator(index, "picture").integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "pictures" / name)
    (root / "pictures" / "broken.png").write_bytes((root / "pictures" / "a.png").read_bytes()[:200])
    (root / "pictures" / "notes.txt").write_text("not a picture")
    return root


@pytest.fixture
def run(folder, capsys, monkeypatch):
    """Run `ostension classify` in the folder: (exit status, stdout, stderr)."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("OSTENSION_MODEL", raising=False)
    threads = torch.get_num_threads()

    def call(*arguments, model=True):
        extra = ("--model", "model", "--dtype", "float32", "--device", "cpu") if model else ()
        status = main(["classify", *arguments, *extra])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    yield call
    torch.set_num_threads(threads)


def rows(output):
    return [json.loads(line) for line in output.splitlines()]


def test_labels_give_probabilities_as_json_lines(run):
    status, out, _ = run("pictures/a.png", "pictures/b.JPG", "--labels", LABELS, "--format", "jsonl", "--top-k", "3")
    assert status == 0
    first, second = rows(out)
    assert (first["image"], second["image"]) == ("pictures/a.png", "pictures/b.JPG")
    assert {one["label"] for one in first["top"]} == {"cat", "dog", "a cup of tea"}
    assert sum(one["probability"] for one in first["top"]) == pytest.approx(1.0, abs=1e-5)
    assert first["label"] == first["top"][0]["label"] and first["probability"] == first["top"][0]["probability"]


def test_the_command_line_gives_what_python_gives(run, folder):
    _, out, _ = run("pictures/a.png", "--labels", LABELS, "--format", "jsonl", "--template", "{}", "--template", "my {}.")
    model = ostension.load(folder / "model", dtype="float32", device="cpu")
    expected = model.classifier(LABELS.split(","), ["{}", "my {}."])([folder / "pictures" / "a.png"])[0]
    assert rows(out)[0]["label"] == expected.label
    assert rows(out)[0]["probability"] == pytest.approx(expected.probability, abs=1e-5)


def test_the_table_names_each_image_once_with_its_classes_below(run):
    status, out, _ = run("pictures/a.png", "--labels", LABELS, "--top-k", "2")
    lines = out.splitlines()
    assert status == 0 and lines[0] == "pictures/a.png" and len(lines) == 3
    assert lines[1].strip().split(" %  ")[1] in LABELS.split(",")


def test_a_broken_image_is_reported_and_counted_and_the_rest_goes_on(run):
    status, out, err = run("pictures", "--labels", LABELS, "--format", "jsonl")
    assert status == 1
    assert [row["image"] for row in rows(out)] == ["pictures/a.png", "pictures/b.JPG", "pictures/sub/c.webp"]
    assert "broken.png" in err and "1 of 4 inputs failed" in err and "Traceback" not in err
    assert "1 files in the folders are not images by their names" in err


def test_globs_and_folders_and_files_keep_their_order(run):
    status, out, _ = run("pictures/sub", "pictures/[ab].*", "--labels", LABELS, "--format", "jsonl")
    assert status == 0
    assert [row["image"] for row in rows(out)] == ["pictures/sub/c.webp", "pictures/a.png", "pictures/b.JPG"]


def test_a_dash_reads_paths_from_stdin(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"pictures/b.JPG\r\n\npictures/a.png\n")))
    status, out, _ = run("-", "--labels", LABELS, "--format", "jsonl")
    assert status == 0 and [row["image"] for row in rows(out)] == ["pictures/b.JPG", "pictures/a.png"]


def test_the_batch_size_does_not_change_the_answers(run):
    outputs = [rows(run("pictures", "--labels", LABELS, "--format", "jsonl", "--batch-size", size)[1]) for size in ("1", "3")]
    for one, other in zip(*outputs, strict=True):
        assert one["label"] == other["label"] and one["probability"] == pytest.approx(other["probability"], abs=1e-5)


def test_labels_may_come_from_a_file_with_spaces_and_commas_in_names(run, folder):
    (folder / "names.txt").write_text("\ufeffcat, tabby\n\n  dog \n", encoding="utf-8")
    status, out, _ = run("pictures/a.png", "--labels-file", "names.txt", "--format", "jsonl")
    assert status == 0 and {one["label"] for one in rows(out)[0]["top"]} == {"cat, tabby", "dog"}


def test_a_task_brings_names_and_templates(run):
    status, out, err = run("pictures/a.png", "--task", "cifar10", "--format", "jsonl", "--top-k", "10")
    assert status == 0 and len(rows(out)[0]["top"]) == 10 and "10 classes, 18 templates" in err


def test_a_set_of_templates_replaces_those_of_the_task(run):
    assert "10 classes, 1 template, " in run("pictures/a.png", "--task", "cifar10", "--templates", "photo")[2]


def test_a_saved_predictor_gives_the_same_answers_and_finds_its_model(run, folder):
    _, first, _ = run("pictures/a.png", "--labels", LABELS, "--format", "jsonl", "--save-predictor", "saved")
    status, second, _ = run("pictures/a.png", "--predictor", "saved", "--format", "jsonl")
    assert status == 0 and second == first
    status, third, _ = run("pictures/a.png", "--predictor", "saved", "--format", "jsonl", "--dtype", "float32", model=False)
    assert status == 0 and rows(third)[0]["label"] == rows(first)[0]["label"]


def test_a_predictor_of_another_model_is_refused_with_both_hashes(run, folder):
    run("pictures/a.png", "--labels", LABELS, "--save-predictor", "mine")
    ostension.save(CLIP(preset("tiny-vit"), seed=1), folder / "other", overwrite=True)
    status, out, err = run("pictures/a.png", "--predictor", "mine", "--model", "other", model=False)
    assert status == 1 and out == "" and err.count("\n") == 1 and "made with the encoder" in err


def test_the_environment_names_the_default_model(run, monkeypatch):
    monkeypatch.setenv("OSTENSION_MODEL", "model")
    assert run("pictures/a.png", "--labels", LABELS, model=False)[0] == 0


def test_without_a_model_the_message_says_where_to_get_one(run):
    status, _, err = run("pictures/a.png", "--labels", LABELS, model=False)
    assert status == 2 and "--model" in err and "OSTENSION_MODEL" in err and "ostension demo" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("pictures/a.png",), 2, "no classes are given"),
        (("pictures/a.png", "--labels", "a,b", "--task", "cifar10"), 2, "--labels and --task"),
        (("pictures/a.png", "--labels", "a,b", "--template", "{}", "--templates", "photo"), 2, "both given"),
        (("pictures/a.png", "--labels", "a,b", "--top-k", "0"), 2, "--top-k is 0"),
        (("--labels", "a,b"), 2, "no images"),
        (("pictures/a.png", "--labels", "cat,dog,cat"), 1, "'cat', as is"),
        (("pictures/a.png", "--labels", "cat,,dog"), 1, "not empty"),
        (("pictures/a.png", "--labels", "a,b", "--template", "no place"), 1, "no place"),
        (("pictures/a.png", "--labels", "a,b", "--templates", "openai_imagnet"), 1, "'openai_imagenet'"),
        (("pictures/a.png", "--task", "cifar11"), 1, "'cifar10'"),
        (("pictures/a.png", "--labels-file", "nowhere.txt"), 1, "nowhere.txt"),
        (("pictures/a.png", "--predictor", "nowhere"), 1, "nowhere: no such folder"),
        (("nowhere.png", "--labels", "a,b"), 1, "none of the arguments"),
        (("nowhere/*.png", "--labels", "a,b"), 1, "none of the arguments"),
        (("pictures/a.png", "--labels", "a,b", "--model", "nowhere"), 1, "nowhere"),
    ],
)
def test_what_cannot_be_meant_is_one_clear_line(run, arguments, status, message):
    found, out, err = run(*arguments, model="--model" not in arguments)
    lines = [line for line in err.splitlines() if line.startswith("ostension: error:")]
    assert found == status and out == "" and len(lines) == 1 and message in lines[0] and "Traceback" not in err


def test_a_missing_file_beside_good_ones_is_named_and_counted(run):
    status, out, err = run("pictures/a.png", "nowhere.png", "--labels", LABELS, "--format", "jsonl")
    assert (
        status == 1 and len(rows(out)) == 1 and "nowhere.png: no such file or folder" in err and "1 of 2 inputs failed" in err
    )


@pytest.mark.skipif(sys.platform == "darwin", reason="the file system there refuses such names")
def test_names_that_are_not_text_are_printed_escaped(run, folder):
    odd = folder / "odd"
    odd.mkdir()
    Image.new("RGB", (8, 8)).save(odd / "new\nline.png")
    os.rename(odd / "new\nline.png", os.fsencode(odd) + b"/\xff\nx.png")
    status, out, _ = run("odd", "--labels", LABELS, "--format", "jsonl")
    assert status == 0 and rows(out)[0]["image"] == "odd/\\xff\\nx.png"


def test_help_is_quick_and_complete(run, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["classify", "--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    for flag in ("--labels", "--labels-file", "--task", "--predictor", "--model", "--top-k", "--format", "--template"):
        assert flag in text
