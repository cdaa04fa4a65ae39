"""The record of a run: one JSON object a line in `log.jsonl`, and whatever else wants to watch.

Records carry `kind` and `step`. The kinds: "start" and "resume" open a sitting, "step" holds the measurements of one
interval, "evaluation" those of an evaluation, "checkpoint", "skip", "change" and "warning" say what happened, "end" how
it stopped. The file is only appended to; after a resume, steps that were lost with the process appear a second time, and
`read_records` gives the last writing of each.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ostension.errors import DataError

LOG_NAME = "log.jsonl"
MEASURED = ("step", "evaluation")
LATEST_TIME = 253_402_300_800.0  # the year 10,000, where calendars end


class Tracker(Protocol):
    """Somebody who watches a run: opened once, given every record, closed once whatever happened."""

    def open(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """The run begins (or goes on): its folder, and what is known of it (config, steps, versions)."""

    def write(self, record: Mapping[str, Any]) -> None:
        """One record, with at least `kind` and `step`."""

    def close(self) -> None:
        """Nothing more will come."""


class RunLog:
    """The JSON lines file of a run and its trackers.

    A record that cannot be written (a full disk) is reported once on stderr and does not end the run. Neither does a
    tracker that fails: it is told on stderr, gets no more records, and the file and the other trackers go on.
    """

    def __init__(self, folder: Path, trackers: Sequence[Tracker] = (), facts: Mapping[str, Any] | None = None):
        self.path = Path(folder) / LOG_NAME
        self.trackers = list(trackers)
        self._complained = False
        self._handle = open(self.path, "ab")
        self._end_torn_line()
        self._tell("open", Path(folder), dict(facts or {}))

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append one record and pass it on; non-finite numbers are written as the strings 'nan', 'inf', '-inf'."""
        record = {"kind": kind, "step": step, "time": round(time.time(), 3), **_finite(values)}
        try:
            self._handle.write(json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n")
            self._handle.flush()
        except OSError as problem:
            if not self._complained:
                print(f"ostension: warning: {self.path.name} cannot be written ({problem.strerror})", file=sys.stderr)
            self._complained = True
        self._tell("write", record)

    def close(self) -> None:
        """Close the file and the trackers."""
        self._tell("close")
        try:
            self._handle.close()
        except OSError:
            pass  # what a full disk kept in the buffer was reported when it was written

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tell(self, what: str, *arguments: Any) -> None:
        """Call a method of every tracker; those that fail are told and left out from now on."""
        for tracker in tuple(self.trackers):
            try:
                getattr(tracker, what)(*arguments)
            except Exception as problem:  # a tracker is a foreign program with a network behind it: anything can come
                self.trackers.remove(tracker)
                said = " ".join(f"{type(problem).__name__}: {problem}".split())
                print(
                    f"ostension: warning: the tracker {type(tracker).__name__} failed ({said[:300]}); "
                    "the run goes on without it",
                    file=sys.stderr, flush=True,
                )  # fmt: skip

    def _end_torn_line(self) -> None:
        # A process killed in the middle of a line leaves half of it; the next record must not be glued to that.
        if self._handle.tell():
            with open(self.path, "rb") as reader:
                reader.seek(-1, os.SEEK_END)
                if reader.read(1) != b"\n":
                    self._handle.write(b"\n")


class NoLog(RunLog):
    """What a process has instead that is not the one to write."""

    def __init__(self) -> None:
        self.trackers = []

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def read_records(path: str | os.PathLike, kinds: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """The records of a run, in order; of a measured step written twice (a resume), only the last.

    A log that is being written can be read at any moment: a line that is not complete yet is left out.

    Args:
        path: the run's folder, or its `log.jsonl`.
        kinds: give only these kinds.

    Raises:
        DataError: if there is no log, no line of it is a record, or a line other than a torn one is something else.
    """
    path = Path(path)
    path = path / LOG_NAME if path.is_dir() else path
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as problem:
        raise DataError(f"cannot be read: {problem.strerror}", source=path, expected="a run's log") from None
    records: list[dict[str, Any]] = []
    torn = 0
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            torn += bool(line.strip())
            continue  # empty, torn by a kill, or not complete yet
        if not _is_record(record):
            raise DataError("holds a line that is no record of a run", source=path, expected="JSON objects with kind and step")
        if record["kind"] == "resume":
            records = [old for old in records if old["kind"] not in MEASURED or old["step"] <= record["step"]]
        records.append(record)
    if torn and not records:
        raise DataError(f"none of its {torn} lines can be read", source=path, expected="one JSON object a line")
    wanted = None if kinds is None else set(kinds)
    return [record for record in records if wanted is None or record["kind"] in wanted]


def number(value: Any) -> float | None:
    """A measurement as a number, also one that was written as 'nan', 'inf' or '-inf'; None for anything else."""
    if isinstance(value, str) and value in ("nan", "inf", "-inf"):
        return float(value)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _is_record(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        return False
    step, written = value.get("step"), number(value.get("time", 0.0))
    return isinstance(step, int) and step >= 0 and written is not None and 0 <= written < LATEST_TIME


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
