"""Near misses: accuracy without and with almost-right captions beside the classes."""

from __future__ import annotations

from collections.abc import Sequence

from ostension.evals.chart_bars import Bar, Row, bar_chart
from ostension.evals.chart_frame import linear
from ostension.evals.figure import Figure
from ostension.evals.records import Record
from ostension.evals.selection import find, slug, style, target, task_title

SECTION = "mistakes"
BARS = (
    ("accuracy", "classes alone"),
    ("accuracy_with_near_misses", "with near misses"),
    ("to_any_near_miss", "called a near miss"),
)


def draw(records: Sequence[Record]) -> list[Figure]:
    return [_of_record(records, record) for record in find(records, "near-miss")]


def _of_record(records: Sequence[Record], record: Record) -> Figure:
    look, rows = style(records, record.model), []
    for name, words in BARS:
        metric = record.metrics[name]
        low, high = (None, None) if metric.interval is None else (metric.interval.low, metric.interval.high)
        bar = Bar(value=metric.value, words=f"{100 * metric.value:.1f} %", style=look, low=low, high=high)
        rows.append(Row(name=words, bars=[bar], chance=metric.chance))
    before, after = (record.metrics[name].value for name in ("accuracy", "accuracy_with_near_misses"))
    near = sum(len(captions) for captions in record.details["near"].values())
    says = f"{near} captions that are almost right stand beside the classes; whoever gets one is wrong. Accuracy falls by "
    says += f"{100 * (before - after):.1f} points, for {100 * record.metrics['right_lost_to_near_miss'].value:.1f} % of the "
    says += "pictures were right before and now get one."
    told = ", ".join(f"{row.name} {row.bars[0].words}" for row in rows)
    title = f"Near misses, {task_title(target(record))}: {record.model}"
    svg = bar_chart(rows, linear([0.0, 1.0]), title=title, description=told, label="share of pictures")
    return Figure(name=slug("near-miss", target(record), record.model), title=title, says=says, svg=svg)
