"""Retrieval: recall at 1, 5 and 10 in both directions, with and without a prefix before the captions, and its curve over k."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from ostension.evals import report
from ostension.evals.chart_frame import Frame, Scale, linear
from ostension.evals.chart_marks import Key, mark
from ostension.evals.charts import short_number
from ostension.evals.figure import Figure
from ostension.evals.records import Metric, Record
from ostension.evals.report import Cell
from ostension.evals.selection import find, slug, style, task_title, tasks, words_of

SECTION = "retrieval"
RECALL = re.compile(r"(?P<prefixed>prefixed_)?(?P<direction>image_to_text|text_to_image)_r(?P<k>\d+)")
DIRECTIONS = {"image_to_text": "texts of a picture", "text_to_image": "pictures of a text"}


def draw(records: Sequence[Record]) -> list[Figure]:
    figures = []
    for task in tasks(records, "retrieval"):
        found = find(records, "retrieval", task=task)
        figures.append(_table(found, task))
        figures += [figure for direction in DIRECTIONS if (figure := _curves(records, found, task, direction))]
    return figures


def _table(found: Sequence[Record], task: str) -> Figure:
    names = [name for name in found[0].metrics if RECALL.fullmatch(name) and not name.startswith("prefixed_")]
    rows: list[list[str | Cell]] = []
    for record in found:
        rows.append([record.model, *(_cell(record.metrics.get(name)) for name in names)])
        if any(f"prefixed_{name}" in record.metrics for name in names):
            prefix = str(record.config.get("prefix", "")).strip()
            row = Cell(words=record.model, aside=f"with “{prefix}” before each caption")
            rows.append([row, *(_cell(record.metrics.get(f"prefixed_{name}")) for name in names)])
    rows.append(["chance", *(report.percent(found[0].metrics[name].chance) for name in names)])
    count = found[0].counts
    gallery = f"{count['images']:,} pictures and {count['texts']:,} texts"
    return Figure(
        name=slug("retrieval", task),
        title=task_title(task),
        says="Texts of a picture, and pictures of a text: the share of queries that find what belongs to them among the best "
        f"k of {gallery}. A picture is found by any of its captions. Larger galleries are harder, so only results on the same "
        "one can be compared.",
        more=report.table(["", *map(words, names)], rows, caption=f"Recall on {task_title(task)}"),
        wide=True,
    )


def words(name: str) -> str:
    """ "image_to_text_r5" as a heading: "texts, R@5"."""
    found = RECALL.fullmatch(name)
    return f"{DIRECTIONS[found['direction']].split()[0]}, R@{found['k']}" if found else name.replace("_", " ")


def _cell(metric: Metric | None) -> Cell:
    if metric is None:
        return Cell(words="–", kind="low")
    value, interval = words_of("recall", metric)
    return Cell(words=value, aside=interval)


def _curves(records: Sequence[Record], found: Sequence[Record], task: str, direction: str) -> Figure | None:
    curves = {r.model: r.details.get("curves", {}).get(direction, []) for r in found}
    curves = {model: [(float(k), float(recall)) for k, recall in curve] for model, curve in curves.items() if len(curve) > 1}
    if not curves:
        return None
    last = max(k for curve in curves.values() for k, _ in curve)
    steps = tuple(float(tick) for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if tick <= last)
    scale = Scale(low=1.0, high=last, ticks=steps, even=math.log, words=short_number)
    frame = Frame(x=scale, y=linear([0.0, 1.0]), x_label="k", y_label="recall at k", width=420, height=300)
    parts = []
    for model, curve in curves.items():
        look = style(records, model)
        kind = f"line c{look.colour}" + (" dashed" if look.dashed else "")
        parts.append(f'<polyline class="{kind}" points="{frame.path(curve)}"/>')
        parts += [
            mark(look.shape, *frame.at(k, recall), look.colour, size=4.0, title=f"{model}, R@{k:g}: {100 * recall:.1f} %")
            for k, recall in curve if k in (1, 5, 10)
        ]  # fmt: skip
    told = "; ".join(f"{model}: " + ", ".join(f"R@{k:g} {100 * r:.1f} %" for k, r in curve) for model, curve in curves.items())
    return Figure(
        name=slug("retrieval", task, direction),
        title=f"{task_title(task)}: {DIRECTIONS[direction]}",
        says="Marks at 1, 5 and 10.",
        svg=frame.draw(parts, title=f"Recall at k on {task_title(task)}, {DIRECTIONS[direction]}", description=told),
        keys=tuple(Key(name=model, style=style(records, model), what="both") for model in curves) if len(curves) > 1 else (),
    )
