"""Trackers: what TensorBoard, wandb and trackio are told, and that a resumed run stays one run for them."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import types

import pytest

from ostension.cli.main import main
from ostension.errors import ConfigError, MissingExtraError
from ostension.files import write_json
from ostension.runlog import RunLog
from ostension.train.trackers import named_trackers

FACTS = {"steps": 9, "step": 0, "versions": {"torch": "2"}, "process": 7}


class FakeRun:
    def __init__(self, settings):
        self.settings, self.logged, self.ended = settings, [], False

    def define_metric(self, name, step_metric):
        self.metric = (name, step_metric)

    def log(self, values, step=None):
        self.logged.append((values, step))

    def finish(self):
        self.ended = True


def fake_service(monkeypatch, name):
    """A module of this name whose `init` notes every run."""
    module = types.ModuleType(name)
    module.runs = []
    module.Settings = lambda **settings: settings

    def init(**settings):
        print("hello from the service")
        module.runs.append(FakeRun(settings))
        return module.runs[-1]

    module.init = init
    module.finish = lambda: module.runs[-1].finish()
    monkeypatch.setitem(sys.modules, name, module)
    return module


def sitting(folder, names, steps):
    with RunLog(folder, named_trackers(names), FACTS) as log:
        log.write("start", 0, config_hash="x")
        for step in steps:
            log.write("step", step, loss=1.5, rejects={"torn": 1}, grad_norm=math.inf, note="text")
        log.write("evaluation", steps[-1], top1=0.25)


def test_a_resumed_run_is_the_same_run_for_wandb(tmp_path, monkeypatch):
    wandb = fake_service(monkeypatch, "wandb")
    write_json(tmp_path / "config.json", {"train": {"steps": 9}})
    sitting(tmp_path, ["wandb"], [1, 2])
    sitting(tmp_path, ["wandb"], [2, 3])
    first, second = wandb.runs
    assert first.settings["id"] == second.settings["id"] == json.loads((tmp_path / "trackers.json").read_text())["wandb"]
    assert first.settings["resume"] == "allow"
    assert first.settings["dir"] == str(tmp_path)
    assert first.settings["config"] == {"train": {"steps": 9}, "run": {"steps": 9, "versions": {"torch": "2"}}}
    assert first.metric == ("*", "step")
    assert first.logged == [
        ({"step/loss": 1.5, "step/grad_norm": math.inf, "step": 1}, None),
        ({"step/loss": 1.5, "step/grad_norm": math.inf, "step": 2}, None),
        ({"evaluation/top1": 0.25, "step": 2}, None),
    ]
    assert first.ended
    assert second.ended


def test_runs_of_one_folder_name_are_two_runs_for_trackio(tmp_path, monkeypatch, capsys):
    trackio = fake_service(monkeypatch, "trackio")
    for parent in ("a", "b", "a"):
        folder = tmp_path / parent / "run"
        folder.mkdir(parents=True, exist_ok=True)
        sitting(folder, ["trackio"], [1])
    names = [run.settings["name"] for run in trackio.runs]
    assert names[0] == names[2] != names[1]
    assert all(name.startswith("run-") for name in names)
    assert trackio.runs[0].logged[0] == ({"step/loss": 1.5, "step/grad_norm": math.inf}, 1)
    assert trackio.runs[0].ended
    told = capsys.readouterr()
    assert told.out == ""  # stdout is for results
    assert "hello" in told.err


def test_a_project_is_taken_from_the_services_own_variable(tmp_path, monkeypatch):
    wandb = fake_service(monkeypatch, "wandb")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    sitting(tmp_path, ["wandb"], [1])
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    sitting(tmp_path, ["wandb"], [1])
    assert [run.settings["project"] for run in wandb.runs] == ["ostension", "mine"]


def test_a_missing_package_is_told_before_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    command = ["train", "--model", "tiny-vit", "--data", "emoji:train", "--steps", "2", "--run", str(tmp_path / "run")]
    assert main([*command, "--track", "wandb"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("ostension: error: this needs the package 'wandb'")
    assert "pip install 'ostension[track]'" in told
    assert not (tmp_path / "run").exists()
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(MissingExtraError, match=r"ostension\[trackio\]"):
        named_trackers(["trackio"])


def test_names_of_trackers_are_checked_and_taken_once(monkeypatch):
    fake_service(monkeypatch, "wandb")
    assert len(named_trackers(["wandb", "wandb"])) == 1
    with pytest.raises(ConfigError, match="unknown tracker 'wand'; expected one of the known names; nearest: 'wandb'"):
        named_trackers(["wand"])


def installed(name):
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")


@pytest.mark.slow
@installed("tensorboard")
def test_tensorboard_gets_the_numbers(tmp_path):
    sitting(tmp_path, ["tensorboard"], [3])
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"step/loss", "step/grad_norm", "evaluation/top1"}
    (point,) = events.Scalars("step/loss")
    assert (point.step, point.value) == (3, 1.5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the package's own
@installed("wandb")
def test_wandb_itself_works_without_a_network(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for steps in ([1, 2], [2, 3]):
        sitting(tmp_path, ["wandb"], steps)
    folders = list((tmp_path / "wandb").glob("offline-run-*"))
    identity = json.loads((tmp_path / "trackers.json").read_text())["wandb"]
    assert folders
    assert all(folder.name.endswith(identity) and list(folder.glob("*.wandb")) for folder in folders)
    told = capfd.readouterr()
    assert told.out == ""
    assert "failed" not in told.err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@installed("trackio")
def test_trackio_itself_works_without_a_network(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    sitting(tmp_path, ["trackio"], [1, 2])
    assert (tmp_path / "trackio" / "ostension.db").is_file()
    told = capfd.readouterr()
    assert told.out == ""
    assert "failed" not in told.err
