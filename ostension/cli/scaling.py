"""Scaling laws: train a grid of small runs within a budget, fit error against compute, predict larger runs."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ostension.errors import UsageError


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


COMMAND = {"fit": Fit}
