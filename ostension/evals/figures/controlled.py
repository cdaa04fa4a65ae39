"""The same pictures, labelled or captioned, on the plane of effective robustness (after the ImageNet-Captions study)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ostension.evals import report
from ostension.evals.chart_frame import Frame, logits
from ostension.evals.chart_marks import Key, Style, mark, style_of
from ostension.evals.figure import Figure
from ostension.evals.figures.robustness import line_points
from ostension.evals.records import Record
from ostension.evals.selection import find, slug

SECTION = "robustness"
PROTOCOL = "imagenet-captions"
SHAPES = {"own": 0, "linear": 3}
HEAD_WORDS = {"own": "own head", "linear": "linear head"}
LINE = Style(colour=6, shape=0)


def draw(records: Sequence[Record]) -> list[Figure]:
    """One figure a record of the study."""
    return [_figure(record, place) for place, record in enumerate(find(records, PROTOCOL))]


def row(name: str, record: Record) -> tuple[str, str, str]:
    """Of a metric KIND/HEAD: what it is of, how many models, and its mean effective robustness in points with the interval."""
    kind, _, head = name.partition("/")
    metric, count = record.metrics[name], sum((p["kind"], p["head"]) == (kind, head) for p in record.details["points"])
    assert metric.interval is not None
    span = f"{_points(metric.value)} ({_points(metric.interval.low)} to {_points(metric.interval.high)})"
    return f"{record.details['kinds'][kind]}, {HEAD_WORDS[head]}", str(count), span


def _figure(record: Record, place: int) -> Figure:
    points: Sequence[Mapping[str, Any]] = record.details["points"]
    kinds = list(record.details["kinds"])
    frame = Frame(
        x=logits([p["x"] for p in points]), y=logits([p["y"] for p in points]), x_label="accuracy in the original distribution",
        y_label="accuracy in the shifted one", width=460, height=400,
    )  # fmt: skip
    (left, bottom), (right, top) = frame.at(frame.x.low, frame.y.low), frame.at(frame.x.high, frame.y.high)
    box = f'x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}"'
    clip = slug("inside-controlled", str(place))
    parts = [f'<clipPath id="{clip}"><rect {box}/></clipPath><g clip-path="url(#{clip})">', frame.diagonal()]
    pieces = line_points(record.details["line"], frame.x.low, frame.x.high)
    parts += [f'<polyline class="line c{LINE.colour}" points="{frame.path(piece)}"/>' for piece in pieces]
    parts.append("</g>")
    names = {(kind, head): f"{words}, {HEAD_WORDS[head]}" for kind, words in record.details["kinds"].items() for head in SHAPES}
    for p in points:
        words = f"{names[p['kind'], p['head']]}, {p['pictures']:,} pictures, step {p['step']}"
        words += f": {100 * p['x']:.1f} % and {100 * p['y']:.1f} %"
        colour = style_of(kinds.index(p["kind"])).colour
        parts.append(mark(SHAPES[p["head"]], *frame.at(p["x"], p["y"]), colour, size=4.5, title=words))
    heads = [head for head in SHAPES if any(p["head"] == head for p in points)]
    keys = [
        Key(name=names[kind, head], style=Style(colour=style_of(number).colour, shape=SHAPES[head]))
        for number, kind in enumerate(kinds) for head in heads
    ]  # fmt: skip
    keys += [Key(name="line of the classifiers trained on labels", style=LINE, what="line"),
             Key(name="no loss", style=style_of(6), what="plain")]  # fmt: skip
    rows = [row(name, record) for name in record.metrics]
    told = "; ".join(f"{what}: {span} points" for what, _, span in rows)
    title = "The same pictures, labelled or captioned"
    low, high = record.details["range"]
    return Figure(
        name=slug("controlled", record.task, str(place) if place else ""), title=title,
        says="Numbers are points above the line, the mean over models that differ in pictures and steps, with the 95 % "
        f"interval over things drawn anew. The line's own models have {100 * low:.0f} to {100 * high:.0f} % in the original "
        "distribution; outside of that it is drawn on.",
        svg=frame.draw(parts, title=title, description=told), keys=tuple(keys),
        more=report.table(["models", "how many", "effective robustness, points"], rows, caption=title),
    )  # fmt: skip


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")
