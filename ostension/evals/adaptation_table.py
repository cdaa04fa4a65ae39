"""Tables of compared methods: in distribution and out of it side by side, worst group, effective robustness, intervals.

    in distribution        the task's own score
    out of distribution    the mean over the other tasks that the same predictor was measured on, each one's own score
    worst group            of the task, where its record lists groups; by class and value where it says so
    effective robustness   out of distribution above what ordinary models reach with the same score in distribution

Ordinary models are those of the methods that `line` names, at every number of shots and every seed, on the same task: their
line is fitted in logits (`effective_robustness.fit_baseline`). Only for ImageNet there is a published line: on imagenet_v2 and
imagenet_sketch, whose x is the accuracy on all classes, it is the test bed's; on the others x is of the shift's classes alone,
which is not measured here. Otherwise effective robustness is not defined, and there is none.

Intervals are at 95 % and hold two uncertainties, which add (`statistics.seeds_and_samples`): seeds draw other shots and other
first weights, and test pictures are a sample; they are the same for all seeds, so that more seeds make them no surer.

Letters: S seeds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ostension.errors import DataError
from ostension.evals.adaptation import ZERO_SHOT
from ostension.evals.effective_robustness import Baseline, baseline_of, fit_baseline
from ostension.evals.metrics import Z_95, Interval
from ostension.evals.records import Metric, Record
from ostension.evals.results import Result
from ostension.evals.statistics import seeds_and_samples
from ostension.evals.testbed import read_testbed

OOD, EFFECTIVE = "out_of_distribution", "effective_robustness"
PUBLISHED = ("imagenet_v2", "imagenet_sketch")  # shifts of ImageNet's classes whose x is the accuracy on all of them
Fit = Mapping[str, Metric]  # what one fit reached, by the metric's name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One metric of one method: its mean over seeds.

    Attributes:
        task, method, shots: what was compared; a rival of a method's predictor is "METHOD: RIVAL".
        metric: the record's name of it, "out_of_distribution", or "effective_robustness".
        mean: over seeds.
        spread: their population standard deviation, as published tables have it.
        seeds: S.
        interval: at 95 %; None where the metric says nothing of its samples and there is one seed.
    """

    task: str
    method: str
    shots: int
    metric: str
    mean: float
    spread: float
    seeds: int
    interval: Interval | None

    def tree(self) -> dict[str, Any]:
        """As JSON, in one level."""
        tree = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "interval"}
        low, high = (None, None) if self.interval is None else (self.interval.low, self.interval.high)
        return {**tree, "low": low, "high": high}


def rows_of(results: Sequence[Result], *, line: Sequence[str] = ()) -> list[Row]:
    """One row a (task, method, shots, metric), in the order of the results.

    Args:
        line: methods whose models make the line of effective robustness.

    Raises:
        DataError: where `line` names methods and their models make no line.
    """
    return _rows([(result.target, result.record) for result in results], line)


def rows_of_records(records: Sequence[Record], *, line: Sequence[str] = ()) -> list[Row]:
    """The same of records alone."""
    return _rows([(record.task, record) for record in records], line)


def _rows(found: Sequence[tuple[str, Record]], line: Sequence[str]) -> list[Row]:
    groups: dict[tuple[str, str, int], list[Fit]] = {}
    for target, record in found:
        config = record.config
        shots = config["shots"] if config["method"] != ZERO_SHOT else 0
        for rival, measured in fits_of(record).items():
            name = f"{config['method']}: {rival}" if rival else config["method"]
            groups.setdefault((target, name, shots), []).append(measured)
    lines = {task: _line(task, groups, line) for task in dict.fromkeys(task for task, _, _ in groups)} if line else {}
    rows = []
    for (task, method, shots), fits in groups.items():
        whole = [_with_effective(task, fit, lines.get(task)) for fit in fits]
        for metric in dict.fromkeys(name for fit in whole for name in fit):
            some = [fit[metric] for fit in whole if metric in fit]
            values = [one.value for one in some]
            rows.append(Row(
                task=task, method=method, shots=shots, metric=metric, mean=float(np.mean(values)), spread=float(np.std(values)),
                seeds=len(values), interval=interval_of(some, free=metric.endswith(EFFECTIVE)),
            ))  # fmt: skip
    return rows


def fits_of(record: Record) -> dict[str, Fit]:
    """What a record's predictor reached ("") and what each of its rivals did, with the mean over other tasks."""
    parts: dict[str, dict[str, Metric]] = {}
    score = next(iter(record.metrics))
    for name, metric in record.metrics.items():
        rival, _, own = name.rpartition("/")
        if "@" in rival:  # of another task, whose name stands before it
            rival, own = "", name
        parts.setdefault(rival, {})[own] = metric
    ordered: dict[str, Fit] = {}
    for rival, measured in parts.items():
        others = {name: metric for name, metric in measured.items() if "@" in name and "/" not in name}
        mean = {OOD: _mean(list(others.values()))} if others else {}
        rest = {name: metric for name, metric in measured.items() if name not in others}
        first = {score: rest.pop(score)} if score in rest else {}
        ordered[rival] = {**first, **rest, **others, **mean}
    return ordered


def interval_of(metrics: Sequence[Metric], *, free: bool = False) -> Interval | None:
    """The interval of the mean over seeds.

    Args:
        free: the value is no share, and may lie below 0.
    """
    errors = [error_of(metric) for metric in metrics]
    if len(metrics) == 1 and errors[0] is None:
        return None
    known = [error for error in errors if error is not None]
    found = seeds_and_samples(np.array([metric.value for metric in metrics]), np.array(known or [0.0]))
    if free:
        return found
    return dataclasses.replace(found, low=max(0.0, found.low), high=min(1.0, found.high))


def error_of(metric: Metric) -> float | None:
    """The standard error over samples that an interval at 95 % stands for."""
    return None if metric.interval is None else (metric.interval.high - metric.interval.low) / (2 * Z_95)


def _mean(metrics: Sequence[Metric]) -> Metric:
    """The mean over tasks, which have samples of their own."""
    value, errors = float(np.mean([metric.value for metric in metrics])), [error_of(metric) for metric in metrics]
    interval = None
    if None not in errors:
        half = Z_95 * math.sqrt(sum(error**2 for error in errors if error is not None)) / len(errors)
        interval = Interval(value - half, value + half, 0.95, "normal")
    return Metric(value=value, count=sum(metric.count for metric in metrics), interval=interval)


def _line(task: str, groups: Mapping[tuple[str, str, int], Sequence[Fit]], line: Sequence[str]) -> Baseline:
    """The line through the models of some methods on a task."""
    chosen = {key: fits for key, fits in groups.items() if key[0] == task and key[1] in line}
    points = [(next(iter(fit.values())).value, fit[OOD].value, f"{method}, {shots or 'all'} shots")
              for (_, method, shots), fits in chosen.items() for fit in fits if OOD in fit]  # fmt: skip
    if len(points) < 3:
        what = f"{len(points)} models of {', '.join(line)} were measured on {task} and on other tasks"
        raise DataError(what, expected="three or more for a line", fix="more --shots or --seeds, and a --test")
    try:
        return fit_baseline(np.array([x for x, _, _ in points]), np.array([y for _, y, _ in points]),
                            models=tuple(name for _, _, name in points))  # fmt: skip
    except DataError as error:
        raise DataError(f"no line through {', '.join(line)} on {task}: {error.what}", expected=error.expected) from None


def _with_effective(task: str, fit: Fit, line: Baseline | None) -> Fit:
    """What a fit reached, with its effective robustness where that is defined."""
    x = next(iter(fit.values())).value
    if line is not None and OOD in fit and 0 < x < 1:
        return {**fit, EFFECTIVE: _above(line, x, fit[OOD])}
    found = dict(fit)
    if task == "imagenet" and "accuracy" in fit and 0 < x < 1:
        for name, metric in fit.items():
            shift = name.partition("@")[0]
            if shift in PUBLISHED and "/" not in name:
                found[f"{shift}/{EFFECTIVE}"] = _above(baseline_of(read_testbed(), shift), x, metric)
    return found


def _above(line: Baseline, x: float, y: Metric) -> Metric:
    """Effective robustness, as sure as y with the line held."""
    value, moved = line.effective(x, y.value), None
    if y.interval is not None:
        moved = dataclasses.replace(y.interval, low=value + y.interval.low - y.value, high=value + y.interval.high - y.value)
    return Metric(value=value, count=y.count, chance=0.0, interval=moved)
