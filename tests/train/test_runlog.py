"""The run log: appended to, readable after a kill, with one value a step."""

from __future__ import annotations

import json
import math

import pytest

from ostension.errors import DataError
from ostension.runlog import RunLog, number, read_records


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


class Broken(Watcher):
    """Fails in one of the three."""

    def __init__(self, where):
        super().__init__()
        self.where = where

    def open(self, folder, facts):
        super().open(folder, facts)
        self._perhaps("open")

    def write(self, record):
        super().write(record)
        self._perhaps("write")

    def close(self):
        super().close()
        self._perhaps("close")

    def _perhaps(self, where):
        if where == self.where:
            raise ConnectionError(f"no route\nto {where}")


@pytest.mark.parametrize("where", ["open", "write", "close"])
def test_a_tracker_that_fails_is_told_once_and_ends_nothing(tmp_path, capsys, where):
    broken, watcher = Broken(where), Watcher()
    with RunLog(tmp_path, [broken, watcher], {"steps": 9}) as log:
        for step in (1, 2, 3):
            log.write("step", step)
    told = capsys.readouterr().err
    what = f"the tracker Broken failed (ConnectionError: no route to {where})"
    assert told == f"ostension: warning: {what}; the run goes on without it\n"
    assert watcher.seen == [("open", 9), ("step", 1), ("step", 2), ("step", 3), ("close", None)]
    assert len(broken.seen) == {"open": 1, "write": 2, "close": 5}[where]
    assert [record["step"] for record in read_records(tmp_path)] == [1, 2, 3]


def test_a_log_can_be_read_while_it_is_written(tmp_path):
    with RunLog(tmp_path) as log:
        log.write("step", 1, loss=2.0)
        with open(tmp_path / "log.jsonl", "ab") as handle:
            handle.write(b'{"kind": "step", "step": 2, "lo')
        assert [record["step"] for record in read_records(tmp_path)] == [1]


def test_a_log_of_which_nothing_can_be_read_says_so(tmp_path):
    (tmp_path / "log.jsonl").write_bytes(b"\0" * 50 + b"\n{torn")
    with pytest.raises(DataError, match="none of its 2 lines"):
        read_records(tmp_path)


def test_measurements_that_are_not_finite_are_numbers_again():
    assert number("inf") == math.inf
    assert math.isnan(number("nan"))
    assert number(3) == 3.0
    assert [number(value) for value in ("3", True, None, [1.0])] == [None] * 4
