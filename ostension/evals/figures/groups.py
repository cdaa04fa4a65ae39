"""Accuracy by group of a task that is scored by its groups, the worst first; `groups_compared` has the protocol of groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ostension.evals.chart_bars import Bar, Row, bar_chart
from ostension.evals.chart_frame import linear
from ostension.evals.charts import Number
from ostension.evals.figure import Figure
from ostension.evals.metrics import wilson_interval
from ostension.evals.records import Record
from ostension.evals.selection import find, slug, style, target, task_title

SECTION = "groups"
MAX_GROUPS = 20  # the worst ones; the record has all
Cells = Mapping[str, Sequence[Number]]  # accuracy and samples


def draw(records: Sequence[Record]) -> list[Figure]:
    done = {(record.model, target(record)) for record in find(records, "groups")}
    found = [r for r in find(records, "zeroshot") if (r.model, target(r)) not in done and len(r.details.get("groups", {})) > 1]
    return [_of_record(records, record) for record in found]


def _of_record(records: Sequence[Record], record: Record) -> Figure:
    cells: Cells = record.details["groups"]
    worst_first = sorted(cells, key=lambda name: cells[name][0])
    average = sum(cell[0] * cell[1] for cell in cells.values()) / sum(cell[1] for cell in cells.values())
    look = style(records, record.model)
    rows = []
    for name in worst_first[:MAX_GROUPS]:
        value, count = float(cells[name][0]), int(cells[name][1])
        interval = wilson_interval(round(value * count), count)
        bar = Bar(value=value, words=f"{100 * value:.1f} %", style=look, low=interval.low, high=interval.high)
        rows.append(Row(name=name, bars=[bar], note=f"{count:,} samples"))
    worst, count = worst_first[0], int(cells[worst_first[0]][1])
    says = (
        f"Worst is {worst}: {100 * cells[worst][0]:.1f} %, {100 * (average - cells[worst][0]):.1f} points below the average of "
        f"all samples. It has {count:,} samples, and the worst of many small groups is low by chance alone: the protocol "
        "`groups` says how low."
    )
    if len(worst_first) > MAX_GROUPS:
        says += f" Shown are the {MAX_GROUPS} worst of {len(worst_first)}."
    title = task_title(target(record))
    told = ", ".join(f"{row.name} {row.bars[0].words}" for row in rows)
    svg = bar_chart(
        rows, linear([0.0, 1.0]), title=f"Accuracy by group, {title}, {record.model}", description=told, label="accuracy",
        lines=[(average, "average of all samples")],
    )  # fmt: skip
    name = slug("groups", target(record), record.model)
    return Figure(name=name, title=f"{title}: {record.model}", says=says, svg=svg, detail=True)
