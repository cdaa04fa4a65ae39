"""Train a grid within a budget, the cheapest runs first, and fit the law to what came. A rerun goes on where one stopped.

The folder of a grid holds `plan.json` (decided once: the grid, samples seen, threads), `points/NAME/` (a run folder each, with
`point.json` once it is measured), and `scaling.json` and `report.html`, written anew after every point. A finished point is
kept, one that was killed resumes from its checkpoint, one that diverged is told and left out. The budget is wall time over all
sittings: a point that would not fit into what is left is not begun.
"""

from __future__ import annotations

import dataclasses
import math
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ostension import files, runtime
from ostension.config import to_tree
from ostension.errors import ConfigError, DataError, DivergenceError
from ostension.evals.metrics import wilson_interval
from ostension.evals.scaling_law import MIN_PLACES
from ostension.evals.scaling_points import RECORD_NAME, read_points
from ostension.evals.scaling_report import as_lines, as_page, fitted
from ostension.recipes._scaling_grid import GridConfig, GridPoint, batch_size_of, points_of
from ostension.runlog import Tracker, read_records
from ostension.train.run_reader import is_run, open_run

PLAN, POINT, POINTS, REPORT = "plan.json", "point.json", "points", "report.html"
TRIAL_STEPS = 9
EVALUATION_S = 4.0  # a guess, until a point has told
PLANNED = 0.85  # share of the budget that the samples are chosen for: the machine may be slower later than in the trial
SHARE = re.compile(r"(top\d+|mean_per_class|(image_to_text|text_to_image)_r\d+)$")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What is asked of a grid.

    Attributes:
        minutes: of wall time for all points, in all sittings.
        threads: of the computation; the plan keeps them, for sums in another order are other bits.
        seed: of weights, order, captions and views in every point.
        smoke: the recipe's small form.
    """

    minutes: float
    threads: int | None = None
    seed: int = 0
    smoke: bool = False

    def __post_init__(self):
        if not self.minutes > 0:
            raise ConfigError(f"--minutes is {self.minutes:g}", expected="more than 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridResult:
    """How a sitting ended.

    Attributes:
        record: what `scaling.json` holds.
        left: points that are not done, for want of time or because of a signal.
    """

    record: Mapping[str, Any]
    left: tuple[str, ...]
    signal: int | None = None


def run_grid(grid: GridConfig, config: RunConfig, folder: Path, trackers: Sequence[Tracker] = ()) -> GridResult:
    """Do what is left of a grid in `folder`, as far as the budget goes.

    Raises:
        ConfigError: if `folder` holds another grid, or for settings that cannot be meant.
        DataError: if it is in use or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise DataError(f"cannot be used: {problem.strerror}", source=folder, expected="a folder that can be written") from None
    with files.folder_lock(folder):
        plan = _plan(grid, config, folder)
        runtime.set_threads(plan["threads"])
        points = points_of(grid, plan["samples"], smoke=config.smoke, seed=config.seed)
        left, signal = [], None
        for number, point in enumerate(points, 1):
            done = _done(folder, point)
            if done is None and signal is None:
                need = _seconds_needed(folder, points, point, plan)
                spent = _seconds_spent(folder, points, plan)
                if spent + need > 60 * config.minutes:
                    left.append(point.name)
                    continue
                _say(
                    f"{number} of {len(points)}: {point.name}, {point.steps} steps, {point.compute:.3g} GMAC, "
                    f"about {need:.0f} s; {spent / 60:.1f} of {config.minutes:g} minutes are spent"
                )
                signal = _train_point(folder, point, trackers)
                if signal is None:
                    _write_record(folder, grid, config, plan, points)
            if signal is not None:
                left.append(point.name)
        record = _write_record(folder, grid, config, plan, points)
        return GridResult(record=record, left=tuple(left), signal=signal)


def planned(grid: GridConfig, config: RunConfig, folder: Path) -> list[tuple[GridPoint, float]]:
    """The points with the seconds that each is expected to take, without training any but for a trial of the speed."""
    with files.folder_lock(folder):
        plan = _plan(grid, config, folder)
        runtime.set_threads(plan["threads"])
        points = points_of(grid, plan["samples"], smoke=config.smoke, seed=config.seed)
        return [(point, _seconds_needed(folder, points, point, plan)) for point in points]


def _plan(grid: GridConfig, config: RunConfig, folder: Path) -> dict[str, Any]:
    """What was decided in the first sitting, or is decided now.

    Raises:
        ConfigError: if it was decided for another grid.
    """
    path = folder / PLAN
    asked = {"grid": to_tree(grid), "seed": config.seed, "smoke": config.smoke}
    if path.exists():
        plan = files.read_json(path)
        if not isinstance(plan, dict) or plan.get("asked") != asked:
            raise ConfigError("holds another grid", source=path, fix="use the same grid and flags to go on, or another folder")
        if config.threads not in (None, plan["threads"]):
            raise ConfigError(f"--threads is {config.threads}", source=path, expected=f"{plan['threads']}, as it was begun")
        return plan
    started = time.perf_counter()
    threads = runtime.set_threads(config.threads)
    _say("a short trial of the speed of each size")
    # Data of any amount costs the same a step, so the last, which is the whole of it, stands for all.
    trial = points_of(dataclasses.replace(grid, samples=(1,), ratios=None), (1,), smoke=config.smoke, seed=config.seed)
    whole = list(grid.data)[-1]
    step_s = {point.size: _seconds_per_step(point) for point in trial if point.data == whole}
    batch_size = batch_size_of(trial[0].pretraining)
    if grid.samples is None:
        assert grid.ratios is not None
        num_points = len(grid.sizes) * len(grid.data) * len(grid.ratios)
        budget = PLANNED * 60 * config.minutes - (time.perf_counter() - started) - EVALUATION_S * num_points
        per_sample = len(grid.data) * sum(step_s.values()) / batch_size
        unit = budget / (per_sample * sum(grid.ratios))
        samples = [round(max(0.0, unit) * ratio / batch_size) * batch_size for ratio in grid.ratios]
        if samples[0] < TRIAL_STEPS * batch_size:
            raise ConfigError(
                f"--minutes is {config.minutes:g}: too short for {num_points} points, the smallest would see "
                f"{samples[0]} samples", expected=f"at least {TRIAL_STEPS} batches of {batch_size} for each",
            )  # fmt: skip
    else:
        samples = list(grid.samples)
    points_of(grid, samples, smoke=config.smoke, seed=config.seed)  # what cannot be meant is told before it is a plan
    plan = {
        "asked": asked, "samples": samples, "threads": threads, "step_s": step_s,
        "trial_s": round(time.perf_counter() - started, 1),
    }  # fmt: skip
    files.write_json(path, plan)
    return plan


def _seconds_per_step(point: GridPoint) -> float:
    """The best interval of a short run, without the first one, which pays for caches and first allocations."""
    settings = {"train.steps": TRIAL_STEPS, "train.log_every": TRIAL_STEPS // 3, "train.evaluate_every": 0}
    trial = dataclasses.replace(point.pretraining, evaluation=None).changed(settings)
    with tempfile.TemporaryDirectory() as folder:
        result = trial.run(folder)
        if result.status == "stopped":
            raise KeyboardInterrupt
        return min(float(record["step_s"]) for record in read_records(folder, kinds=("step",))[1:])


def _train_point(folder: Path, point: GridPoint, trackers: Sequence[Tracker]) -> int | None:
    """Train or resume a point, measure it, write its record; the signal that stopped it, if one did."""
    place = _place(folder, point)
    about = {
        "name": point.name, "size": point.size, "data": point.data, "steps": point.steps, "samples_seen": point.samples_seen,
        "gmac_per_pair": point.gmac_per_pair, "compute": point.compute,
    }  # fmt: skip
    earlier, started = _seconds_trained(place), time.perf_counter()
    try:
        result = point.pretraining.run(place, trackers=trackers)
    except DivergenceError as problem:
        _say(f"{point.name} diverged and is left out: {problem}")
        files.write_json(place / POINT, {**about, "status": "diverged", "message": str(problem)})
        return None
    if result.status == "stopped":
        return result.signal
    run = open_run(place)
    evaluation = run.last("evaluation")
    assert evaluation is not None, "the end of a run is evaluated"
    measured = {name: value for name, value in evaluation.items() if name not in ("kind", "step", "time")}
    errors = {name: 1 - value for name, value in measured.items() if SHARE.search(name)}
    files.write_json(place / POINT, {
        **about,
        "status": "finished",
        "parameters": sum(_sizes(place)),
        "config_hash": run.facts["config_hash"],
        "data_fingerprint": run.data,
        "errors": errors,
        "intervals": {name: _interval(1 - error, name, measured) for name, error in errors.items()},
        "measured": measured,
        "train_s": round(_seconds_trained(place), 2),
        # All that it cost: building, training, saving, measuring; of earlier sittings the training.
        "seconds": round(earlier + time.perf_counter() - started, 2),
    })  # fmt: skip
    shutil.rmtree(place / "checkpoints", ignore_errors=True)  # the model is there; a grid of checkpoints fills a disk
    return None


def _sizes(place: Path) -> list[int]:
    """Numbers in each tensor of the point's model."""
    with safe_open(place / "model" / "model.safetensors", framework="numpy") as weights:
        names = list(weights.keys())  # it is no mapping and cannot be walked over itself
        return [math.prod(weights.get_slice(name).get_shape()) for name in names]


def _interval(share: float, name: str, measured: Mapping[str, Any]) -> list[float] | None:
    """The 95 % interval of an error by Wilson, where the evaluation says how many samples it was measured on."""
    task, _, metric = name.rpartition("/")
    count = measured.get(f"{task}/texts" if metric.startswith("text_to_image") else f"{task}/samples")
    if not isinstance(count, int) or count < 1:
        return None
    found = wilson_interval(round(share * count), count)
    return [1 - found.high, 1 - found.low]


def _write_record(
    folder: Path, grid: GridConfig, config: RunConfig, plan: Mapping[str, Any], points: Sequence[GridPoint]
) -> dict[str, Any]:
    """`scaling.json` and the page, from the points that are done."""
    done = [found for point in points if (found := _done(folder, point)) is not None]
    finished = [point for point in done if point["status"] == "finished"]
    known = {point["name"] for point in done}
    record: dict[str, Any] = {
        "format": 1,
        "target": f"errors.{grid.targets[0]}",
        "points": finished,
        "diverged": [point["name"] for point in done if point["status"] == "diverged"],
        "left": [point.name for point in points if point.name not in known],
        "minutes": {"budget": config.minutes, "spent": round(_seconds_spent(folder, points, plan) / 60, 2)},
        "plan": plan,
        "machine": {"processor": runtime.cpu_name(), "threads": plan["threads"]},
        "versions": runtime.versions(),
        "git": runtime.git_state(),
        "fits": {},
    }
    files.write_json(folder / RECORD_NAME, record)
    for target in grid.targets:
        try:
            runs = read_points([folder], error=f"errors.{target}")
            cheaper = runs.compute < runs.compute.max()
            tree = fitted(runs, check=int(cheaper.sum()) >= MIN_PLACES)
            record["fits"][target] = tree
            if target == grid.targets[0]:
                files.write_text(folder / REPORT, as_page(runs, tree))
        except (DataError, ConfigError) as problem:
            record["fits"][target] = {"problem": str(problem)}
    files.write_json(folder / RECORD_NAME, record)
    return record


def record_lines(record: Mapping[str, Any]) -> list[str]:
    """What came, for people: the points, then the law of each target."""
    lines = []
    targets = list(record["fits"])
    head = f"{'point':<26}{'GMAC a pair':>12}{'samples':>10}{'compute':>11}"
    lines.append(head + "".join(f"{'1 - ' + name:>36}" for name in targets))
    for point in record["points"]:
        row = f"{point['name']:<26}{point['gmac_per_pair']:>12.4g}{point['samples_seen']:>10,}{point['compute']:>11.3g}"
        for target in targets:
            span = point["intervals"].get(target)
            shown = f"{point['errors'][target]:.3f}" + (f" ({span[0]:.3f} to {span[1]:.3f})" if span else "")
            row += f"{shown:>36}"
        lines.append(row)
    for target, tree in record["fits"].items():
        lines += ["", f"== {target}"]
        lines += [tree["problem"]] if "problem" in tree else as_lines(tree)
    return lines


def _place(folder: Path, point: GridPoint) -> Path:
    return folder / POINTS / point.name


def _done(folder: Path, point: GridPoint) -> dict[str, Any] | None:
    """The record of a point that is finished or diverged."""
    path = _place(folder, point) / POINT
    return files.read_json(path) if path.is_file() else None


def _seconds_needed(folder: Path, points: Sequence[GridPoint], point: GridPoint, plan: Mapping[str, Any]) -> float:
    """What is left of a point, by the slowest that its size was so far, and what measuring took so far."""
    done = [(other, found) for other in points if (found := _done(folder, other)) and found["status"] == "finished"]
    step_s = [found["train_s"] / other.steps for other, found in done if other.size == point.size]
    around = [max(0.0, found["seconds"] - found["train_s"]) for other, found in done if other.size == point.size]
    place = _place(folder, point)
    steps = point.steps - (open_run(place).step if is_run(place) else 0)
    return steps * max([*step_s, float(plan["step_s"][point.size])]) + max(around, default=EVALUATION_S)


def _seconds_spent(folder: Path, points: Sequence[GridPoint], plan: Mapping[str, Any]) -> float:
    """Of all sittings: the trial, what is done, and what was trained of the rest."""
    total = float(plan["trial_s"])
    for point in points:
        done, place = _done(folder, point), _place(folder, point)
        if done is not None and done["status"] == "finished":
            total += done["seconds"]
        else:
            total += _seconds_trained(place)
    return total


def _seconds_trained(place: Path) -> float:
    """What the log of a run says, in all its sittings; 0 where there is none yet."""
    return max(open_run(place).seconds.values()) if is_run(place) else 0.0


def _say(text: str) -> None:
    print(f"scaling: {text}", file=sys.stderr, flush=True)
