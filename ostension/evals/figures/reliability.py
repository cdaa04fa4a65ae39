"""Confidence against how often it was right, before and after a temperature was fitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ostension.evals.chart_frame import Frame, linear
from ostension.evals.chart_marks import Key, Style, mark, style_of
from ostension.evals.figure import Figure
from ostension.evals.records import Record
from ostension.evals.selection import models, one, slug, target, task_title, tasks

SECTION = "calibration"
BEFORE, AFTER = Style(colour=2, shape=0), Style(colour=1, shape=3)
Bins = Sequence[Mapping[str, float]]


def draw(records: Sequence[Record]) -> list[Figure]:
    figures = []
    for model in models(records):
        for task in dict.fromkeys([*tasks(records, "zeroshot"), *tasks(records, "calibration")]):
            calibrated, plain = one(records, "calibration", model, task), one(records, "zeroshot", model, task)
            if calibrated is not None:
                figures.append(_of_calibration(calibrated))
            elif plain is not None and plain.details.get("reliability"):
                figures.append(_of_zero_shot(plain))
    return [figure for figure in figures if figure]


def gap(bins: Bins) -> tuple[float, float]:
    """The calibration error of bins, and mean confidence minus accuracy: above 0, the model is too sure of itself."""
    count = sum(row["count"] for row in bins)
    error = sum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in bins) / count
    return error, sum(row["count"] * (row["confidence"] - row["accuracy"]) for row in bins) / count


def diagram(series: Sequence[tuple[Style, str, Bins]], *, title: str) -> str:
    """An SVG of bins: a mark at their mean confidence and share of right answers, its size by the number of samples."""
    frame = Frame(
        x=linear([0.0, 1.0]), y=linear([0.0, 1.0]), x_label="confidence", y_label="share right", width=420, height=360
    )
    parts = [frame.diagonal()]
    told = []
    for look, name, bins in series:
        points = [(row["confidence"], row["accuracy"]) for row in bins]
        most = max(row["count"] for row in bins)
        parts.append(f'<polyline class="line c{look.colour}" points="{frame.path(points)}"/>')
        for row, point in zip(bins, points, strict=True):
            words = f"{name}: confidence {100 * point[0]:.0f} %, right {100 * point[1]:.0f} % of {row['count']:,.0f}"
            size = 2.5 + 4.5 * (row["count"] / most) ** 0.5
            parts.append(mark(look.shape, *frame.at(*point), look.colour, size=size, title=words))
        told.append(f"{name}: " + ", ".join(f"{100 * x:.0f} % sure, {100 * y:.0f} % right" for x, y in points))
    return frame.draw(parts, title=title, description="; ".join(told))


def _of_zero_shot(record: Record) -> Figure:
    bins: Bins = record.details["reliability"]
    error, excess = gap(bins)
    return Figure(
        name=slug("reliability", target(record), record.model),
        title=f"{task_title(target(record))}, zero-shot: {record.model}",
        says=f"{_lean(excess)} Calibration error {100 * error:.1f} points. Not measured: what a fitted temperature would mend "
        "(the protocol calibration).",
        svg=diagram([(BEFORE, "as released", bins)], title=f"Reliability of {record.model} on {task_title(target(record))}"),
        keys=(Key(name="as released", style=BEFORE, what="both"), Key(name="perfect", style=style_of(6), what="plain")),
    )


def _of_calibration(record: Record) -> Figure | None:
    before, after = tables(record.details)
    if not before:
        return None
    series = [(BEFORE, "before", before)] + ([(AFTER, "after", after)] if after else [])
    error, excess = gap(before)
    says = f"Before: {_lean(excess)} Calibration error {100 * error:.1f} points"
    temperature = record.details.get("temperature")
    if after:
        says += f"; {100 * gap(after)[0]:.1f} after"
        says += f" dividing the logits by {temperature:.3g}" if isinstance(temperature, float) else " fitting a temperature"
    return Figure(
        name=slug("reliability", target(record), record.model),
        title=f"{task_title(target(record))}: {record.model}",
        says=says + ". A temperature changes no answer, only how sure the model says it is.",
        svg=diagram(series, title=f"Reliability of {record.model} on {task_title(target(record))}"),
        keys=(
            *(Key(name=name, style=look, what="both") for look, name, _ in series),
            Key(name="perfect", style=style_of(6), what="plain"),
        ),
    )


def tables(details: Mapping[str, Any]) -> tuple[Bins, Bins]:
    """The bins before and after, where a record of calibration has them."""
    before, after = details.get("before", {}), details.get("after", {})
    return before.get("reliability", ()), after.get("reliability", ())


def _lean(excess: float) -> str:
    if abs(excess) < 0.005:
        return "It is as sure as it is right."
    return f"It is too {'sure of itself' if excess > 0 else 'modest'}, by {100 * abs(excess):.1f} points on average."
