"""Scaling laws: train a grid of small runs within a budget, fit error against compute, predict larger runs."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ostension.errors import UsageError

if TYPE_CHECKING:
    from ostension.recipes._scaling_grid import GridConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """Fit error = coefficient x compute^slope to runs, with bootstrap intervals, and predict with it.

    Two rules, as in the OpenCLIP study: "frontier" lays a line through the best run of each of five equal bins of log
    compute, "least-squares" through all runs. "of the law" is where the line may lie, "of a run" where one more run may
    fall.

    Examples:
      ostension scaling fit runs/grid --check
      ostension scaling fit points.csv --compute gmac*samples --accuracy top1 --at 190.97*3.4e10

    Args:
        files: Points as .csv, .tsv, .json or .jsonl, or the folder of a grid.
        compute: Column of the compute, or several with * between; JSON has inner names with dots.
        error: Column of the error, a share.
        accuracy: Column of an accuracy, instead: the error is 1 - accuracy.
        where: Take only rows that meet KEY=VALUE or KEY!=VALUE.
        rule: One rule instead of both.
        at: Computes to predict at: numbers, or numbers with * between.
        check: Also predict the dearest run from the others.
        level: Of the intervals.
        resamples: Draws of the bootstrap.
        seed: Of the draws.
        plot: Draw runs, laws and bands on this .html page.
        json: Print one JSON object instead of lines.
    """

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    compute: str | None = None
    error: str | None = None
    accuracy: str | None = None
    where: tuple[str, ...] = ()
    rule: Literal["both", "frontier", "least-squares"] = "both"
    at: tuple[str, ...] = ()
    check: bool = False
    level: float = 0.95
    resamples: int = 2000
    seed: int = 0
    plot: Path | None = None
    json: bool = False

    def __post_init__(self):
        if not self.files:
            raise UsageError("no file is named", expected="points, such as points.csv")
        if self.error is not None and self.accuracy is not None:
            raise UsageError("--error and --accuracy are both given", fix="leave one out")
        if self.resamples < 1:
            raise UsageError(f"--resamples is {self.resamples}", expected="1 or more")
        if not 0 < self.level < 1:
            raise UsageError(f"--level is {self.level:g}", expected="between 0 and 1")
        if self.plot is not None and self.plot.suffix.lower() != ".html":
            raise UsageError(f"--plot is {self.plot}", expected="a name that ends with .html")

    def run(self) -> int:
        from ostension import files
        from ostension.evals.scaling_law import RULES
        from ostension.evals.scaling_points import parse_compute, read_points
        from ostension.evals.scaling_report import as_lines, as_page, fitted

        at = [parse_compute(text) for text in self.at]
        points = read_points(
            self.files, compute=self.compute, error=self.error, accuracy=self.accuracy, where=self.where
        )
        rules = RULES if self.rule == "both" else (self.rule,)
        tree = fitted(
            points, rules=rules, at=at, check=self.check, level=self.level, resamples=self.resamples, seed=self.seed
        )
        print(json.dumps(tree, indent=2) if self.json else "\n".join(as_lines(tree)))
        if self.plot is not None:
            files.write_text(self.plot, as_page(points, tree))
            print(f"ostension: wrote {self.plot}", file=sys.stderr)
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Train a grid of model sizes x samples seen x data sizes within a budget, and fit the law to it.

    The cheapest runs come first; the law of the cheaper ones is compared with what the dearest came to. Every point is a
    run folder below FOLDER/points; FOLDER/scaling.json holds all of them and the laws, FOLDER/report.html draws the first.
    The same command again goes on: finished points are kept, a killed one resumes. With more --minutes it does what
    did not fit before.

    Without --grid and --recipe it is small models of the demo's family on the embedded emoji.

    Examples:
      ostension scaling run runs/grid --minutes 20 --threads 1
      ostension scaling run runs/mine --minutes 600 --grid grid.json
      ostension scaling run runs/other --minutes 90 --recipe NAME --data "cc/{000..331}.tar" --zero-shot TASK=DATA

    Args:
        folder: Folder of the grid.
        minutes: Budget of wall time, all sittings together.
        grid: A JSON file with recipe, sizes, data, samples or ratios, targets.
        recipe: Instead: this recipe at half, three quarters and all of its widths.
        data: Pairs for a recipe that brings none.
        zero_shot: What to measure at the end of each point: a folder by class, TASK=DATA or TASK@SPLIT=DATA.
        pairs: Held-out pairs to measure retrieval on.
        threads: Threads for the computation; by default OMP_NUM_THREADS, or all cores.
        seed: Of everything random, in every point.
        smoke: A grid of seconds, or the recipe's small form, which only shows that it runs.
        dry_run: Print the points, their compute and the seconds that each may take, and stop.
        json: Print one JSON object instead of lines.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    minutes: float = 20.0
    grid: Path | None = None
    recipe: str | None = None
    data: str | None = None
    zero_shot: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    threads: int | None = None
    seed: int = 0
    smoke: bool = False
    dry_run: bool = False
    json: bool = False

    def __post_init__(self):
        if self.grid is not None and self.recipe is not None:
            raise UsageError("--grid and --recipe are both given", fix="name the recipe in the grid's file")
        if self.recipe is None and (self.data or self.zero_shot or self.pairs):
            raise UsageError("--data, --zero-shot and --pairs belong to --recipe", fix="put them into the grid's file")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"--threads is {self.threads}", expected="1 or more")

    def run(self) -> int:
        import signal

        from ostension.recipes._scaling_run import RunConfig, planned, record_lines, run_grid
        from ostension.train.progress import Progress

        grid = self._grid()
        # The default grid has a small form of its own.
        smoke = self.smoke and (self.grid is not None or self.recipe is not None)
        config = RunConfig(minutes=self.minutes, threads=self.threads, seed=self.seed, smoke=smoke)
        if self.dry_run:
            rows = [
                {"name": point.name, "gmac_per_pair": point.gmac_per_pair, "samples_seen": point.samples_seen,
                 "compute": point.compute, "seconds": round(seconds, 1)}
                for point, seconds in planned(grid, config, self.folder)
            ]  # fmt: skip
            for row in rows:
                print(json.dumps(row))
            return 0
        found = run_grid(grid, config, self.folder, [Progress()])
        print(json.dumps(found.record, indent=2) if self.json else "\n".join(record_lines(found.record)))
        if found.left:
            why = "stopped by a signal" if found.signal is not None else "they do not fit into --minutes"
            listed = ", ".join(found.left[:3]) + (f" and {len(found.left) - 3} more" if len(found.left) > 3 else "")
            print(f"ostension: {len(found.left)} points are left ({listed}): {why}", file=sys.stderr)
        return 130 if found.signal == signal.SIGINT else 0

    def _grid(self) -> GridConfig:
        from ostension.recipes._emoji_grid import default_grid, smoke_grid
        from ostension.recipes._scaling_grid import read_grid, widths_grid

        if self.grid is not None:
            return read_grid(self.grid)
        if self.recipe is None:
            return smoke_grid() if self.smoke else default_grid()
        from ostension.evals.during_training import EvaluationConfig, parse_task

        evaluation = None
        if self.zero_shot or self.pairs:
            evaluation = EvaluationConfig(zero_shot=tuple(map(parse_task, self.zero_shot)), pairs=self.pairs)
        return widths_grid(self.recipe, {"batches.data": self.data} if self.data else {}, evaluation, smoke=self.smoke)


COMMAND = {"fit": Fit, "run": Run}
