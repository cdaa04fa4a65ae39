"""Accuracy by group of the samples, the worst first; of a probe too where there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ostension.evals.chart_bars import Bar, Row, bar_chart
from ostension.evals.chart_frame import linear
from ostension.evals.chart_marks import Key, style_of
from ostension.evals.charts import Number
from ostension.evals.figure import Figure
from ostension.evals.metrics import wilson_interval
from ostension.evals.records import Record
from ostension.evals.selection import find, slug, target, task_title

SECTION = "groups"
MAX_GROUPS = 20  # the worst ones; the record has all
Cells = Mapping[str, Sequence[Number]]  # accuracy, samples, and perhaps the ends of the interval


def draw(records: Sequence[Record]) -> list[Figure]:
    found = find(records, "groups")
    done = {(record.model, target(record)) for record in found}
    plain = [r for r in find(records, "zeroshot") if r.details.get("groups") and (r.model, target(r)) not in done]
    return [_of_record(record) for record in (*found, *plain) if len(record.details["groups"]) > 1]


def _of_record(record: Record) -> Figure:
    cells: Cells = record.details["groups"]
    probed: Cells = record.details.get("probe_groups", {})
    worst_first = sorted(cells, key=lambda name: cells[name][0])
    average = sum(cell[0] * cell[1] for cell in cells.values()) / sum(cell[1] for cell in cells.values())
    rows = [
        Row(name=name, note=f"{cells[name][1]:,.0f} samples",
            bars=[_bar(cells[name], 0), *([_bar(probed[name], 1)] if name in probed else [])])
        for name in worst_first[:MAX_GROUPS]
    ]  # fmt: skip
    title = task_title(target(record))
    told = ", ".join(f"{row.name} {' and '.join(bar.words for bar in row.bars)}" for row in rows)
    svg = bar_chart(
        rows, linear([0.0, 1.0]), title=f"Accuracy by group, {title}, {record.model}", description=told, label="accuracy",
        lines=[(average, "average of all samples")],
    )  # fmt: skip
    return Figure(
        name=slug("groups", target(record), record.model), title=f"{title}: {record.model}",
        says=_says(record, cells, worst_first, average), svg=svg, detail=True,
        keys=(Key(name="zero-shot", style=style_of(0), what="bar"), Key(name="linear probe", style=style_of(1), what="bar"))
        if probed else (),
    )  # fmt: skip


def _bar(cell: Sequence[Number], look: int) -> Bar:
    value, count = cell[0], int(cell[1])
    if len(cell) == 4:
        low, high = cell[2], cell[3]
    else:
        interval = wilson_interval(round(value * count), count)
        low, high = interval.low, interval.high
    return Bar(value=value, words=f"{100 * value:.1f} %", style=style_of(look), low=low, high=high)


def _says(record: Record, cells: Cells, worst_first: Sequence[str], average: float) -> str:
    worst = worst_first[0]
    value, count = cells[worst][0], int(cells[worst][1])
    said = [f"Worst is {worst}: {100 * value:.1f} %, {100 * (average - value):.1f} points below the average of all samples."]
    chance = record.details.get("by_chance")
    if chance is None:
        said.append(f"It has {count:,} samples, and the worst of many small groups is low by chance alone.")
    else:
        said.append(f"If all groups were equal, a worst one as low would come up with probability {chance:.2g}.")
    if record.details.get("small"):
        said.append(f"Too small to compare: {', '.join(record.details['small'])}.")
    if len(worst_first) > MAX_GROUPS:
        said.append(f"Shown are the {MAX_GROUPS} worst of {len(worst_first)}.")
    return " ".join(said)
