"""The demo as a command, in its smoke form: it makes what it says, goes on where it was killed, and its commands work."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

from ostension.errors import ConfigError
from ostension.evals.records import load_records
from ostension.files import sha256_file
from ostension.recipes import _demo_run, demo
from ostension.recipes._demo_run import DemoConfig, plan, run_demo
from ostension.train.loop import TrainResult

pytestmark = pytest.mark.slow
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
COMMAND = [sys.executable, "-m", "ostension.cli.main", "demo", "--smoke", "--out", "out"]


def run(folder, command=COMMAND):
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a finished smoke demo in `out`, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    return folder, run(folder)


def test_the_demo_writes_model_records_pictures_classifier_and_report(finished):
    folder, done = finished
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "out/report.html" and done.stdout.count("  ostension ") == 3
    found = {path.name for path in (folder / "out").iterdir()}
    assert {"model", "records.json", "report.html", "classifier", "pictures", "log.jsonl", "demo.json"} <= found
    assert len(list((folder / "out" / "pictures").glob("*.png"))) == 12
    assert "step 20/20" in done.stderr and "right at the first guess" in done.stderr


def test_the_records_carry_settings_hashes_counts_chance_and_intervals(finished):
    records = load_records(finished[0] / "out" / "records.json")
    assert len(records) == 4 * 5 + 1
    for name, record in records.items():
        assert set(record.hashes) == {"model", "data", "class_list", "prompts"} and record.counts and record.subject
        for metric in record.metrics.values():
            assert metric.count > 0 and metric.direction in ("higher", "lower")
        if name.startswith("zero-shot/"):
            top1 = record.metrics["top1"]
            assert top1.chance and top1.interval and top1.interval.low <= top1.value <= top1.interval.high
            assert record.config["templates"]


def test_the_report_is_one_file_under_five_megabytes_that_loads_nothing(finished):
    text = (finished[0] / "out" / "report.html").read_text(encoding="utf-8")
    assert len(text) < 5_000_000
    assert not re.search(r"https?://|<script|@import|url\(", text)
    for section in ("data", "training", "results", "prompts", "probe", "retrieval", "gallery", "answers", "map", "next"):
        assert f'<section id="{section}"' in text


def test_the_printed_commands_work(finished):
    folder, done = finished
    for line in done.stdout.splitlines():
        if line.startswith("  ostension "):
            words = shlex.split(line)
            result = run(folder, [sys.executable, "-m", "ostension.cli.main", *words[1:]])
            assert result.returncode == 0 and result.stdout, (line, result.stderr)


def test_a_demo_that_was_killed_goes_on_and_ends_with_the_same_bits(finished, tmp_path):
    process = subprocess.Popen(COMMAND, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = tmp_path / "out" / "log.jsonl"
    deadline = time.monotonic() + 200
    while not (log.exists() and '"kind": "checkpoint"' in log.read_text()) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "model").exists()
    again = run(tmp_path)
    assert again.returncode == 0 and "resume at step" in again.stderr
    weights = [folder / "out" / "model" / "model.safetensors" for folder in (tmp_path, finished[0])]
    assert sha256_file(weights[0]) == sha256_file(weights[1])


def test_a_finished_demo_is_only_evaluated_again(finished):
    folder, _ = finished
    before = sha256_file(folder / "out" / "model" / "model.safetensors")
    again = run(folder)
    assert again.returncode == 0 and "step 20/20" not in again.stderr
    assert sha256_file(folder / "out" / "model" / "model.safetensors") == before


def test_other_flags_in_the_same_folder_are_refused_in_one_line(finished):
    result = run(finished[0], [*COMMAND, "--seed", "1"])
    assert result.returncode == 1 and "asked for otherwise" in result.stderr and "Traceback" not in result.stderr


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    result = run(tmp_path, [*COMMAND[:-1], "file/out"])
    assert result.returncode == 1 and "cannot be used" in result.stderr and "Traceback" not in result.stderr


def test_a_smoke_run_has_the_seed_and_the_languages_that_were_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(_demo_run.runtime, "set_threads", lambda count=None: count or 1)
    made = plan(DemoConfig(smoke=True, languages=True, seed=5), tmp_path)
    assert made.train.steps == demo.SMOKE_STEPS and made.train.seed == 5
    assert made.batches.languages == _demo_run.LANGUAGES and made.batches.every == 8


def test_the_steps_and_threads_are_decided_once_and_kept(tmp_path, monkeypatch):
    threads = []
    monkeypatch.setattr(_demo_run.runtime, "set_threads", lambda count=None: threads.append(count) or count or 1)
    monkeypatch.setattr(_demo_run, "fitting", lambda config: (123, 2))
    assert plan(DemoConfig(minutes=3.0), tmp_path).train.steps == 123
    monkeypatch.setattr(_demo_run, "fitting", lambda config: (999, 1))
    assert plan(DemoConfig(minutes=3.0), tmp_path).train.steps == 123
    assert threads == [2, 2] and json.loads((tmp_path / "demo.json").read_text())["steps"] == 123
    with pytest.raises(ConfigError, match="asked for otherwise"):
        plan(DemoConfig(minutes=4.0), tmp_path)


def test_one_thread_is_taken_where_it_is_clearly_faster_and_the_steps_fill_the_minutes(monkeypatch):
    monkeypatch.setattr(_demo_run.runtime, "set_threads", lambda count=None: count or 4)
    monkeypatch.setattr(_demo_run, "seconds_per_step", lambda config, threads: {4: 0.2, 1: 0.5}[threads])
    steps, threads = _demo_run.fitting(DemoConfig(minutes=7.0))
    assert threads == 4 and steps == pytest.approx((7 * 60 - _demo_run.EVALUATION_S) / 0.2, abs=5)
    monkeypatch.setattr(_demo_run, "seconds_per_step", lambda config, threads: {4: 0.9, 1: 0.5}[threads])
    assert _demo_run.fitting(DemoConfig(minutes=0.1)) == (_demo_run.MIN_STEPS, 1)


def test_a_signal_during_the_trial_ends_the_demo_and_leaves_no_plan(tmp_path, monkeypatch):
    class Interrupted:
        changed = lambda self, settings: self
        run = lambda self, folder: TrainResult(status="stopped", step=1, folder=tmp_path, signal=15)

    monkeypatch.setattr(_demo_run.runtime, "set_threads", lambda count=None: count or 1)
    monkeypatch.setattr(_demo_run, "recipe_for", lambda config, steps: Interrupted())
    result = run_demo(DemoConfig(minutes=3.0), tmp_path)
    assert result.signal == 15 and result.report is None and not (tmp_path / "demo.json").exists()


def test_without_minutes_the_recipe_says_how_many_steps(monkeypatch):
    monkeypatch.setattr(_demo_run.runtime, "set_threads", lambda count=None: count or 2)
    monkeypatch.setattr(_demo_run, "seconds_per_step", lambda config, threads: 9.0)
    assert _demo_run.fitting(DemoConfig()) == (demo.STEPS, 2)


def test_without_minutes_the_recipe_decides_the_steps_and_noise_does_not_change_the_threads(monkeypatch):
    monkeypatch.setattr(_demo_run.runtime, "set_threads", lambda count=None: count or 4)
    monkeypatch.setattr(_demo_run, "seconds_per_step", lambda config, threads: {4: 0.55, 1: 0.5}[threads])
    assert _demo_run.fitting(DemoConfig()) == (_demo_run.demo.STEPS, 4)


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan")])
def test_minutes_that_cannot_be_meant_are_refused(minutes):
    with pytest.raises(ConfigError, match="--minutes"):
        DemoConfig(minutes=minutes)
