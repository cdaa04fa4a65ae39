"""Look at training runs: list, show, compare and plot them, also while they are trained."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ostension.errors import OstensionError, UsageError

if TYPE_CHECKING:
    from ostension.train.run_reader import Run

Axis = Literal["step", "samples_seen", "time"]
# Shown first and by these names; everything else that was measured follows.
HEADLINES = ("loss", "image_accuracy", "text_accuracy", "temperature", "pairs_per_s", "idle_share")


@dataclasses.dataclass(frozen=True, kw_only=True)
class List:
    """List the runs in folders: how each stands, how far it is, what it measured last.

    A run that cannot be read is told on stderr; the exit status is then 1.

    Args:
        folders: Run folders, or folders that hold some at any depth.
        json: Print one JSON object a line instead of a table.
        csv: Print CSV instead of a table.
    """

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional] = (Path("."),)
    json: bool = False
    csv: bool = False

    def run(self) -> int:
        from ostension.train.run_reader import find_runs, open_run

        _one_form(self.json, self.csv)
        rows, broken = [], 0
        found = list(dict.fromkeys(path for folder in self.folders for path in find_runs(folder)))
        for path in found:
            try:
                rows.append(_summary(open_run(path)))
            except OstensionError as problem:
                print(f"ostension: {problem}", file=sys.stderr)
                broken += 1
        if not found:
            print(f"ostension: no runs below {', '.join(map(str, self.folders))}", file=sys.stderr)
        if self.json:
            for row in rows:
                print(json.dumps(_json(row)))
        elif self.csv:
            from ostension.cli._tables import csv_table

            head = ["run", "status", "step", "steps", "samples_seen", "loss", "evaluation", "value", "age_s", "model", "data"]
            print(csv_table(head, [[_json(row)[name] for name in head] for row in rows]))
        elif rows:
            print(_list_table(rows))
        return 1 if broken else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Show:
    """Show a run: settings, versions, sittings, last measurements, best evaluation, checkpoints, rejects.

    Args:
        folder: The run folder.
        json: Print one JSON object instead of lines.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    json: bool = False

    def run(self) -> int:
        from ostension.train import run_reader as reader

        run = reader.open_run(self.folder)
        tree: dict[str, Any] = {
            **_summary(run),
            "seconds": run.seconds.get(step["step"]) if (step := run.last("step")) else None,
            "measured": reader.measurements(step),
            "evaluated": reader.measurements(run.last("evaluation")),
            "best": reader.best(run),
            "sittings": reader.sittings(run),
            "checkpoints": reader.checkpoints(run),
            "rejects": reader.rejects(run),
            "facts": dict(run.facts),
            "settings": dict(run.settings),
        }
        print(json.dumps(_json(tree), indent=2) if self.json else "\n".join(_show_lines(tree)))
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare:
    """Compare runs: the settings in which they differ, then their measurements at the same place and at the end.

    The place is the last one that all of them have reached: the same step, the same samples seen or the same seconds of
    training.

    Args:
        folders: Two or more run folders.
        by: What "the same place" means.
        json: Print one JSON object instead of tables.
        csv: Print CSV instead of tables.
    """

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    by: Axis = "step"
    json: bool = False
    csv: bool = False

    def run(self) -> int:
        from ostension.cli._tables import csv_table, text_table
        from ostension.train import run_comparison as comparison

        _one_form(self.json, self.csv)
        runs = _opened(self.folders)
        if len(runs) < 2:
            raise UsageError("one run cannot be compared", expected="two or more different run folders")
        names = _names(runs)
        place = comparison.last_common(runs, self.by)
        settings = comparison.differing([run.settings for run in runs])
        makers = comparison.differing([comparison.made_by(run) for run in runs])
        here = [comparison.measured_at(run, place, self.by) for run in runs]
        end = [comparison.measured_last(run) for run in runs]
        if self.json:
            tree = {"runs": names, "settings": settings, "made_by": makers, "by": self.by, "place": place}
            print(json.dumps(_json({**tree, "there": dict(zip(names, here, strict=True)),
                                    "end": dict(zip(names, end, strict=True))}), indent=2))  # fmt: skip
            return 0
        parts = [("settings", settings), ("made_by", makers)]
        parts += [(where, {name: [one.get(name) for one in found] for name in _ordered(found)})
                  for where, found in (("there", here), ("end", end))]  # fmt: skip
        if self.csv:
            cells = [[part, key, *values] for part, rows in parts for key, values in rows.items()]
            print(csv_table(["part", "name", *names], cells))
            return 0
        same = {"step": f"step {place:.0f}", "samples_seen": f"{place:,.0f} samples", "time": f"{place:.0f} s of training"}
        titles = {
            "settings": "settings that differ", "made_by": "made by", "there": f"at {same[self.by]}", "end": "at the end",
        }  # fmt: skip
        tables = [
            text_table([titles[part], *names], [[key, *map(_shown, values)] for key, values in rows.items()])
            for part, rows in parts if rows and not (part == "end" and here == end)
        ]  # fmt: skip
        if not settings:
            tables.insert(0, "no setting differs")
        print("\n\n".join(tables))
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plot:
    """Plot the curves of one or more runs: loss, accuracies, evaluations, temperature, learning rate, speed, idle share.

    Args:
        folders: Run folders, at most eight.
        out: The page to write: .html (one file, works offline) or .png (needs matplotlib).
        by: What the curves are drawn over.
    """

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    by: Axis = "step"

    def run(self) -> int:
        from ostension.evals.run_page import MAX_RUNS, write_page

        if self.out.suffix.lower() not in (".html", ".png"):
            raise UsageError(f"--out is {self.out}", expected="a name that ends with .html or .png")
        runs = _opened(self.folders)
        if not 1 <= len(runs) <= MAX_RUNS:
            raise UsageError(f"{len(runs)} runs", expected=f"one to {MAX_RUNS}, which can still be told apart")
        write_page(self.out, runs, self.by, _names(runs))
        print(self.out)
        return 0


def _opened(folders: Sequence[Path]) -> list[Run]:
    from ostension.train.run_reader import open_run

    return [open_run(folder) for folder in dict.fromkeys(folders)]


def _names(runs: Sequence[Run]) -> list[str]:
    """The folders' names, or the paths where two are called the same."""
    names = [run.folder.absolute().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]


def _summary(run: Run) -> dict[str, Any]:
    """A run as one row."""
    from ostension.train.run_reader import measurements

    step, evaluation = run.last("step"), run.last("evaluation")
    evaluated = measurements(evaluation)
    headline = next(iter(evaluated.items()), (None, None))
    return {
        "run": str(run.folder),
        "status": run.status,
        "step": run.step,
        "steps": run.steps,
        "samples_seen": round(run.samples.get(step["step"], 0)) if step else 0,
        "loss": measurements(step).get("loss"),
        "evaluation": headline[0],
        "value": headline[1],
        "age_s": None if run.last_time is None else round(time.time() - run.last_time),
        "model": run.model,
        "data": run.data[:12],
    }


def _list_table(rows: Sequence[Mapping[str, Any]]) -> str:
    from ostension.cli._tables import text_table

    head = ["run", "status", "model", "data", "step", "samples", "loss", "evaluation", "last record"]
    cells = []
    for row in rows:
        evaluation = "" if row["evaluation"] is None else f"{row['evaluation']} {_shown(row['value'])}"
        progress = f"{row['step']:,}" + (f" of {row['steps']:,}" if row["steps"] else "")
        cells.append([
            row["run"], row["status"], row["model"], row["data"], progress, f"{row['samples_seen']:,}", _shown(row["loss"]),
            evaluation, "" if row["age_s"] is None else f"{ago(row['age_s'])} ago",
        ])  # fmt: skip
    return text_table(head, cells, left=4)


def _show_lines(tree: Mapping[str, Any]) -> list[str]:
    from ostension.train.run_comparison import leaves_of

    facts, age = tree["facts"], tree["age_s"]
    git = facts.get("git")
    lines = [
        f"{tree['run']}: {tree['status']}, step {tree['step']:,}" + (f" of {tree['steps']:,}" if tree["steps"] else ""),
        *([f"last record {ago(age)} ago"] if age is not None else []),
        *([f"{tree['samples_seen']:,} samples in {ago(tree['seconds'])} of training"] if tree["seconds"] else []),
    ]
    lines += _block("measured last", {**_headlines(tree["measured"]), **tree["evaluated"]})
    if tree["best"]:
        lines += _block("best evaluation", tree["best"])
    lines += ["", "sittings"]
    for sitting in tree["sittings"]:
        when = "" if sitting["time"] is None else f" {datetime.datetime.fromtimestamp(sitting['time']):%Y-%m-%d %H:%M}"
        lines.append(f"  {sitting['began']}{when}, step {sitting['from']:,} to {sitting['to']:,}, {sitting['ended']}")
        lines += [f"    {sitting['message']}"] if "message" in sitting else []
        lines += [f"    {one['key']}: {_shown(one['old'])} -> {_shown(one['new'])}" for one in sitting["changes"]]
        lines += [f"    {sitting['skipped']} steps skipped: not finite"] if sitting["skipped"] else []
        lines += [f"    warning: {message}" for message in sitting["warnings"]]
    lines += ["", "checkpoints"]
    for one in tree["checkpoints"]:
        marks = "".join(f", {mark}" for mark in ("newest", "best") if one[mark])
        lines.append(f"  {one['name']}  {one['bytes'] / 1e6:,.1f} MB{marks}")
    if not tree["checkpoints"]:
        lines.append("  none")
    if tree["rejects"]:
        lines += _block("samples that could not be used", tree["rejects"])
    made: dict[str, Any] = {name: facts.get(name) for name in ("started", "config_hash", "processor", "threads")}
    made["git"] = f"{git.get('commit')}{', changed' if git.get('changed') else ''}" if isinstance(git, dict) else None
    versions, command = facts.get("versions"), facts.get("command")
    if isinstance(versions, dict):
        made["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    made["command"] = " ".join(map(str, command)) if isinstance(command, list) else None
    lines += _block("made by", {name: value for name, value in made.items() if value})
    return lines + _block("settings", leaves_of(tree["settings"]))


def _block(title: str, values: Mapping[str, Any]) -> list[str]:
    if not values:
        return []
    width = max(map(len, values))
    return ["", title, *(f"  {name.ljust(width)}  {_shown(value)}" for name, value in values.items())]


def _headlines(measured: Mapping[str, float]) -> dict[str, float]:
    return {name: measured[name] for name in (*HEADLINES, *measured) if name in measured}


def _ordered(found: Sequence[Mapping[str, float]]) -> list[str]:
    names = dict.fromkeys(name for one in found for name in one)
    first = [name for name in ("step", *HEADLINES) if name in names]
    return first + [name for name in names if name not in first]


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and 1e4 <= abs(value) < 1e15 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else value if isinstance(value, str) else json.dumps(value)


def _json(value: Any) -> Any:
    """JSON has no nan: such numbers become the strings that the log has."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {name: _json(item) for name, item in value.items()}
    return [_json(item) for item in value] if isinstance(value, (list, tuple)) else value


def ago(seconds: float) -> str:
    """A length of time in its largest unit, two for hours: 45 s, 12 min, 3 h 20 min, 5 d."""
    seconds = max(0, round(seconds))
    if seconds < 100:
        return f"{seconds} s"
    minutes = seconds // 60
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d"


def _one_form(as_json: bool, as_csv: bool) -> None:
    if as_json and as_csv:
        raise UsageError("--json and --csv are two forms", fix="leave one out")


COMMAND = {"ls": List, "show": Show, "compare": Compare, "plot": Plot}
