"""Confidence against how often it was right, before and after a temperature was fitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ostension.evals.chart_frame import Frame, linear
from ostension.evals.chart_marks import Key, Style, mark, style_of
from ostension.evals.charts import Number
from ostension.evals.figure import Figure
from ostension.evals.records import Record
from ostension.evals.selection import models, one, slug, target, task_title, tasks

SECTION = "calibration"
BEFORE, AFTER = Style(colour=2, shape=0), Style(colour=1, shape=3)
PERFECT = Key(name="perfect", style=style_of(6), what="plain")
Bins = Sequence[Mapping[str, Number]]


def draw(records: Sequence[Record]) -> list[Figure]:
    mended, figures = [], []
    for model in models(records):
        for task in dict.fromkeys([*tasks(records, "zeroshot"), *tasks(records, "calibration")]):
            calibrated, plain = one(records, "calibration", model, task), one(records, "zeroshot", model, task)
            if calibrated is not None and "reliability_after" in calibrated.details:
                mended.append(_of_calibration(calibrated))
            elif calibrated is not None:
                figures.append(_of_zero_shot(calibrated, f"There {calibrated.details['temperature']['verdict']}."))
            elif plain is not None and plain.details.get("reliability"):
                missing = "Not measured: what a fitted temperature would mend (the protocol calibration)."
                figures.append(_of_zero_shot(plain, missing))
    return [*mended, *figures]


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


def _of_zero_shot(record: Record, about_temperature: str) -> Figure:
    bins: Bins = record.details["reliability"]
    error, excess = gap(bins)
    return Figure(
        name=slug("reliability", target(record), record.model),
        title=f"{task_title(target(record))}, zero-shot: {record.model}",
        says=f"{_lean(excess)} Calibration error {100 * error:.1f} points. {about_temperature}",
        svg=diagram([(BEFORE, "as released", bins)], title=f"Reliability of {record.model} on {task_title(target(record))}"),
        keys=(Key(name="as released", style=BEFORE, what="both"), PERFECT),
        detail=True,
    )


def _of_calibration(record: Record) -> Figure:
    details, title = record.details, task_title(target(record))
    before, after = details["reliability"], details["reliability_after"]
    told = details["temperature"]
    error, excess = gap(before)
    says = (
        f"{_lean(excess)} Calibration error {100 * error:.1f} points, {100 * gap(after)[0]:.1f} after dividing the logits by "
        f"{told['value']:.3g}, fitted on other samples. That changes no answer, only how sure the model says it is."
    )
    series = [(BEFORE, "as released", before), (AFTER, "with the temperature", after)]
    return Figure(
        name=slug("reliability", target(record), record.model), title=f"{title}, zero-shot: {record.model}", says=says,
        svg=diagram(series, title=f"Reliability of {record.model} on {title}, before and after a temperature"),
        keys=(*(Key(name=name, style=look, what="both") for look, name, _ in series), PERFECT), detail=True,
    )  # fmt: skip


def _lean(excess: float) -> str:
    if abs(excess) < 0.005:
        return "It is as sure as it is right."
    return f"It is too {'sure of itself' if excess > 0 else 'modest'}, by {100 * abs(excess):.1f} points on average."
