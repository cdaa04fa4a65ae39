"""Charts as inline SVG: lines over steps, and estimates with intervals beside chance and a baseline.

Colours are CSS classes of the page, so the charts follow light and dark. Each chart is one picture to a screen reader,
with a title and a description in words; the numbers stand in tables beside them.
"""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Callable, Sequence

Number = float | int  # what a place may be given as; records hold both
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 34  # margins of a line chart, for tick labels of five letters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One curve: points (x, y), a name for the legend and a colour number 1..4. `dashed` marks a reference."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 1
    dashed: bool = False
    marks: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """One row of an interval plot, as shares 0..1: the estimate, its interval, chance and a baseline where there is one."""

    label: str
    value: float
    low: float
    high: float
    chance: float | None = None
    baseline: float | None = None
    note: str = ""


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    description: str,
    x_label: str,
    y_format: Callable[[float], str] = lambda value: f"{value:g}",
    y_from_zero: bool = False,
    x_log2: bool = False,
    width: int = 340,
    height: int = 220,
) -> str:
    """An SVG with the given curves; `x_log2` puts 1, 2, 4, 8, ... at equal distances."""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    y_ticks = ticks(0.0 if y_from_zero else min(ys), max(ys))
    low, high = min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys))
    place = math.log2 if x_log2 else float
    first, last = place(min(xs)), place(max(xs))

    def at_x(x: float) -> float:
        return LEFT + (place(x) - first) / ((last - first) or 1) * (width - LEFT - RIGHT)

    def at_y(y: float) -> float:
        return height - BOTTOM - (y - low) / ((high - low) or 1) * (height - TOP - BOTTOM)

    x_ticks = sorted(set(xs)) if x_log2 else [x for x in ticks(min(xs), max(xs)) if min(xs) <= x <= max(xs)]
    parts = []
    for y in y_ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{at_y(y):.1f}" y2="{at_y(y):.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at_y(y) + 4:.1f}" text-anchor="end">{html.escape(y_format(y))}</text>')
    below = height - BOTTOM + 16
    parts += [f'<text x="{at_x(x):.1f}" y="{below}" text-anchor="middle">{short_number(x)}</text>' for x in x_ticks]
    middle = (LEFT + width - RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle:.0f}" y="{height - 3}" text-anchor="middle">{html.escape(x_label)}</text>')
    for line in lines:
        path = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in line.points)
        style = f"line c{line.colour}" + (" dashed" if line.dashed else "")
        parts.append(f'<polyline class="{style}" points="{path}"/>')
        if line.marks:
            dot = f'<circle class="dot c{line.colour}" r="3.5"'
            parts += [f'{dot} cx="{at_x(x):.1f}" cy="{at_y(y):.1f}"/>' for x, y in line.points]
    return svg(parts, width, height, title, description) + legend(lines)


def interval_plot(rows: Sequence[Estimate], *, title: str, description: str, width: int = 660) -> str:
    """An SVG with one row for each estimate: a dot with its interval, a tick at chance, a diamond at the baseline."""
    row_height, left, right = 46, 8, 92
    height = row_height * len(rows) + 30
    values = [value for row in rows for value in (row.high, row.baseline or 0.0, row.chance or 0.0)]
    x_ticks = ticks(0.0, max(values), count=6)
    top = max(x_ticks[-1], max(values))

    def at(value: float) -> float:
        return left + value / top * (width - left - right)

    parts = []
    for x in x_ticks:
        parts.append(f'<line class="grid" x1="{at(x):.1f}" x2="{at(x):.1f}" y1="4" y2="{height - 24}"/>')
        anchor = "start" if x == 0 else "middle"  # the first label would stick out
        parts.append(f'<text x="{at(x):.1f}" y="{height - 8}" text-anchor="{anchor}">{100 * x:g} %</text>')
    for index, row in enumerate(rows):
        y = index * row_height + 32
        parts.append(f'<text class="label" x="{left}" y="{y - 12}">{html.escape(row.label)}</text>')
        if row.note:
            parts.append(f'<text class="aside" x="{width - 4}" y="{y - 12}" text-anchor="end">{html.escape(row.note)}</text>')
        parts.append(f'<line class="track" x1="{left}" x2="{width - right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<line class="line c1 thick" x1="{left}" x2="{at(row.value):.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<line class="line whisker" x1="{at(row.low):.1f}" x2="{at(row.high):.1f}" y1="{y}" y2="{y}"/>')
        if row.baseline is not None:
            x = at(row.baseline)
            parts.append(f'<path class="diamond" d="M{x:.1f} {y - 6} l6 6 l-6 6 l-6 -6 z"/>')
        if row.chance is not None:
            x = at(row.chance)
            parts.append(f'<line class="chance" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 8}" y2="{y + 8}"/>')
        parts.append(f'<circle class="dot c1" cx="{at(row.value):.1f}" cy="{y}" r="5.5"/>')
        parts.append(f'<text class="value" x="{width - 4}" y="{y + 5}" text-anchor="end">{100 * row.value:.1f} %</text>')
    return svg(parts, width, height, title, description)


def ticks(low: Number, high: Number, count: int = 5) -> list[float]:
    """About `count` round numbers that span `low` to `high`."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if raw <= factor * power * (1 + 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def short_number(value: Number) -> str:
    """A number for an axis: 1200 becomes 1.2k."""
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"


def svg(parts: Sequence[str], width: int, height: int, title: str, description: str) -> str:
    """A chart of these parts, with a title and a description for whoever does not see it."""
    title, description = html.escape(title), html.escape(description)
    head = f'<svg class="chart" role="img" viewBox="0 0 {width} {height}" aria-label="{title}. {description}">'
    return head + f"<title>{title}</title>" + "".join(parts) + "</svg>"


def legend(lines: Sequence[Line]) -> str:
    """The names of curves with their colours; nothing for a single one."""
    if len(lines) < 2:
        return ""
    keys = []
    for line in lines:
        style = f"key k{line.colour}" + (" dashed" if line.dashed else "")
        keys.append(f'<li><span class="{style}"></span>{html.escape(line.name)}</li>')
    return '<ul class="legend">' + "".join(keys) + "</ul>"
