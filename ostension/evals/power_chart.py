"""Power laws as inline SVG: both axes logarithmic, runs as dots, each law a line with its band, dashed beyond the runs."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Callable, Sequence

import numpy as np

from ostension.evals.charts import Line, legend, svg

WIDTH, HEIGHT = 660, 380
LEFT, RIGHT, TOP, BOTTOM = 62.0, 16.0, 14.0, 40.0
MARGIN = 0.04  # of each axis, so that no dot lies on the edge


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cloud:
    """Runs: (N,) places, with the name of each, which shows on hovering."""

    names: Sequence[str]
    x: np.ndarray
    y: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class PowerLine:
    """A law (M,) with its band; `known` is the range of compute that it was fitted on."""

    name: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray
    colour: int
    known: tuple[float, float]


def power_chart(
    cloud: Cloud, lines: Sequence[PowerLine], *, title: str, description: str, x_label: str, y_label: str
) -> str:
    """An SVG of runs and laws over logarithmic axes."""
    xs = np.concatenate([cloud.x, *(line.x for line in lines)])
    # A wide band must not push everything else to the edge, so the axis follows the runs and the lines.
    ys = np.concatenate([cloud.y, *(line.y for line in lines)])
    at_x, at_y = _axis(xs, LEFT, WIDTH - RIGHT), _axis(ys, HEIGHT - BOTTOM, TOP)
    inner = f'x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{HEIGHT - TOP - BOTTOM}"'
    parts = [f'<clipPath id="plot"><rect {inner}/></clipPath>']
    for y in log_ticks(ys.min(), ys.max()):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at_y(y):.1f}" y2="{at_y(y):.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at_y(y) + 4:.1f}" text-anchor="end">{y:.3g}</text>')
    for x in log_ticks(xs.min(), xs.max()):
        parts.append(f'<line class="grid" x1="{at_x(x):.1f}" x2="{at_x(x):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{at_x(x):.1f}" y="{HEIGHT - BOTTOM + 16:.0f}" text-anchor="middle">{x:.3g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{html.escape(x_label)}</text>')
    for line in lines:
        around = [*zip(line.x, line.high, strict=True), *zip(line.x[::-1], line.low[::-1], strict=True)]
        outline = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in around)
        parts.append(f'<polygon class="band c{line.colour}" points="{outline}" clip-path="url(#plot)"/>')
    for line in lines:
        for inside in (True, False):
            for piece in _pieces(line, inside):
                path = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in piece)
                style = f"line c{line.colour}" + ("" if inside else " dashed")
                parts.append(f'<polyline class="{style}" points="{path}"/>')
    for name, x, y in zip(cloud.names, cloud.x, cloud.y, strict=True):
        dot = f'<circle class="dot c2" r="4" cx="{at_x(x):.1f}" cy="{at_y(y):.1f}">'
        parts.append(f"{dot}<title>{html.escape(f'{name}: {x:.4g}, {y:.4g}')}</title></circle>")
    keys = [Line(name=line.name, points=(), colour=line.colour) for line in lines]
    return svg(parts, WIDTH, HEIGHT, title, description) + legend([*keys, Line(name=f"runs, {y_label}", points=(), colour=2)])


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two positive ones: powers of ten, with 2 and 5 times them, or finer ones, where few fit."""
    for factors in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)):
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [factor * 10.0**power for power in powers for factor in factors]
        found = [tick for tick in found if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(found) >= 3:
            break
    return found[:: max(1, math.ceil(len(found) / 10))] or [low]


def _axis(values: np.ndarray, start: float, end: float) -> Callable[[float], float]:
    """A function from a value to its place between two pixels."""
    low, high = math.log10(values.min()), math.log10(values.max())
    space = MARGIN * ((high - low) or 1.0)
    low, high = low - space, high + space
    return lambda value: start + (math.log10(value) - low) / (high - low) * (end - start)


def _pieces(line: PowerLine, inside: bool) -> list[list[tuple[float, float]]]:
    """The parts of a line within the runs, or beyond them; each has two points or more."""
    first, last = line.known
    ends = [(first, last)] if inside else [(line.x[0], first), (last, line.x[-1])]
    slope = math.log(line.y[-1] / line.y[0]) / math.log(line.x[-1] / line.x[0])
    return [
        [(x, float(line.y[0] * (x / line.x[0]) ** slope)) for x in (low, high)] for low, high in ends if high > low * (1 + 1e-9)
    ]
