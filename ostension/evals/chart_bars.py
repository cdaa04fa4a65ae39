"""Rows of bars from zero: estimates with intervals, or differences to both sides; each row's name stands above its bars.

Names above bars keep a chart readable on a phone, where there is no room beside them.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable, Sequence

from ostension.evals.chart_frame import Scale
from ostension.evals.chart_marks import Style, mark
from ostension.evals.charts import Number, svg

WIDTH, EDGE, VALUES = 420, 4, 66
NAME, BAR, GAP, FOOT = 20, 15, 8, 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar: its value with the words beside it, and an interval where there is one. `faint` marks what is a bound only."""

    value: Number
    words: str
    style: Style
    low: Number | None = None
    high: Number | None = None
    faint: bool = False
    title: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A name with its bars, a note at the right end of its line, and a tick at chance."""

    name: str
    bars: Sequence[Bar]
    note: str = ""
    chance: Number | None = None


def bar_chart(
    rows: Sequence[Row],
    scale: Scale,
    *,
    title: str,
    description: str,
    label: str,
    lines: Sequence[tuple[Number, str]] = (),
    together: bool = False,
) -> str:
    """An SVG of rows over one scale.

    Args:
        label: of the axis, below.
        lines: values with a name, drawn through all rows.
        together: draw a row's bars as marks on one line, without their words, to compare many models.
    """
    right = float(WIDTH - (EDGE if together else VALUES))

    def at(value: Number) -> float:
        return EDGE + min(max(scale.at(value), 0.0), 1.0) * (right - EDGE)

    def depth(row: Row) -> int:
        return BAR * (1 if together else len(row.bars))

    height = sum(NAME + depth(row) + GAP for row in rows) + FOOT + 15 * len(lines)
    bottom = height - FOOT
    zero = at(0.0)
    parts = []
    for tick in scale.ticks:
        x, kind = at(tick), "reference" if tick == 0 and scale.low < 0 else "grid"
        anchor = "start" if x < EDGE + 8 else "middle"  # the first one would stick out
        parts.append(f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{15 * len(lines)}" y2="{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="{anchor}">{html.escape(scale.words(tick))}</text>')
    parts.append(f'<text class="axis" x="{EDGE}" y="{height - 5}">{html.escape(label)}</text>')
    top = 15.0 * len(lines)
    behind, names = len(parts), []  # names lie over the grid and under all marks
    for row in rows:
        name_y, first = top + 14, top + NAME
        names.append(f'<text class="label" x="{EDGE}" y="{name_y:.1f}">{html.escape(row.name)}</text>')
        if row.note:
            names.append(f'<text class="aside" x="{WIDTH}" y="{name_y:.1f}" text-anchor="end">{html.escape(row.note)}</text>')
        if together:
            parts += _marks(row.bars, first + BAR / 2, at, right)
        for number, bar in enumerate(() if together else row.bars):
            parts += _bar(bar, first + BAR * number + BAR / 2, at, zero)
        if row.chance is not None:
            x, last = at(row.chance), first + depth(row)
            parts.append(f'<line class="chance" x1="{x:.1f}" x2="{x:.1f}" y1="{first:.1f}" y2="{last:.1f}"/>')
        top = first + depth(row) + GAP
    for number, (value, name) in enumerate(lines):
        x, y = at(value), 15 * number + 11
        anchor = "start" if x < WIDTH * 0.6 else "end"
        shift = 5 if anchor == "start" else -5
        parts.append(f'<line class="reference dashed" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 9}" y2="{bottom}"/>')
        parts.append(f'<text class="aside" x="{x + shift:.1f}" y="{y}" text-anchor="{anchor}">{html.escape(name)}</text>')
    return svg([*parts[:behind], *names, *parts[behind:]], WIDTH, height, title, description)


def _marks(bars: Sequence[Bar], y: Number, at: Callable[[Number], float], right: Number) -> list[str]:
    parts = [f'<line class="grid" x1="{EDGE}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>']
    for number, bar in enumerate(bars):  # a little apart, so that equal ones do not hide each other
        place = y + min(4.0, BAR / len(bars)) * (number - (len(bars) - 1) / 2)
        parts.append(mark(bar.style.shape, at(bar.value), place, bar.style.colour, title=bar.title or bar.words))
    return parts


def _bar(bar: Bar, y: Number, at: Callable[[Number], float], zero: Number) -> list[str]:
    x = at(bar.value)
    left, width = min(x, zero), max(abs(x - zero), 0.8)
    kind = f"fill c{bar.style.colour}" + (" faint" if bar.faint else "")
    inside = f"<title>{html.escape(bar.title)}</title>" if bar.title else ""
    parts = [f'<rect class="{kind}" x="{left:.1f}" y="{y - 4.5:.1f}" width="{width:.1f}" height="9" rx="2">{inside}</rect>']
    if bar.low is not None and bar.high is not None:
        parts.append(f'<line class="line whisker" x1="{at(bar.low):.1f}" x2="{at(bar.high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
    parts.append(mark(bar.style.shape, x, y, bar.style.colour, size=4.0))
    parts.append(f'<text class="value" x="{WIDTH}" y="{y + 4.5:.1f}" text-anchor="end">{html.escape(bar.words)}</text>')
    return parts
