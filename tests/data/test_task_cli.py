"""The command `ostension task`: ls, show, validate and new, for people and as JSON."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import threading

import numpy as np
import pytest
from labelled_making import write_folder, write_record

from ostension.cli.main import main
from ostension.data.suite import suite_names
from ostension.data.task import read_task, task_names
from ostension.data.task_new import clean_name, clean_names


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        status = main(["task", *map(str, arguments)])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_ls_names_every_task_and_every_suite(run):
    status, out, _ = run("ls")
    assert status == 0 and len(out.splitlines()) == len(task_names()) + 3
    assert all(f"\n{name} " in out for name in task_names()) and all(name in out for name in suite_names())
    rows = [json.loads(line) for line in run("ls", "--json")[1].splitlines()]
    assert [row["name"] for row in rows] == task_names() and rows[0]["splits"]


def test_ls_of_a_suite_keeps_its_order_and_says_how_it_is_scored(run):
    status, out, _ = run("ls", "--suite", "shifts7")
    assert status == 0 and out.index("imagenet_v2") < out.index("imagenet_a") < out.index("ytbb_robust")
    assert "mean of pm-0 and pm-10" in out
    assert len(run("ls", "--suite", "clip27", "--json")[1].splitlines()) == 27
    status, out, err = run("ls", "--suite", "clip72")
    assert status == 1 and not out and "unknown suite 'clip72'" in err and "'clip27'" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("name", ["kitti", "voc2007", "ytbb_robust", "flickr30k", "waterbirds", "stl10", "mnist"])
def test_show_says_everything(run, name):
    task = read_task(name)
    status, out, _ = run("show", name)
    assert status == 0
    for text in (task.title, task.licence, *task.notes, *task.prompt_templates(), *task.unmapped, *task.preprocess):
        assert text in out
    assert all(f"class     {key}: " in out for key in task.label_names())
    assert all(oracle.source in out for oracle in task.oracles)
    tree = json.loads(run("show", name, "--json")[1])
    assert tree["class_list_sha256"] == task.class_list_sha256 and list(tree["labels"]) == list(task.label_names())
    assert tree["chance"] == task.chance and len(tree["oracles"]) == len(task.oracles)


def test_a_folder_becomes_a_task_with_one_command(run, tmp_path):
    labels, counts = ("001.Black_cat", "GreatDane"), (("train", 3), ("test", 1))
    write_folder(tmp_path / "pictures", {f"{split}/{label}": count for split, count in counts for label in labels})
    status, out, err = run("new", "pictures", "-o", "my.toml")
    assert status == 0 and not err
    assert "2 classes" in out and "train 6, test 2" in out and "'a photo of a {}.'" in out
    task = read_task(tmp_path / "my.toml")
    assert task.label_names() == {"001.Black_cat": ("Black cat",), "GreatDane": ("great dane",)}
    assert task.prompt_templates() == ("a photo of a {}.",) and {name: split.count for name, split in task.splits.items()} == {
        "train": 6, "test": 2,
    }  # fmt: skip
    status, out, _ = run("validate", "my.toml", "--data", ".")
    assert status == 0 and "train 6, test 2; 8 pictures read" in out and "problem" not in out
    (tmp_path / "pictures/test/GreatDane/0.png").rename(tmp_path / "pictures/test/GreatDane/1.png")
    status, out, _ = run("validate", "my.toml", "--data", "pictures", "--quick", "--json")
    tree = json.loads(out)
    assert status == 1 and not tree["valid"] and tree["num_pictures"] == 0 and "has the ids" in tree["problems"][0]


def test_new_replaces_nothing_unless_told(run, tmp_path):
    write_folder(tmp_path / "pictures", {"cat": 1, "dog": 1})
    assert run("new", "pictures", "-o", "my.txt")[0] == 2
    assert run("new", "pictures", "-o", "my.toml", "--title", "Pets", "--json")[0] == 0
    assert read_task(tmp_path / "my.toml").title == "Pets" and list(read_task(tmp_path / "my.toml").splits) == ["test"]
    status, _, err = run("new", "pictures", "-o", "my.toml")
    assert status == 2 and "--force" in err
    assert run("new", "pictures", "-o", "my.toml", "--force")[0] == 0


def test_new_says_where_the_data_is_to_be_given(run, tmp_path):
    write_folder(tmp_path / "a/pictures", {"cat": 1, "dog": 1})
    (tmp_path / "b").mkdir()
    status, out, _ = run("new", "a/pictures", "-o", "b/my.toml")
    assert status == 0 and "--data a/pictures" in out and not read_task(tmp_path / "b/my.toml").sources


@pytest.mark.parametrize("arguments", [("new", "cat", "-o", "x.toml"), ("new", "none", "-o", "x.toml"), ("show", "cifar11")])
def test_what_cannot_be_is_one_line(run, tmp_path, arguments):
    write_folder(tmp_path / "cat", {"a": 1})
    status, out, err = run(*arguments)
    assert status == 1 and not out and len(err.splitlines()) == 1 and err.startswith("ostension: error: ")


def test_validate_without_data_checks_the_record_and_prints_its_traps(run, tmp_path):
    status, out, _ = run("validate", "imagenet")
    assert status == 0 and "missing" not in out and "trap      missile and sunglasses" in out
    assert "warning   2 names stand for two classes each, such as 'missile'" in out
    status, _, err = run("validate", "imagenet", "--quick")
    assert status == 2 and "--data" in err
    path = write_record(tmp_path / "bad.toml", templates='["{} {}"]')
    status, out, err = run("validate", path)
    assert status == 1 and not out and "bad.toml" in err and "2 times" in err


def test_a_file_is_fetched_only_with_the_flag(run, tmp_path):
    buffer = io.BytesIO()
    np.savez(buffer, images=np.arange(64, dtype=np.uint8).reshape(4, 4, 4), labels=np.array(["cat", "dog", "cat", "dog"]))
    body = buffer.getvalue()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    (tmp_path / "sets").mkdir()
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        facts = f'url = "http://127.0.0.1:{server.server_port}/a", sha256 = "{hashlib.sha256(body).hexdigest()}"'
        source = f'[{{ kind = "npz", path = "pets.npz", {facts}, num_bytes = {len(body)} }}]'
        write_record(tmp_path / "my.toml", sources=source)
        status, _, err = run("validate", "my.toml", "--data", "sets")
        assert status == 1 and "is not allowed; allow it with --download" in err and not list((tmp_path / "sets").iterdir())
        status, out, _ = run("validate", "my.toml", "--data", "sets", "--download")
        assert status == 0 and "test 4; 4 pictures read" in out
        server.shutdown()
    assert run("validate", "my.toml", "--data", "sets")[0] == 0


def test_names_are_cleaned_and_kept_apart():
    cleaned = {"apple_pie": "apple pie", "AnnualCrop": "annual crop", "001.Black_footed_Albatross": "Black footed Albatross"}
    cleaned |= {"polka-dotted": "polka-dotted", "A320": "A320", "7": "7", "MacBook": "mac book", "TV": "TV", "12-cat": "cat"}
    assert {label: clean_name(label) for label in cleaned} == cleaned
    names, notes = clean_names(["a_b", "a b", "c"])
    assert names == ["a_b", "a b", "c"] and any("fall together" in note for note in notes)
    assert clean_names(["n01440764", "n01443537"])[0] == ["tench", "goldfish"]
    assert any("no words" in note for note in clean_names(["1", "2"])[1])
