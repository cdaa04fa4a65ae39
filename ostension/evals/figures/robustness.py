"""Accuracy on shifted pictures against accuracy on the original ones, both as logits (after CLIP's Figures 13 to 15)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ostension.evals import report
from ostension.evals.chart_frame import Frame, label, logits
from ostension.evals.chart_marks import Key, Style, mark, style_of
from ostension.evals.charts import Number
from ostension.evals.effective_robustness import logit, sigmoid
from ostension.evals.figure import Figure
from ostension.evals.records import Record
from ostension.evals.report import Cell
from ostension.evals.selection import find, models, slug, style, task_title
from ostension.evals.shifts import ZERO_SHOT
from ostension.evals.testbed import PUBLISHED, SEVEN, SHIFTS, STANDARD, named_shift, read_testbed

SECTION = "robustness"
PLAIN, TRAINED_ON_MORE, LINE = Style(colour=6, shape=0), Style(colour=4, shape=2), Style(colour=6, shape=0)
STEPS = 40
MARGIN = 0.35  # logits beyond the models, so that their neighbours are seen
Points = Sequence[tuple[str, float, float, str]]  # name, x, y, kind


def draw(records: Sequence[Record]) -> list[Figure]:
    found = find(records, "effective-robustness")
    if not found:
        return []
    figures = []
    seven = {record.model: _points(record.details["points"], record.model) for record in found}
    if any(seven.values()):
        bed = [point for point in _points(found[0].details["points"], "") if point[0] not in models(found)]
        title = "Mean of the seven shifts"
        figures.append(_figure(records, SEVEN, title, bed, found[0].details["line"], {k: v for k, v in seven.items() if v}))
    figures.append(_table(found))
    for shift in dict.fromkeys(name for record in found for name in record.details["shifts"]):
        own = {r.model: _points(r.details["shifts"].get(shift, {}).get("points", []), r.model) for r in found}
        line = next((r.details["shifts"][shift]["line"] for r in found if shift in r.details["shifts"]), None)
        bed = _bed(shift, found[0])
        figures.append(_figure(records, shift, task_title(shift), bed, line, {k: v for k, v in own.items() if v}, detail=True))
    return figures


def line_points(line: Mapping[str, Any], low: Number, high: Number) -> list[list[tuple[float, float]]]:
    """The line, or the two that meet at a pivot, between two shares; straight where both axes are logits."""
    at = np.linspace(float(logit(np.array(low))), float(logit(np.array(high))), STEPS)
    pivot = line.get("pivot")
    edge = None if pivot is None else float(logit(np.array(pivot)))
    parts = [at] if edge is None else [at[at < edge], at[at >= edge]]
    return [
        [(sigmoid(float(x)), sigmoid(one["intercept"] + one["slope"] * float(x))) for x in part]
        for one, part in zip(line["lines"], parts, strict=True)
    ]


def _points(rows: Sequence[Sequence[Any]], model: str) -> list[tuple[str, float, float, str]]:
    return [(str(n), float(x), float(y), str(kind)) for n, x, y, kind in rows if not model or n == model]


def _bed(shift: str, record: Record) -> list[tuple[str, float, float, str]]:
    """The published test bed's models on a shift, where the record was compared with it."""
    if record.config.get("testbed") != PUBLISHED.name or shift not in {known.name for known in SHIFTS}:
        return []
    bed = read_testbed()
    xs, ys = bed.accuracies(named_shift(shift))
    rows = zip(bed.models, xs.tolist(), ys.tolist(), bed.families, strict=True)
    return [(name, x, y, family) for name, x, y, family in rows if 0 < x < 1 and 0 < y < 1]


def _figure(
    records: Sequence[Record], name: str, title: str, bed: Points, line: Mapping[str, Any] | None,
    own: Mapping[str, Points], *, detail: bool = False,
) -> Figure:  # fmt: skip
    mine = [point for points in own.values() for point in points]
    lowest = float(logit(np.array(min(min(x, y) for _, x, y, _ in mine)))) - MARGIN
    near = [point for point in bed if float(logit(np.array(point[1]))) > min(lowest, 0.0)]
    xs, ys = [x for _, x, _, _ in [*mine, *near]], [y for _, _, y, _ in [*mine, *near]]
    frame = Frame(x=logits(xs), y=logits(ys), x_label="accuracy on the original pictures, same classes",
                  y_label="accuracy on the shifted ones", width=420, height=380)  # fmt: skip
    (left, bottom), (right, top) = frame.at(frame.x.low, frame.y.low), frame.at(frame.x.high, frame.y.high)
    clip = slug("inside", name)
    box = f'x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}"'
    parts = [f'<clipPath id="{clip}"><rect {box}/></clipPath><g clip-path="url(#{clip})">', frame.diagonal()]
    pieces = line_points(line, frame.x.low, frame.x.high) if line else []
    parts += [f'<polyline class="line c{LINE.colour}" points="{frame.path(piece)}"/>' for piece in pieces]
    parts.append("</g>")
    for model, x, y, family in near:
        look = PLAIN if family == STANDARD else TRAINED_ON_MORE
        words = f"{model} ({family}): {100 * x:.1f} % and {100 * y:.1f} %"
        parts.append(mark(look.shape, *frame.at(x, y), look.colour, size=3.2, title=words))
    for model, x, y, kind in mine:
        look = style(records, model)
        place = frame.at(x, y)
        words = f"{model}, {kind}: {100 * x:.1f} % and {100 * y:.1f} %"
        parts.append(mark(look.shape, *place, look.colour, size=6.5, title=words))
        if kind != ZERO_SHOT:
            parts.append(label(place[0] + 10, place[1] + 4, kind, "start", "aside"))
    told = "; ".join(f"{model}, {kind}: original {100 * x:.1f} %, shifted {100 * y:.1f} %" for model, x, y, kind in mine)
    keys = [Key(name=model, style=style(records, model)) for model in own]
    if near:
        keys += [Key(name="ordinary ImageNet models", style=PLAIN), Key(name="other published models", style=TRAINED_ON_MORE)]
    if line:
        keys.append(Key(name="line of ordinary models", style=LINE, what="line"))
    keys.append(Key(name="no loss", style=style_of(6), what="plain"))
    return Figure(
        name=slug("robustness", name), title=title, says=_says(mine, line), keys=tuple(keys), detail=detail,
        svg=frame.draw(parts, title=f"Accuracy on shifted against original pictures, {title}", description=told),
    )  # fmt: skip


def _says(mine: Points, line: Mapping[str, Any] | None) -> str:
    said = []
    for model, x, y, kind in mine:
        who = model if kind == ZERO_SHOT else f"{model}, {kind}"
        if line:
            pieces = line["lines"]
            one = pieces[-1] if line.get("pivot") is None or x >= line["pivot"] else pieces[0]
            at = sigmoid(one["intercept"] + one["slope"] * float(logit(np.array(x))))
            points = f"{100 * (y - at):+.1f}".replace("-", "−")
            said.append(f"{who}: {100 * x:.1f} % on the original, {100 * y:.1f} % shifted, {points} points from the line.")
        else:
            said.append(f"{who}: {100 * x:.1f} % on the original, {100 * y:.1f} % shifted; there is no line to compare with.")
    return " ".join(said)


def _table(found: Sequence[Record]) -> Figure:
    rows: list[list[str | Cell]] = []
    for record in found:
        for row in record.details["table"]:
            effective: str | Cell = ""
            if row["effective"] is not None:
                span = f"{_points_words(row['low'])} to {_points_words(row['high'])}"
                effective = Cell(words=_points_words(row["effective"]), aside=span)
            name = "mean of the seven" if row["shift"] == SEVEN else task_title(row["shift"])
            rows.append([
                Cell(words=name, aside=f"{record.model}, {row['kind']}"), report.percent(row["x"]), report.percent(row["y"]),
                effective, "" if row["relative"] is None else _points_words(row["relative"]),
            ])  # fmt: skip
    notes = list(dict.fromkeys(note for record in found for note in record.details["notes"]))
    head = ["shift", "original", "shifted", "effective robustness, points", "against zero-shot, points"]
    told = [column for column in range(len(head)) if any(row[column] for row in rows)]  # no column that says nothing
    head, rows = [head[column] for column in told], [[row[column] for column in told] for row in rows]
    says = "Intervals are at 99.5 % and take the line as fixed." if 3 in told else ""
    return Figure(
        name="robustness-table", title="Every shift in numbers", wide=True,
        says=says,
        more=report.table(head, rows, caption="Robustness by shift") + (report.bullets(notes) if notes else ""),
    )  # fmt: skip


def _points_words(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")
