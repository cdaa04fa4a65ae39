"""Effective robustness of each model: how far above the test bed's line it lies, on every shift and the mean of the seven.

x and y come from the records of the protocol `robustness` of one model, whichever of them knows which; where only `zeroshot`
measured a shift, its accuracy is y. On the mean of the seven, the two shifts of videos each count as the mean of pm-0 and
pm-10, and a kind without a value of its own on a shift (own names of classes) takes the plain zero-shot one there. Relative
robustness is y minus the zero-shot y. Where no test bed exists (PACS, styles) there is only that.

Intervals of effective robustness are those of y with the line held fixed; "band" is the line's own, over refits.

Details: "line" (`Baseline.tree`) and "points" [[name, x, y, kind], ...] of the mean of the seven, test bed first, with its
families as kinds; "shifts" {shift: {"line": ... or null, "points": of this model}}; "table" [{"shift", "kind", "x", "y",
"effective", "low", "high", "band": [low, high], "relative"}, ...]; "notes".
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

from ostension.config import to_tree
from ostension.errors import DataError
from ostension.evals.effective_robustness import Baseline, baseline_of
from ostension.evals.metrics import Interval
from ostension.evals.records import Metric, Record
from ostension.evals.shifts import OWN_NAMES, ZERO_SHOT
from ostension.evals.statistics import CLIP_CONFIDENCE, clopper_pearson
from ostension.evals.testbed import SEVEN, SEVEN_SHIFTS, SHIFTS, TestBed, read_testbed

SUITE = "shifts7"
Pair = tuple[float, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """x and y of one head on one shift, as (share, samples)."""

    shift: str
    kind: str
    x: Pair | None
    y: Pair | None


def run(records: Sequence[Record]) -> list[Record]:
    """A record for each model with records of the protocol `robustness`."""
    found = []
    for model in dict.fromkeys(record.model for record in records if record.protocol == "robustness"):
        mine = [record for record in records if record.model == model]
        points = points_of(mine)
        if any(point.x is not None and point.y is not None for point in points):
            source = next((record.details.get("testbed") for record in mine if record.details.get("testbed")), None)
            found.append(_record(model, points, read_testbed(source), mine))
    return found


def points_of(records: Sequence[Record]) -> list[Point]:
    """Everything that records of one model know, one point a shift and kind; shifts of videos also by their parts."""
    rows = [row for record in records if record.protocol == "robustness" for row in record.details["rows"]]
    known: dict[tuple[str, str], dict[str, Pair]] = {}
    for row in rows:
        place = known.setdefault((row["shift"], row["kind"]), {})
        for name in ("x", "y", "pm_0", "pm_10"):
            if row.get(name) is not None:
                place.setdefault(name, (float(row[name][0]), int(row[name][1])))
    for record in records:
        place = known.get((record.task, ZERO_SHOT), {})
        if record.protocol == "zeroshot" and "x" in place:
            name = "pm_0" if "pm_0" in record.metrics else "y"
            place.setdefault(name, (record.headline.value, record.headline.count))
    points = []
    for (shift, kind), values in known.items():
        # In distribution a head with other names of the shift's classes is the plain one.
        x = values.get("x") or (known.get((shift, ZERO_SHOT), {}).get("x") if kind == OWN_NAMES else None)
        points.append(Point(shift=shift, kind=kind, x=x, y=values.get("y")))
        parts = [part for part in ("pm_0", "pm_10") if part in values]
        points += [Point(shift=f"{shift} {part.replace('_', '-')}", kind=kind, x=x, y=values[part]) for part in parts]
    return points


def mean_of_seven(points: Sequence[Point]) -> dict[str, tuple[float, float, float]]:
    """x, y and y's standard error of the mean over the seven shifts, for each kind that has something to say on all of them."""
    by_place = {(point.shift, point.kind): point for point in points if point.x is not None and point.y is not None}
    found = {}
    for kind in dict.fromkeys(point.kind for point in points):
        chosen = []
        for shift in SEVEN_SHIFTS:
            point = by_place.get((shift.task, kind))
            if point is None and kind == OWN_NAMES:
                point = by_place.get((shift.task, ZERO_SHOT))
            chosen.append(point)
        if any(point is not None and point.kind == kind for point in chosen) and None not in chosen:
            xs = [point.x[0] for point in chosen if point is not None and point.x is not None]
            ys = [point.y for point in chosen if point is not None and point.y is not None]
            # pm-0 and pm-10 are of the same anchors, so that their mean is no surer than one of them.
            error = math.sqrt(sum(value * (1 - value) / count for value, count in ys)) / len(ys)
            found[kind] = (statistics.fmean(xs), statistics.fmean(value for value, _ in ys), error)
    return found


def table_of(points: Sequence[Point], bed: TestBed, notes: list[str]) -> tuple[list[dict[str, Any]], dict[str, Baseline]]:
    """The rows of the table and the lines that they are compared with, by shift."""
    lines: dict[str, Baseline] = {}
    known = {shift.name for shift in SHIFTS}
    compared = list(dict.fromkeys(point.shift for point in points if point.x is not None and point.y is not None))
    for name in filter(known.__contains__, compared):
        try:
            lines[name] = baseline_of(bed, name)
        except DataError as error:  # a table of one's own need not have every shift
            notes.append(str(error))
    if others := [name for name in compared if name not in known]:
        notes.append(f"{', '.join(others)}: no test bed of ordinary models exists, so there is no effective robustness")
    plain = {point.shift: point.y[0] for point in points if point.kind == ZERO_SHOT and point.y is not None}
    rows = []
    for point in points:
        if point.x is None or point.y is None:
            continue
        value, count = point.y
        interval = clopper_pearson(round(value * count), count, CLIP_CONFIDENCE)
        row = _row(point.shift, point.kind, point.x[0], value, interval, lines.get(point.shift))
        row["relative"] = value - plain[point.shift] if point.shift in plain and point.kind != ZERO_SHOT else None
        rows.append(row)
    means = mean_of_seven(points)
    if means:
        try:
            lines[SEVEN] = baseline_of(bed, SEVEN)
        except DataError as error:
            notes.append(str(error))
    z = statistics.NormalDist().inv_cdf(0.5 + CLIP_CONFIDENCE / 2)
    for kind, (x, y, deviation) in means.items():
        interval = Interval(y - z * deviation, y + z * deviation, CLIP_CONFIDENCE, "normal")
        row = _row(SEVEN, kind, x, y, interval, lines.get(SEVEN))
        row["relative"] = y - means[ZERO_SHOT][1] if kind != ZERO_SHOT and ZERO_SHOT in means else None
        rows.append(row)
    return rows, lines


def _row(shift: str, kind: str, x: float, y: float, interval: Interval, line: Baseline | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "shift": shift,
        "kind": kind,
        "x": x,
        "y": y,
        "effective": None,
        "low": None,
        "high": None,
        "band": None,
    }
    if line is not None:
        at = line(x)
        band = line.band(x, seed=0)
        row |= {"effective": y - at, "low": interval.low - at, "high": interval.high - at, "band": [band.low, band.high]}
    return row


def _record(model: str, points: Sequence[Point], bed: TestBed, used: Sequence[Record]) -> Record:
    notes: list[str] = []
    rows, lines = table_of(points, bed, notes)
    metrics: dict[str, Metric] = {}
    for row in rows:
        if row["shift"] == SEVEN and row["effective"] is not None:
            interval = Interval(row["low"], row["high"], CLIP_CONFIDENCE, "normal, the line held")
            metrics[_name("effective_robustness", row["kind"])] = Metric(
                value=row["effective"], count=sum(point.y[1] for point in points if point.y and point.kind == row["kind"]),
                chance=0.0, interval=interval,
            )  # fmt: skip
    if not metrics:
        metrics = _single(rows)
        if lines:
            absent = [shift.task for shift in SEVEN_SHIFTS if not any(row["shift"] == shift.task for row in rows)]
            notes.append(f"no mean of the seven: x and y of {', '.join(absent)} are not both known")
    details: dict[str, Any] = {
        "line": lines[SEVEN].tree() if SEVEN in lines else None,
        "points": _bed_points(bed) if SEVEN in lines else [],
        "shifts": {
            name: {"line": lines[name].tree() if name in lines else None,
                   "points": [[model, row["x"], row["y"], row["kind"]] for row in rows if row["shift"] == name]}
            for name in dict.fromkeys(row["shift"] for row in rows) if name != SEVEN
        },
        "table": rows, "notes": list(dict.fromkeys(notes)),
    }  # fmt: skip
    details["points"] += [[model, row["x"], row["y"], row["kind"]] for row in rows if row["shift"] == SEVEN]
    return Record(
        protocol="effective-robustness", subject=f"{model} against {len(bed.models)} models", metrics=metrics,
        config=to_tree({"testbed": bed.source.rsplit("/", 1)[-1], "confidence": CLIP_CONFIDENCE}), hashes={},
        counts={"models": len(bed.models), "shifts": len({row["shift"] for row in rows})},
        seeds=(0,), task=SUITE if SEVEN in lines else "", model=model, details=details,
    )  # fmt: skip


def _single(rows: Sequence[dict[str, Any]]) -> dict[str, Metric]:
    """Without a mean of the seven: effective robustness of each shift that has a line, and the drop of those that have none."""
    found: dict[str, Metric] = {}
    for row in rows:
        if row["effective"] is not None:
            interval = Interval(row["low"], row["high"], CLIP_CONFIDENCE, "clopper-pearson, the line held")
            name = _name(f"effective_robustness {row['shift']}", row["kind"])
            found[name] = Metric(value=row["effective"], count=1, chance=0.0, interval=interval)
    for row in rows:
        if row["effective"] is None:
            drop = Metric(value=row["x"] - row["y"], count=1, direction="lower", chance=0.0)
            found[_name(f"drop {row['shift']}", row["kind"])] = drop
    return found


def _name(name: str, kind: str) -> str:
    return name if kind == ZERO_SHOT else f"{name} ({kind})"


def _bed_points(bed: TestBed) -> list[list[Any]]:
    """The test bed's models on the mean of the seven, those that were measured on all."""
    xs, ys = bed.accuracies(SEVEN)
    rows = zip(bed.models, xs, ys, bed.families, strict=True)
    return [[name, round(float(x), 6), round(float(y), 6), family] for name, x, y, family in rows if math.isfinite(x + y)]
