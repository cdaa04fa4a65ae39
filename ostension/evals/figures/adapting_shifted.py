"""Methods that adapt: out of distribution against in distribution, with the lines from zero-shot weights to tuned ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ostension.evals.adaptation_table import OOD, Row, rows_of_records
from ostension.evals.chart_frame import Frame, linear
from ostension.evals.chart_marks import Key, mark, star, style_of
from ostension.evals.figure import Figure
from ostension.evals.records import Record
from ostension.evals.selection import slug, target, task_title

SECTION = "robustness"
ZERO_SHOT, ALPHA = "zero-shot", ": alpha "
Points = Mapping[tuple[str, int], tuple[Row, Row]]  # (in distribution, out of it) by method and shots


def draw(records: Sequence[Record]) -> list[Figure]:
    """One figure a (model, task) whose predictors were measured on other tasks too."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record.protocol.startswith("adapt-") and not record.config["base_to_new"] and any("@" in n for n in record.metrics):
            groups.setdefault((record.model, target(record)), []).append(record)
    return [_figure(model, task, kept) for (model, task), kept in groups.items()]


def _figure(model: str, task: str, records: Sequence[Record]) -> Figure:
    points = _points(records)
    methods = list(dict.fromkeys(method for method, _ in points if ALPHA not in method))
    frame = Frame(
        x=linear([row.mean for row, _ in points.values()]), y=linear([row.mean for _, row in points.values()]),
        x_label="in distribution", y_label="out of distribution, mean over other tasks", width=420, height=380,
    )  # fmt: skip
    parts, keys = [frame.diagonal()], []
    for number, method in enumerate(methods):
        look = style_of(number)
        for shots in dict.fromkeys(shots for name, shots in points if name.startswith(method + ALPHA)):
            line = _line(points, method, shots)
            path = frame.path([(x, y) for _, x, y in line])
            parts.append(f'<polyline class="line c{look.colour}" points="{path}"/>')
            parts += [mark(0, *frame.at(x, y), look.colour, size=2.5, title=f"{method}, alpha {alpha:g}: {_words(x, y)}")
                      for alpha, x, y in line]  # fmt: skip
        for (name, shots), (own, other) in points.items():
            if name == method:
                what = f"{method}, {shots or 'all'} a class" if method != ZERO_SHOT else method
                place, title = frame.at(own.mean, other.mean), f"{what}: {_words(own.mean, other.mean)}"
                parts += _cross(frame, own, other, look.colour)
                parts.append(
                    star(*place, look.colour, title=title) if method == ZERO_SHOT
                    else mark(look.shape, *place, look.colour, title=title)
                )  # fmt: skip
        keys.append(Key(name=method, style=look, what="star" if method == ZERO_SHOT else "mark"))
    keys.append(Key(name="no loss", style=style_of(6), what="plain"))
    told = "; ".join(f"{name}, {shots or 'all'} a class: {_words(own.mean, other.mean)}"
                     for (name, shots), (own, other) in points.items())  # fmt: skip
    title = f"{task_title(task)}, {model}"
    others = sorted({name for record in records for name in record.metrics if "@" in name and "/" not in name})
    says = f"Out of distribution is the mean over {', '.join(others)}. Bars are 95 % intervals over seeds and test pictures."
    if any(ALPHA in name for name, _ in points):
        says += " Lines go from zero-shot weights to tuned ones; nothing is chosen on them."
    return Figure(
        name=slug("adapting-shifted", model, task), title=f"What adapting keeps elsewhere: {title}", says=says,
        svg=frame.draw(parts, title=f"Out of distribution against in distribution, {title}", description=told),
        keys=tuple(keys),
    )  # fmt: skip


def _points(records: Sequence[Record]) -> Points:
    """The task's own score and the mean over other tasks."""
    found: dict[tuple[str, int], dict[str, Row]] = {}
    for row in rows_of_records(records):
        cells = found.setdefault((row.method, row.shots), {})
        cells.setdefault("own", row)  # the score comes first
        if row.metric == OOD:
            cells["other"] = row
    return {key: (cells["own"], cells["other"]) for key, cells in found.items() if "other" in cells}


def _line(points: Points, method: str, shots: int) -> list[tuple[float, float, float]]:
    """(alpha, x, y) of a method's line, from zero-shot on."""
    beginning = method + ALPHA
    found = [(float(name.removeprefix(beginning)), own.mean, other.mean)
             for (name, count), (own, other) in points.items() if name.startswith(beginning) and count == shots]  # fmt: skip
    return sorted(found)


def _cross(frame: Frame, own: Row, other: Row, colour: int) -> list[str]:
    """The intervals of both scores, as far as the frame reaches."""
    parts = []
    for row, along in ((own, "x"), (other, "y")):
        if row.interval is not None:
            scale = frame.x if along == "x" else frame.y
            low, high = max(row.interval.low, scale.low), min(row.interval.high, scale.high)
            ends = [(low, other.mean), (high, other.mean)] if along == "x" else [(own.mean, low), (own.mean, high)]
            parts.append(f'<polyline class="line c{colour}" stroke-opacity="0.35" points="{frame.path(ends)}"/>')
    return parts


def _words(x: float, y: float) -> str:
    return f"{100 * x:.1f} % in distribution, {100 * y:.1f} % out of it"
