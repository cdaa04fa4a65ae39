"""A run folder, read: what was run, how far it is, how it ended; also of a run that is being trained at this moment.

Nothing is written and nothing heavy imported. Whether a run lives is asked of the kernel (the lock of its folder), so that
one that was killed is not taken for one that runs.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ostension.errors import DataError
from ostension.files import is_locked, read_json
from ostension.runlog import LOG_NAME, number, read_records
from ostension.train.run_folder import CONFIG_NAME, FACTS_NAME

SITTINGS = ("start", "resume")
# Of a "step" record: what says where it is and not what was measured.
PLACES = ("kind", "step", "time", "samples_seen", "epoch", "eta_s")
AXES = ("step", "samples_seen", "time")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What the folder of a run says.

    Attributes:
        settings: the tree of `config.json`.
        facts: of `run.json`: versions, git state, machine, changes.
        records: of the log.
        running: whether a living process holds the folder.
    """

    folder: Path
    settings: Mapping[str, Any]
    facts: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    running: bool

    @property
    def status(self) -> str:
        """`running`, or how the last sitting ended: `finished`, `stopped`, `diverged`, `failed`, or `killed` without a word."""
        if self.running:
            return "running"
        last = next((record for record in reversed(self.records) if record["kind"] in ("end", *SITTINGS)), None)
        return str(last.get("status", "ended")) if last is not None and last["kind"] == "end" else "killed"

    @property
    def step(self) -> int:
        """Steps done, as far as the log says."""
        return self.records[-1]["step"] if self.records else 0

    @property
    def steps(self) -> int | None:
        """Steps of the whole run."""
        steps = self._setting("train", "steps")
        return steps if isinstance(steps, int) else None

    @property
    def model(self) -> str:
        """The name of the architecture."""
        return str(self._setting("model", "name") or "")

    @property
    def data(self) -> str:
        """The fingerprint of the data."""
        return str(self._setting("data", "fingerprint") or "")

    @property
    def last_time(self) -> float | None:
        """When the last record was written, in seconds since 1970."""
        return number(self.records[-1].get("time")) if self.records else None

    def _setting(self, part: str, name: str) -> Any:
        tree = self.settings.get(part)
        return tree.get(name) if isinstance(tree, Mapping) else None

    def of(self, *kinds: str) -> list[Mapping[str, Any]]:
        """The records of these kinds."""
        return [record for record in self.records if record["kind"] in kinds]

    def last(self, kind: str) -> Mapping[str, Any] | None:
        """The last record of a kind."""
        found = self.of(kind)
        return found[-1] if found else None

    @functools.cached_property
    def seconds(self) -> dict[int, float]:
        """Seconds of training, in all sittings and without the time between them, by step: 0 and that of each record."""
        total, before, found = 0.0, 0, {0: 0.0}
        for record in self.of("step"):
            total += (record["step"] - before) * (number(record.get("step_s")) or 0.0)
            before = record["step"]
            found[before] = total
        return found

    @functools.cached_property
    def samples(self) -> dict[int, float]:
        """Samples seen, by step: 0 and that of each "step" record."""
        found = {record["step"]: number(record.get("samples_seen")) for record in self.of("step")}
        return {0: 0.0, **{step: value for step, value in found.items() if value is not None}}

    def place(self, step: int, axis: str) -> float | None:
        """Where a step is on one of `AXES`; None where the log does not say.

        An evaluation stands between two "step" records: what it lies at is interpolated.
        """
        if axis == "step":
            return float(step)
        return _between(self.samples if axis == "samples_seen" else self.seconds, step)

    def curve(self, kind: str, name: str, axis: str = "step") -> list[tuple[float, float]]:
        """A measurement of the "step" or "evaluation" records as points (place, value); nan and inf are among the values."""
        points = []
        for record in self.of(kind):
            x, y = self.place(record["step"], axis), number(record.get(name))
            if x is not None and y is not None:
                points.append((x, y))
        return points


def open_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        DataError: if it is none, or one of its files cannot be read.
    """
    if not is_run(folder):
        what = "is no run folder" if folder.is_dir() else "no such folder"
        raise DataError(what, source=folder, expected=f"a folder with {CONFIG_NAME} and {LOG_NAME}")
    # The lock first: a run that ends while it is read is then shown as running, never as killed.
    running = is_locked(folder)
    settings, facts = read_json(folder / CONFIG_NAME), read_json(folder / FACTS_NAME)
    for name, tree in ((CONFIG_NAME, settings), (FACTS_NAME, facts)):
        if not isinstance(tree, dict):
            raise DataError("is not what a run writes", source=folder / name, expected="a JSON object")
    # Both files come before the log does.
    records = read_records(folder) if (folder / LOG_NAME).exists() else []
    return Run(folder=folder, settings=settings, facts=facts, records=records, running=running)


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's, whole or not. (A model's folder has a `config.json` too.)"""
    return (folder / FACTS_NAME).is_file() or (folder / LOG_NAME).is_file()


def find_runs(folder: Path) -> list[Path]:
    """The run folders at and below a folder, sorted; what lies inside a run is not looked at.

    Raises:
        DataError: if there is no such folder.
    """
    if not folder.is_dir():
        raise DataError("no such folder", source=folder, expected="run folders, or folders that hold some")
    found = []
    for path, below, _ in os.walk(folder):
        if is_run(Path(path)):
            found.append(Path(path))
            below.clear()
        below[:] = [name for name in below if not name.startswith(".")]
    return sorted(found)


def checkpoints(run: Run) -> list[dict[str, Any]]:
    """The checkpoints: name, step, bytes; `best` marks the best by the evaluation, `newest` what LATEST names."""
    folder = run.folder / "checkpoints"
    pointer = folder / "LATEST"
    newest = pointer.read_text(encoding="utf-8", errors="replace").strip() if pointer.is_file() else None
    found: list[dict[str, Any]] = []
    for path in sorted(folder.glob("step_*")) if folder.is_dir() else []:
        if not path.name.removeprefix("step_").isdecimal():
            continue  # being written, or set aside as damaged
        try:
            size = sum(file.stat().st_size for file in path.iterdir())
        except FileNotFoundError:
            continue  # the run has just deleted it
        step = int(path.name.removeprefix("step_"))
        found.append({"name": path.name, "step": step, "bytes": size, "newest": path.name == newest, "best": False})
    if found:
        best = _best(folder / found[-1]["name"])
        for one in found:
            one["best"] = best is not None and one["step"] == best["step"]
    return found


def best(run: Run) -> dict[str, Any] | None:
    """Step and value of the best evaluation, as the newest checkpoint has it."""
    found = checkpoints(run)
    return _best(run.folder / "checkpoints" / found[-1]["name"]) if found else None


def rejects(run: Run) -> dict[str, int]:
    """Samples that could not be used, by reason, as last logged."""
    last = run.last("step")
    counts = last.get("rejects", {}) if last is not None else {}
    if not isinstance(counts, dict):
        return {}
    return dict(Counter({reason: count for reason, count in counts.items() if isinstance(count, int)}).most_common())


def sittings(run: Run) -> list[dict[str, Any]]:
    """The sittings in order: how each began, from which step to which, how it ended, what was changed for it."""
    found: list[dict[str, Any]] = []
    for record in run.records:
        if record["kind"] in SITTINGS:
            found.append({
                "began": record["kind"], "from": record["step"], "to": record["step"], "time": number(record.get("time")),
                "ended": "killed", "changes": [], "skipped": 0, "warnings": [],
            })  # fmt: skip
        if not found:
            continue
        now = found[-1]
        now["to"] = max(now["to"], record["step"])
        if record["kind"] == "change":
            now["changes"].append({name: record.get(name) for name in ("key", "old", "new")})
        elif record["kind"] == "skip":
            now["skipped"] += 1
        elif record["kind"] == "warning":
            now["warnings"].append(str(record.get("message", "")))
        elif record["kind"] == "end":
            now["ended"] = str(record.get("status", "ended"))
            if "message" in record:
                now["message"] = str(record["message"])
    if found and run.running:
        found[-1]["ended"] = "running"
    return found


def measurements(record: Mapping[str, Any] | None) -> dict[str, float]:
    """The numbers that a record measured, in its order."""
    found = {name: number(value) for name, value in (record or {}).items() if name not in PLACES}
    return {name: value for name, value in found.items() if value is not None}


def _best(checkpoint: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((checkpoint / "state.json").read_text(encoding="utf-8")).get("best")
    except (OSError, ValueError, AttributeError):
        return None  # deleted by the run at this moment, or damaged: `--resume` has the word on that
    return found if isinstance(found, dict) else None


def _between(known: Mapping[int, float], step: int) -> float | None:
    """The value at a step, interpolated between the two known ones around it; None past the last one.

    Args:
        known: in rising order of steps, from 0 on.
    """
    if step in known:
        return known[step]
    steps = list(known)
    place = bisect.bisect(steps, step)
    if place == len(steps):
        return None
    below, above = steps[place - 1], steps[place]
    return known[below] + (known[above] - known[below]) * (step - below) / (above - below)
