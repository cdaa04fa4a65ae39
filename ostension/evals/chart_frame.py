"""The frame of a chart: two axes with their scales, grid lines, ticks and labels, and where a point lies in it.

Scales: `linear`; `shots`, where 0, 1, 2, 4, ... lie at equal distances; `logits`, on which accuracies of ordinary models under
a shift lie on a line. Label of the upward axis stands above it, level, as people read.
"""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Callable, Sequence

from ostension.evals.charts import Number, short_number, svg, ticks

LEFT, RIGHT, TOP, BOTTOM = 50, 18, 30, 42
# Shares at which an axis in logits may have a tick.
LOGIT_TICKS = (0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)
LOGIT_LIMITS = (0.0005, 0.9995)  # a share of 0 or 1 has no logit; it is drawn at the edge
MIN_TICK_DISTANCE = 0.075  # of the axis' length


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """An axis: its ends and ticks in the data's unit, and the function that makes it even."""

    low: Number
    high: Number
    ticks: tuple[Number, ...]
    even: Callable[[Number], float]
    words: Callable[[Number], str]

    def at(self, value: Number) -> float:
        """Where a value lies between the ends, 0 to 1."""
        low, high = self.even(self.low), self.even(self.high)
        return (self.even(value) - low) / ((high - low) or 1.0)


def percent_words(value: Number) -> str:
    """A share on an axis: "12.5 %"."""
    return f"{round(100 * value, 6):g} %"


def points_words(value: Number) -> str:
    """A difference of shares on an axis, in percentage points with its sign."""
    return f"{round(100 * value, 6):+g}".replace("-", "−") if value else "0"


def linear(
    values: Sequence[Number], *, words: Callable[[Number], str] = percent_words, zero: bool = False, ends: bool = True
) -> Scale:
    """An even scale over the values, from 0 if `zero`; it ends at a tick, or with `ends=False` at the outermost values."""
    low, high = min(values), max(values)
    low, high = (min(0.0, low), max(0.0, high)) if zero else (low, high)
    found = ticks(low, high)
    if ends:
        low, high = found[0], found[-1]
    return Scale(low=low, high=high, ticks=tuple(t for t in found if low <= t <= high), even=float, words=words)


def shots(values: Sequence[Number]) -> Scale:
    """Samples a class on a scale of doublings; 0 lies one doubling below the smallest other value."""
    positive = sorted({value for value in values if value > 0})
    floor = math.log2(positive[0]) - 1
    found = sorted({0.0, *positive}) if min(values) == 0 else positive

    def even(value: Number) -> float:
        return math.log2(value) if value > 0 else floor

    return Scale(low=found[0], high=found[-1], ticks=tuple(found), even=even, words=short_number)


def logits(values: Sequence[Number]) -> Scale:
    """Shares on an axis that is even in ln(p / (1 - p)), with some room at both ends."""

    def even(value: Number) -> float:
        value = min(max(value, LOGIT_LIMITS[0]), LOGIT_LIMITS[1])
        return math.log(value / (1 - value))

    def share(place: float) -> float:
        return 1 / (1 + math.exp(-place))

    low, high = even(min(values)), even(max(values))
    room = 0.06 * ((high - low) or 1.0)
    low, high = low - room, high + room
    found: list[float] = []
    for tick in LOGIT_TICKS:
        near = found and (even(tick) - even(found[-1])) / (high - low) < MIN_TICK_DISTANCE
        if low <= even(tick) <= high and not near:
            found.append(tick)
    return Scale(low=share(low), high=share(high), ticks=tuple(found), even=even, words=percent_words)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
    """Two axes in a picture of `width` x `height`."""

    x: Scale
    y: Scale
    x_label: str
    y_label: str
    width: int = 560
    height: int = 400
    left: int = LEFT

    def at(self, x: Number, y: Number) -> tuple[float, float]:
        """The place of a point, in the units of the picture."""
        inner_width, inner_height = self.width - self.left - RIGHT, self.height - TOP - BOTTOM
        return self.left + self.x.at(x) * inner_width, self.height - BOTTOM - self.y.at(y) * inner_height

    def path(self, points: Sequence[tuple[Number, Number]]) -> str:
        """Places of several points, as SVG writes them."""
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.at(*point) for point in points))

    def axes(self) -> list[str]:
        """Grid, ticks and labels."""
        parts = []
        right, bottom = self.width - RIGHT, self.height - BOTTOM
        for value in self.y.ticks:
            _, y = self.at(self.x.low, value)
            parts.append(f'<line class="grid" x1="{self.left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(label(self.left - 7, y + 4, self.y.words(value), "end"))
        for value in self.x.ticks:
            x, _ = self.at(value, self.y.low)
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
            parts.append(label(x, bottom + 17, self.x.words(value), "middle"))
        parts.append(label((self.left + right) / 2, self.height - 5, self.x_label, "middle", "axis"))
        parts.append(label(0, 13, self.y_label, "start", "axis"))
        return parts

    def diagonal(self) -> str:
        """The line y = x, as far as both axes reach."""
        low, high = max(self.x.low, self.y.low), min(self.x.high, self.y.high)
        steps = [low + (high - low) * step / 60 for step in range(61)] if high > low else []
        return f'<polyline class="reference dashed" points="{self.path([(value, value) for value in steps])}"/>'

    def draw(self, parts: Sequence[str], *, title: str, description: str) -> str:
        """The chart of axes and parts; parts that leave the frame are cut by the caller."""
        return svg([*self.axes(), *parts], self.width, self.height, title, description)


def label(x: Number, y: Number, words: str, anchor: str = "start", kind: str = "tick") -> str:
    """Words at a place; `kind` is a class of `chart.css`: "tick", "axis", "label", "value" or "aside"."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(words)}</text>'
