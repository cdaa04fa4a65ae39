"""Accuracy by group of the samples, the worst first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ostension.evals.chart_bars import Bar, Row, bar_chart
from ostension.evals.chart_frame import linear
from ostension.evals.figure import Figure
from ostension.evals.metrics import Interval, wilson_interval
from ostension.evals.records import Record
from ostension.evals.selection import find, slug, style, target, task_title

SECTION = "groups"
MAX_GROUPS = 24  # the worst ones; the record has all


def draw(records: Sequence[Record]) -> list[Figure]:
    return [_of_record(records, record) for record in find(records, "zeroshot") if record.details.get("groups")]


def _of_record(records: Sequence[Record], record: Record) -> Figure:
    cells: Mapping[str, tuple[float, int]] = record.details["groups"]
    worst_first = sorted(cells.items(), key=lambda entry: entry[1][0])
    average = sum(value * count for value, count in cells.values()) / sum(count for _, count in cells.values())
    look = style(records, record.model)
    rows = []
    for name, (value, count) in worst_first[:MAX_GROUPS]:
        interval = share_interval(value, count)
        bar = Bar(value=value, words=f"{100 * value:.1f} %", style=look, low=interval.low, high=interval.high)
        rows.append(Row(name=name, bars=[bar], note=f"{count:,} samples"))
    name, (value, count) = worst_first[0]
    says = f"The worst group, {name}, is right {100 * value:.1f} % of the time, {100 * (average - value):.1f} points below the "
    says += f"average of all samples. It has {count:,} samples, and the worst of many small groups is low by chance alone."
    if len(worst_first) > MAX_GROUPS:
        says += f" Shown are the {MAX_GROUPS} worst of {len(worst_first)}."
    told = ", ".join(f"{row.name} {row.bars[0].words}" for row in rows)
    svg = bar_chart(
        rows, linear([0.0, 1.0]), title=f"Accuracy by group, {task_title(target(record))}, {record.model}", description=told,
        label="accuracy", lines=[(average, "average")],
    )  # fmt: skip
    return Figure(
        name=slug("groups", target(record), record.model), title=f"{task_title(target(record))}: {record.model}", says=says, svg=svg
    )


def share_interval(value: float, count: int) -> Interval:
    """Wilson's interval of an accuracy on `count` samples."""
    return wilson_interval(round(value * count), count)
