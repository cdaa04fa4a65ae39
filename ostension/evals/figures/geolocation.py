"""Share of pictures that are placed within each distance, beside chance and the paper's figures."""

from __future__ import annotations

from collections.abc import Sequence

from ostension.evals.chart_bars import Bar, Row, bar_chart
from ostension.evals.chart_frame import linear
from ostension.evals.chart_marks import Key
from ostension.evals.figure import Figure
from ostension.evals.records import Record
from ostension.evals.selection import find, slug, style, target, task_title, tasks

SECTION = "other"
WITHIN = "within_"


def draw(records: Sequence[Record]) -> list[Figure]:
    return [_of_task(records, task) for task in tasks(records, "geolocation")]


def _of_task(records: Sequence[Record], task: str) -> Figure:
    found = find(records, "geolocation", task=task)
    names = [name for name in found[0].metrics if name.startswith(WITHIN)]
    known = found[0].details["published"].values()
    published = {distance: f"paper {100 * share:.1f} %" for shares in known for distance, share in shares.items()}
    rows = []
    for name in names:
        distance = name.removeprefix(WITHIN).removesuffix("_km")
        bars = [_bar(records, record, name) for record in found if name in record.metrics]
        chance = found[0].metrics[name].chance
        rows.append(Row(name=f"within {distance} km", bars=bars, chance=chance, note=published.get(distance, "")))
    medians = ", ".join(f"{record.model} {record.metrics['median_distance_km'].value:,.0f} km" for record in found)
    told = "; ".join(f"{row.name}: {', '.join(bar.title for bar in row.bars)}" for row in rows)
    return Figure(
        name=slug("places", task), title=f"Where was it taken? {task_title(target(found[0]))}",
        says=f"Each picture gets the place of the nearest of {found[0].counts['references']:,} references. Half of the "
        f"pictures are nearer than: {medians}. The tick is what a reference drawn at random would bring. The paper's "
        "figures are for IM2GPS with a million references, and are known second-hand.",
        svg=bar_chart(rows, linear([0.0, 1.0]), label="share of pictures", description=told,
                      title=f"Share of pictures placed within each distance, {task_title(task)}"),
        keys=tuple(Key(name=record.model, style=style(records, record.model), what="bar") for record in found),
    )  # fmt: skip


def _bar(records: Sequence[Record], record: Record, name: str) -> Bar:
    metric = record.metrics[name]
    low, high = (None, None) if metric.interval is None else (metric.interval.low, metric.interval.high)
    words = f"{100 * metric.value:.1f} %"
    look = style(records, record.model)
    return Bar(value=metric.value, words=words, style=look, low=low, high=high, title=f"{record.model} {words}")
