"""How many labelled samples a class a probe needs to match zero-shot, set by set (after CLIP's Figure 7)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ostension.evals.chart_bars import Bar, Row, bar_chart
from ostension.evals.chart_frame import linear
from ostension.evals.charts import short_number
from ostension.evals.figure import Figure
from ostension.evals.records import Record
from ostension.evals.selection import find, models, slug, style, target, task_title

SECTION = "labels"


def draw(records: Sequence[Record]) -> list[Figure]:
    return [figure for model in models(records) if (figure := _of_model(records, model))]


def _of_model(records: Sequence[Record], model: str) -> Figure | None:
    found = [record for record in find(records, "data_efficiency", model=model) if record.task and "needed" in record.details]
    if not found:
        return None
    needed = {task_title(target(record)): record.details["needed"] for record in found}
    known = sorted((value, name) for name, value in needed.items() if value is not None)
    never = sorted(name for name, value in needed.items() if value is None)
    lines = []
    if len(known) > 1 and not never:
        values = [value for value, _ in known]
        median, mean = statistics.median(values), statistics.mean(values)
        lines = [(median, f"median {median:.3g}"), (mean, f"mean {mean:.3g}")]
    look = style(records, model)
    rows = [Row(name=name, bars=[Bar(value=value, words=f"{value:.3g}", style=look)]) for value, name in reversed(known)]
    says = (
        "Read off each set's few-shot curve, straight between its points on a scale of doublings. Few samples mean that "
        "zero-shot is worth little there; many, that it saves much labelling."
    )
    if never:
        says += f" No probe reached zero-shot, not even on all labels: {', '.join(never)}."
    if not rows:
        return Figure(name=slug("data-efficiency", model), title=f"Labels that zero-shot is worth: {model}", says=says)
    told = ", ".join(f"{row.name} {row.bars[0].words}" for row in rows)
    svg = bar_chart(
        rows, linear([value for value, _ in known], words=short_number, zero=True), lines=lines,
        title=f"Labelled samples a class to match zero-shot, {model}", description=told, label="labelled samples a class",
    )  # fmt: skip
    return Figure(name=slug("data-efficiency", model), title=f"Labels that zero-shot is worth: {model}", says=says, svg=svg)
