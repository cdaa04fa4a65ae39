"""How many labelled samples a class a probe needs to match zero-shot, set by set (after CLIP's Figure 7)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ostension.evals.chart_bars import Bar, Row, bar_chart
from ostension.evals.chart_frame import linear
from ostension.evals.chart_marks import Key
from ostension.evals.charts import short_number
from ostension.evals.figure import Figure
from ostension.evals.records import Record
from ostension.evals.selection import find, models, slug, style, target, task_title

SECTION = "labels"
LISTED = 6
SAYS = (
    "Read off each set's few-shot curve, straight between its points on a scale of doublings. Few samples mean that zero-shot "
    "is worth little there; many, that it saves much labelling."
)


def draw(records: Sequence[Record]) -> list[Figure]:
    found = [record for record in find(records, "data_efficiency") if record.task and "needed" in record.details]
    names = models(found)
    if not found:
        return []
    values: dict[str, list[Bar]] = {}
    never = []
    for record in found:
        title, needed = task_title(target(record)), record.details["needed"]
        if needed is None:
            never.append(title if len(names) == 1 else f"{title} ({record.model})")
            continue
        words = f"{title}, {record.model}: {needed:.3g} a class"
        bar = Bar(value=float(needed), words=f"{needed:.3g}", style=style(records, record.model), title=words)
        values.setdefault(title, []).append(bar)
    means = {title: sum(bar.value for bar in bars) / len(bars) for title, bars in values.items()}
    rows = [Row(name=title, bars=values[title]) for title in sorted(means, key=lambda title: -means[title])]
    says = SAYS
    if never:
        listed = ", ".join(sorted(never)[:LISTED]) + (f" and {len(never) - LISTED} more" if len(never) > LISTED else "")
        says += f" Zero-shot was not reached, not even with all labels: {listed}."
    title = "Labels that zero-shot is worth" + (f": {names[0]}" if len(names) == 1 else "")
    return [Figure(
        name=slug("data-efficiency", names[0] if len(names) == 1 else ""), title=title, says=says,
        svg=_chart(rows, several=len(names) > 1, whole=not never) if rows else "",
        keys=tuple(Key(name=name, style=style(records, name)) for name in names) if len(names) > 1 else (),
    )]  # fmt: skip


def _chart(rows: Sequence[Row], *, several: bool, whole: bool) -> str:
    values = [bar.value for row in rows for bar in row.bars]
    lines = []
    if whole and not several and len(values) > 1:  # with sets that never match there is no mean
        median, mean = statistics.median(values), statistics.mean(values)
        lines = [(median, f"median {median:.3g}"), (mean, f"mean {mean:.3g}")]
    return bar_chart(
        rows, linear(values, words=short_number, zero=True), lines=lines, together=several,
        title="Labelled samples a class to match zero-shot", label="labelled samples a class",
        description="; ".join(bar.title for row in rows for bar in row.bars),
    )  # fmt: skip
