"""Marks, colours and keys of series: each model has a colour and a shape of its own, so that neither is needed alone."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Sequence

from ostension.evals.charts import Number

COLOURS, SHAPES = 6, 8
KEY_WIDTH = 26
SMALL = 3.5  # below it a rim of the usual width would hide the mark


@dataclasses.dataclass(frozen=True, kw_only=True)
class Style:
    """How a series looks: a colour 1..6, a shape 0..7, dashed lines once the colours begin again."""

    colour: int
    shape: int
    dashed: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Key:
    """One entry of a legend: a name with what stands for it: "mark", "line", "both", "bar", "star" or "plain" (a grey line)."""

    name: str
    style: Style
    what: str = "mark"


def style_of(index: int) -> Style:
    """The look of series number `index`."""
    return Style(colour=index % COLOURS + 1, shape=index % SHAPES, dashed=index >= COLOURS)


def mark(shape: int, x: Number, y: Number, colour: int, *, size: Number = 5.0, title: str = "") -> str:
    """A mark at a place: circle, square, triangle, diamond, triangle on its tip, pentagon, cross, star. `title` on hovering."""
    style = f'class="dot{" small" if size < SMALL else ""} c{colour}"'
    inside = f"<title>{html.escape(title)}</title>" if title else ""
    if shape == 0:
        return f'<circle {style} cx="{x:.1f}" cy="{y:.1f}" r="{size:g}">{inside}</circle>'
    points = " ".join(f"{x + size * dx:.1f},{y + size * dy:.1f}" for dx, dy in _OUTLINES[shape])
    return f'<polygon {style} points="{points}">{inside}</polygon>'


def star(x: Number, y: Number, colour: int, *, title: str = "") -> str:
    """The star that stands for zero-shot."""
    return mark(7, x, y, colour, size=8.5, title=title)


def keys_html(keys: Sequence[Key]) -> str:
    """A legend for the page; nothing for no keys."""
    if not keys:
        return ""
    listed = []
    for key in keys:
        swatch = f'<svg class="swatch chart" aria-hidden="true" viewBox="0 0 {KEY_WIDTH} 14">{_swatch(key, 0, 7)}</svg>'
        listed.append(f"<li>{swatch}{html.escape(key.name)}</li>")
    return '<ul class="legend">' + "".join(listed) + "</ul>"


def keys_svg(keys: Sequence[Key], left: Number, top: Number) -> tuple[list[str], float]:
    """The same legend as parts of an SVG, one entry a line, and the height that it takes."""
    parts = []
    for row, key in enumerate(keys):
        y = top + 20 * row + 10
        name = f'<text class="label" x="{left + KEY_WIDTH + 8:g}" y="{y + 4.5:g}">{html.escape(key.name)}</text>'
        parts += [_swatch(key, left, y), name]
    return parts, 20.0 * len(keys)


def _swatch(key: Key, left: Number, y: Number) -> str:
    style = key.style
    middle = left + KEY_WIDTH / 2
    if key.what == "star":
        return star(middle, y, style.colour)
    if key.what == "bar":
        return f'<rect class="fill c{style.colour}" x="{left + 4:g}" y="{y - 5:g}" width="18" height="10" rx="2"/>'
    kind = "reference" if key.what == "plain" else f"line c{style.colour}"
    kind += " dashed" if style.dashed else ""
    line = f'<line class="{kind}" x1="{left:g}" x2="{left + KEY_WIDTH:g}" y1="{y:g}" y2="{y:g}"/>'
    dot = mark(style.shape, middle, y, style.colour)
    return {"mark": dot, "line": line, "plain": line, "both": line + dot}[key.what]


def _polygon(corners: int, turn: float, scale: float) -> list[tuple[Number, Number]]:
    angles = [2 * math.pi * corner / corners + turn for corner in range(corners)]
    return [(scale * math.sin(angle), -scale * math.cos(angle)) for angle in angles]


def _star() -> list[tuple[Number, Number]]:
    outer, inner = _polygon(5, 0.0, 1.15), _polygon(5, math.pi / 5, 0.5)
    return [point for pair in zip(outer, inner, strict=True) for point in pair]


# Scaled so that all have about the area of the circle.
_OUTLINES: dict[int, list[tuple[Number, Number]]] = {
    1: _polygon(4, math.pi / 4, 1.25),
    2: _polygon(3, 0.0, 1.45),
    3: _polygon(4, 0.0, 1.25),
    4: _polygon(3, math.pi, 1.45),
    5: _polygon(5, 0.0, 1.2),
    6: [(-0.4, -1.2), (0.4, -1.2), (0.4, -0.4), (1.2, -0.4), (1.2, 0.4), (0.4, 0.4), (0.4, 1.2), (-0.4, 1.2), (-0.4, 0.4),
        (-1.2, 0.4), (-1.2, -0.4), (-0.4, -0.4)],
    7: _star(),
}  # fmt: skip
