"""The run log: appended to, readable after a kill, with one value a step."""

from __future__ import annotations

import json

import pytest

from ostension.errors import DataError
from ostension.runlog import RunLog, TensorBoard, read_records


def test_records_are_json_lines_with_kind_step_and_time(tmp_path):
    with RunLog(tmp_path) as log:
        log.write("start", 0, config_hash="x")
        log.write("step", 1, loss=float("nan"), rates=[1.0, float("inf")])
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["start", "step"]
    assert lines[1]["loss"] == "nan"
    assert lines[1]["rates"] == [1.0, "inf"]
    assert all(line["time"] > 1.6e9 for line in lines)


def test_a_line_torn_by_a_kill_is_left_alone_and_not_continued(tmp_path):
    with RunLog(tmp_path) as log:
        log.write("step", 1, loss=2.0)
    with open(tmp_path / "log.jsonl", "ab") as handle:
        handle.write(b'{"kind": "step", "st')
    with RunLog(tmp_path) as log:
        log.write("resume", 1)
    assert [record["kind"] for record in read_records(tmp_path)] == ["step", "resume"]


def test_steps_done_twice_are_read_once(tmp_path):
    with RunLog(tmp_path) as log:
        for step in (1, 2, 3, 4):
            log.write("step", step, loss=1.0)
        log.write("resume", 2)
        log.write("step", 3, loss=5.0)
    found = read_records(tmp_path / "log.jsonl", kinds=["step"])
    assert [(record["step"], record["loss"]) for record in found] == [(1, 1.0), (2, 1.0), (3, 5.0)]


def test_what_is_no_log_is_refused(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        read_records(tmp_path)
    (tmp_path / "log.jsonl").write_text('{"loss": 1}\n')
    with pytest.raises(DataError, match="no record of a run"):
        read_records(tmp_path)


class Watcher:
    def __init__(self):
        self.seen = []

    def open(self, folder, facts):
        self.seen.append(("open", facts["steps"]))

    def write(self, record):
        self.seen.append((record["kind"], record["step"]))

    def close(self):
        self.seen.append(("close", None))


def test_trackers_see_everything_and_are_closed_whatever_happens(tmp_path):
    watcher = Watcher()
    with pytest.raises(RuntimeError), RunLog(tmp_path, [watcher], {"steps": 9}) as log:
        log.write("step", 1)
        raise RuntimeError
    assert watcher.seen == [("open", 9), ("step", 1), ("close", None)]


def test_a_disk_that_is_full_is_told_once_and_ends_nothing(tmp_path, capsys, monkeypatch):
    watcher = Watcher()
    with RunLog(tmp_path, [watcher], {"steps": 9}) as log:

        class Full:
            def write(self, data):
                raise OSError(28, "No space left on device")

            def close(self):
                pass

        log._handle.close()
        monkeypatch.setattr(log, "_handle", Full())
        log.write("step", 1)
        log.write("step", 2)
    assert capsys.readouterr().err.count("No space left") == 1
    assert ("step", 2) in watcher.seen


@pytest.mark.slow
def test_tensorboard_gets_the_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    with RunLog(tmp_path, [TensorBoard()]) as log:
        log.write("start", 0, config_hash="x")
        log.write("step", 3, loss=1.5, note="text")
        log.write("evaluation", 3, top1=0.25)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"step/loss", "evaluation/top1"}
    (point,) = events.Scalars("step/loss")
    assert (point.step, point.value) == (3, 1.5)
