"""Zero-shot against linear probe over sets, with their correlation, line and its band (after CLIP's Figure 8)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ostension.evals.chart_frame import Frame, label, linear
from ostension.evals.chart_marks import Key, mark, style_of
from ostension.evals.figure import Figure
from ostension.evals.records import Record
from ostension.evals.selection import models, one, slug, style, task_title, tasks
from ostension.evals.statistics import Line, least_squares, pearson
from ostension.runtime import numpy_generator

SECTION = "labels"
MIN_SETS = 4  # a line through three points says nothing
RESAMPLES = 1_000
STEPS = 24  # points of the band
NAMED = 5


def draw(records: Sequence[Record]) -> list[Figure]:
    found = [figure for model in models(records) if (figure := _of_model(records, model))]
    return [dataclasses.replace(figure, detail=place > 0) for place, figure in enumerate(found)]


def line_band(x: np.ndarray, y: np.ndarray, at: np.ndarray, *, seed: int = 0) -> tuple[Line, np.ndarray, np.ndarray]:
    """The line through points, and at `at` the 95 % percentile band of lines through points drawn with replacement."""
    line = least_squares(x, y)
    rows = numpy_generator(seed, "band").integers(len(x), size=(RESAMPLES, len(x)))
    over, up = x[rows], y[rows]
    centred = over - over.mean(axis=1, keepdims=True)
    spread = (centred**2).sum(axis=1)
    usable = spread > 1e-12  # a draw of one point many times has no slope
    slopes = (centred * up).sum(axis=1)[usable] / spread[usable]
    values = up.mean(axis=1)[usable, None] + slopes[:, None] * (at[None] - over.mean(axis=1)[usable, None])
    low, high = np.quantile(values, [0.025, 0.975], axis=0)
    return line, low, high


def _of_model(records: Sequence[Record], model: str) -> Figure | None:
    points = []
    for task in tasks(records, "zeroshot"):
        zero_shot, probe = one(records, "zeroshot", model, task), one(records, "probe", model, task)
        if zero_shot and probe:
            points.append((probe.headline.value, zero_shot.headline.value, task_title(task)))
    if len(points) < MIN_SETS or len({x for x, _, _ in points}) < 2 or len({y for _, y, _ in points}) < 2:
        return None
    x, y = np.array([p[0] for p in points]), np.array([p[1] for p in points])
    (r, p), look = pearson(x, y), style(records, model)
    at = np.linspace(x.min(), x.max(), STEPS)
    line, low, high = line_band(x, y, at)
    frame = Frame(x=linear(list(x)), y=linear(list(y)), x_label="linear probe", y_label="zero-shot", width=420, height=380)
    fitted = [(float(v), line(float(v))) for v in (at[0], at[-1])]
    outline = [*zip(at, high, strict=True), *zip(at[::-1], low[::-1], strict=True)]
    clip = slug("inside", model)
    (left, bottom), (right, top) = frame.at(frame.x.low, frame.y.low), frame.at(frame.x.high, frame.y.high)
    box = f'x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}"'
    parts = [
        f'<clipPath id="{clip}"><rect {box}/></clipPath><g clip-path="url(#{clip})">',
        frame.diagonal(),
        f'<polygon class="band c{look.colour}" points="{frame.path([(float(a), float(b)) for a, b in outline])}"/>',
        f'<polyline class="line c{look.colour}" points="{frame.path(fitted)}"/></g>',
    ]
    for over, up, name in points:
        words = f"{name}: probe {100 * over:.1f} %, zero-shot {100 * up:.1f} %"
        parts.append(mark(look.shape, *frame.at(over, up), look.colour, title=words))
    parts += _names(frame, sorted(points, key=lambda point: -abs(point[1] - line(point[0]))))
    each = "; ".join(f"{name} {100 * up:.0f} against {100 * over:.0f}" for over, up, name in points)
    told = f"r = {r:.2f}, slope {line.slope:.2f}. {each}"
    return Figure(
        name=slug("zero-shot-against-probe", model),
        title=f"Does zero-shot follow the probe? {model}",
        says=f"r = {r:.2f} (p = {p:.2g}), slope {line.slope:.2f} over {len(points)} sets. On the dashed line both are "
        "equal. The sets furthest from the line are named. The band is where 95 % of lines lie "
        "when sets are drawn anew; few sets make it wide.",
        svg=frame.draw(parts, title=f"Zero-shot against linear probe, {model}", description=told),
        keys=(Key(name="a set", style=look), Key(name="least squares", style=look, what="line"),
              Key(name="both equal", style=style_of(6), what="plain")),
    )  # fmt: skip


def _names(frame: Frame, points: Sequence[tuple[float, float, str]]) -> list[str]:
    """The names of the first points that have room for one."""
    taken: list[tuple[float, float]] = []
    parts: list[str] = []
    for x, y, name in points:
        place_x, place_y = frame.at(x, y)
        free = all(abs(place_y - other_y) > 16 or abs(place_x - other_x) > 110 for other_x, other_y in taken)
        if len(parts) < NAMED and free:
            left = place_x > frame.width * 0.6
            parts.append(label(place_x + (-9 if left else 9), place_y + 4, name, "end" if left else "start", "aside"))
            taken.append((place_x, place_y))
    return parts
