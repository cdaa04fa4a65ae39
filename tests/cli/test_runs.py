"""`ostension runs`: what is said of run folders, whole, broken or alive."""

from __future__ import annotations

import csv
import io
import json
import math
import re

import pytest

from ostension.cli.main import main
from ostension.cli.runs import ago
from ostension.files import folder_lock, write_json
from ostension.runlog import RunLog
from ostension.runtime import numpy_generator


def falling(step):
    return 40.0 / step


def make_run(folder, *, lr=1e-3, steps=40, until=40, batch=10, status="finished", step_s=0.5, loss=falling, **train):
    """A run folder as training leaves it, a record every ten steps, an evaluation every twenty."""
    folder.mkdir(parents=True)
    write_json(folder / "config.json", {
        "model": {"name": "tiny", "width": 8}, "data": {"fingerprint": "abcdef0123456789", "batch_size": batch},
        "train": {"steps": steps, "optim": {"lr": lr}, **train},
    })  # fmt: skip
    write_json(folder / "run.json", {"config_hash": "h", "versions": {"torch": "2"}, "git": {"commit": "c0", "changed": True}})
    with RunLog(folder) as log:
        log.write("start", 0)
        sitting(log, 0, until, batch, step_s, lr, loss)
        if status is not None:
            log.write("end", until, status=status)
    return folder


def sitting(log, first, last, batch=10, step_s=0.5, lr=1e-3, loss=falling):
    for step in range(first + 10, last + 1, 10):
        log.write("step", step, loss=loss(step), image_accuracy=step / 100, text_accuracy=0.1, temperature=0.07, lr=lr,
                  samples_seen=step * batch, step_s=step_s, idle_share=0.02, pairs_per_s=batch / step_s,
                  rejects={"torn": step // 10}, skipped=0)  # fmt: skip
        if step % 20 == 0:
            log.write("evaluation", step, top1=step / 200, recall=0.5)


def said(capsys, *words, status=0):
    assert main(["runs", *map(str, words)]) == status
    return capsys.readouterr()


def test_a_list_tells_how_each_run_stands(tmp_path, capsys):
    make_run(tmp_path / "a" / "done")
    make_run(tmp_path / "a" / "cut", until=20, status=None)
    make_run(tmp_path / "b", until=30, status="diverged")
    alive = make_run(tmp_path / "live", until=10, status=None)
    (tmp_path / "model").mkdir()
    write_json(tmp_path / "model" / "config.json", {"name": "a model is no run"})
    with folder_lock(alive):
        rows = [json.loads(line) for line in said(capsys, "ls", tmp_path, "--json").out.splitlines()]
    assert [(row["run"].removeprefix(f"{tmp_path}/"), row["status"], row["step"]) for row in rows] == [
        ("a/cut", "killed", 20), ("a/done", "finished", 40), ("b", "diverged", 30), ("live", "running", 10),
    ]  # fmt: skip
    assert rows[1] | {"age_s": 0} == {
        "run": str(tmp_path / "a" / "done"), "status": "finished", "step": 40, "steps": 40, "samples_seen": 400, "loss": 1.0,
        "evaluation": "top1", "value": 0.2, "age_s": 0, "model": "tiny", "data": "abcdef012345",
    }  # fmt: skip
    table = said(capsys, "ls", tmp_path).out.splitlines()
    assert table[0].split() == ["run", "status", "model", "data", "step", "samples", "loss", "evaluation", "last", "record"]
    assert "killed" in table[1]
    assert "20 of 40" in table[1]
    assert "killed" in table[4]  # the lock is gone with its holder
    cells = list(csv.DictReader(io.StringIO(said(capsys, "ls", tmp_path / "b", "--csv").out)))
    assert (cells[0]["status"], cells[0]["samples_seen"], cells[0]["value"]) == ("diverged", "300", "0.1")


def test_a_broken_run_is_one_line_and_hides_no_other(tmp_path, capsys):
    make_run(tmp_path / "good")
    bad = make_run(tmp_path / "bad")
    (bad / "log.jsonl").write_bytes(b"\0\0\0\n{half a li")
    (make_run(tmp_path / "worse") / "config.json").unlink()
    told = said(capsys, "ls", tmp_path, "--json", status=1)
    assert [json.loads(line)["run"] for line in told.out.splitlines()] == [str(tmp_path / "good")]
    assert told.err.splitlines() == [
        f"ostension: {bad}/log.jsonl: none of its 2 lines can be read; expected one JSON object a line",
        f"ostension: {tmp_path}/worse/config.json: no such file; expected a JSON file",
    ]


@pytest.mark.parametrize("command", ["show", "compare", "plot"])
def test_a_folder_that_is_no_run_is_one_line(tmp_path, capsys, command):
    run = make_run(tmp_path / "good")
    extra = {"show": [], "compare": [run], "plot": ["--out", tmp_path / "x.html"]}[command]
    told = said(capsys, command, tmp_path, *extra, status=1)
    assert told.err == f"ostension: error: {tmp_path}: is no run folder; expected a folder with config.json and log.jsonl\n"
    assert "no such folder" in said(capsys, command, tmp_path / "gone", *extra, status=1).err


def test_folders_without_runs_are_told(tmp_path, capsys):
    assert "no runs below" in said(capsys, "ls", tmp_path).err
    assert "no such folder" in said(capsys, "ls", tmp_path / "gone", status=1).err


def test_a_log_that_is_being_written_is_read_up_to_its_last_whole_line(tmp_path, capsys):
    run = make_run(tmp_path / "run", until=20, status=None)
    with open(run / "log.jsonl", "ab") as handle:
        handle.write(b'{"kind": "step", "step": 30, "loss')
    with folder_lock(run):
        assert json.loads(said(capsys, "show", run, "--json").out)["step"] == 20
        assert "running" in said(capsys, "ls", run).out


def test_a_run_that_has_not_logged_yet_is_shown_and_not_compared(tmp_path, capsys):
    run, other = make_run(tmp_path / "new", until=0, status=None), make_run(tmp_path / "other")
    assert "0 of 40" in said(capsys, "ls", run).out
    assert "has no measurements yet" in said(capsys, "compare", run, other, status=1).err
    assert "has no measurements yet" in said(capsys, "plot", run, "-o", tmp_path / "x.html", status=1).err
    (run / "log.jsonl").unlink()
    assert "step 0 of 40" in said(capsys, "show", run).out


def test_a_run_is_shown_with_its_sittings_and_changes(tmp_path, capsys):
    run = make_run(tmp_path / "run", until=30, status=None)
    with RunLog(run) as log:
        log.write("resume", 20)
        log.write("change", 20, key="train.optim.lr", old=1e-3, new=5e-4)
        log.write("skip", 25, loss=math.nan, keys=["k"])
        sitting(log, 20, 40)
        log.write("warning", 40, message="no room")
        log.write("end", 40, status="stopped", signal=15)
    for step in (20, 40):
        write_json(run / "checkpoints" / f"step_{step:08d}" / "state.json", {"best": {"step": 20, "value": 0.1}})
    (run / "checkpoints" / "step_00000030.partial").mkdir()
    (run / "checkpoints" / "LATEST").write_text("step_00000040\n")
    tree = json.loads(said(capsys, "show", run, "--json").out)
    assert tree["status"] == "stopped"
    assert [(one["began"], one["from"], one["to"], one["ended"]) for one in tree["sittings"]] == [
        ("start", 0, 20, "killed"), ("resume", 20, 40, "stopped"),
    ]  # fmt: skip
    assert tree["sittings"][1]["changes"] == [{"key": "train.optim.lr", "old": 1e-3, "new": 5e-4}]
    assert [(one["name"], one["newest"], one["best"]) for one in tree["checkpoints"]] == [
        ("step_00000020", False, True), ("step_00000040", True, False),
    ]  # fmt: skip
    assert tree["best"] == {"step": 20, "value": 0.1}
    assert tree["rejects"] == {"torn": 4}
    assert tree["seconds"] == 20.0  # the ten steps that were lost are not counted
    assert tree["evaluated"] == {"top1": 0.2, "recall": 0.5}
    text = said(capsys, "show", run).out
    for line in (
        "stopped, step 40 of 40", "400 samples in 20 s of training", "train.optim.lr: 0.001 -> 0.0005", "1 steps skipped",
        "warning: no room", "newest", "torn", "git", "c0, changed",
    ):  # fmt: skip
        assert line in text, line


def test_a_comparison_shows_what_differs_and_measures_at_the_last_common_step(tmp_path, capsys):
    one = make_run(tmp_path / "one")
    burst = {"loss": lambda step: math.nan if step == 30 else 1.0}
    other = make_run(tmp_path / "other", lr=5e-4, until=30, status=None, seed=1, **burst)
    tree = json.loads(said(capsys, "compare", one, other, "--json").out)
    assert tree["runs"] == ["one", "other"]
    assert tree["settings"] == {"train.optim.lr": [1e-3, 5e-4], "train.seed": [None, 1]}
    assert tree["made_by"] == {}
    assert tree["place"] == 30
    assert tree["there"]["one"]["loss"] == pytest.approx(40 / 30)
    assert tree["there"]["other"]["loss"] == "nan"
    assert tree["there"]["one"]["evaluation.top1"] == 0.1  # that of step 20
    assert tree["end"]["one"]["step"] == 40
    text = said(capsys, "compare", one, other).out
    assert text.splitlines()[0].split() == ["settings", "that", "differ", "one", "other"]
    assert "at step 30" in text
    assert "width" not in text  # the same in both
    rows = list(csv.DictReader(io.StringIO(said(capsys, "compare", one, other, "--csv").out)))
    assert {"part": "settings", "name": "train.optim.lr", "one": "0.001", "other": "0.0005"} in rows
    assert {"part": "end", "name": "step", "one": "40", "other": "30"} in rows


def test_runs_are_aligned_by_samples_or_by_time_of_training(tmp_path, capsys):
    small = make_run(tmp_path / "small", batch=10, step_s=0.5)
    large = make_run(tmp_path / "large", batch=20, step_s=1.0, until=30)
    by_samples = json.loads(said(capsys, "compare", small, large, "--by", "samples_seen", "--json").out)
    assert by_samples["place"] == 400
    assert [by_samples["there"][name]["step"] for name in ("small", "large")] == [40, 20]
    by_time = json.loads(said(capsys, "compare", small, large, "--by", "time", "--json").out)
    assert by_time["place"] == 20.0
    assert [by_time["there"][name]["step"] for name in ("small", "large")] == [40, 20]


def test_one_run_is_nothing_to_compare(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    assert "two or more" in said(capsys, "compare", run, run, status=2).err
    assert "no setting differs" in said(capsys, "compare", run, make_run(tmp_path / "b" / "run")).out
    assert "leave one out" in said(capsys, "ls", run, "--json", "--csv", status=2).err


def test_curves_become_one_page_without_anything_from_elsewhere(tmp_path, capsys):
    runs = [make_run(tmp_path / name / "r<b>", until=until) for name, until in (("x", 40), ("y", 30))]
    out = tmp_path / "page.html"
    assert said(capsys, "plot", *runs, "-o", out, "--by", "samples_seen").out.strip() == str(out)
    page = out.read_text(encoding="utf-8")
    for title in ("Loss", "Right in the batch", "Temperature", "Learning rate", "waited for data", "Evaluation: top1"):
        assert title in page
    assert "samples seen" in page
    assert "<script" not in page
    assert "<b>" not in page.replace("<li><b>", "").split("</head>")[1].replace("r&lt;b&gt;", "")
    assert page.count("<polyline") == 2 * 9  # seven of training, two of the evaluation, no gradient's norm
    assert said(capsys, "plot", runs[0], "-o", tmp_path / "page.pdf", status=2).err.endswith("ends with .html or .png\n")


def test_values_that_are_not_finite_leave_a_gap_and_long_logs_are_thinned(tmp_path, capsys):
    run = make_run(tmp_path / "run", steps=20_000, until=20_000, loss=lambda step: math.nan if step < 100 else 1.0)
    out = tmp_path / "page.html"
    said(capsys, "plot", run, "-o", out)
    page = out.read_text(encoding="utf-8")
    assert "nan" not in page
    lengths = [len(points.split()) for points in re.findall(r'<polyline[^>]* points="([^"]*)"', page)]
    assert 400 < max(lengths) <= 800


@pytest.mark.slow
def test_curves_become_a_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    run = make_run(tmp_path / "run")
    said(capsys, "plot", run, "-o", tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


ODD = (None, True, -1, 1e300, "nan", "text", [1, "a"], {"a": {"b": 1}}, {}, [])


@pytest.mark.parametrize("seed", range(3))
def test_a_run_folder_with_anything_in_it_is_shown_or_refused(tmp_path, capsys, seed):
    generator = numpy_generator("odd runs", seed)

    def spoil(tree):
        """One value somewhere in a tree, replaced."""
        place, key = tree, list(tree)[generator.integers(len(tree))]
        while isinstance(place[key], dict) and place[key] and generator.random() < 0.6:
            place, key = place[key], list(place[key])[generator.integers(len(place[key]))]
        place[key] = ODD[generator.integers(len(ODD))]
        return tree

    other = make_run(tmp_path / "other")
    for trial in range(10):
        run = make_run(tmp_path / f"run{trial}")
        name = ("config.json", "run.json", "log.jsonl")[generator.integers(3)]
        lines = (run / name).read_text().splitlines() if name == "log.jsonl" else [(run / name).read_text()]
        at = int(generator.integers(len(lines)))
        lines[at] = json.dumps(spoil(json.loads(lines[at])))
        (run / name).write_text("\n".join(lines) + "\n")
        for words in (
            ["ls", run], ["ls", run, "--csv"], ["show", run], ["show", run, "--json"], ["compare", run, other],
            ["compare", run, other, "--by", "time", "--json"], ["plot", run, other, "-o", tmp_path / "page.html"],
        ):  # fmt: skip
            status = main(["runs", *map(str, words)])
            told = capsys.readouterr()
            assert status in (0, 1), words
            assert status == 0 or len(told.err.splitlines()) == 1, told.err


def test_lengths_of_time_are_said_in_their_largest_unit():
    assert [ago(each) for each in (5, 99, 700, 7300, 200_000)] == ["5 s", "99 s", "11 min", "2 h 01 min", "2 d"]
