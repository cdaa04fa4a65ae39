"""How much data one way of training needs for what another reaches: curves of accuracy over images seen, read sideways.

A curve is read through its running maximum, because more data never made a method know less and a drop is the noise of the
measurement, and along straight lines in log images. Past the ends of a curve there is nothing to read: before its first
point only a bound is known, after its last one its last slope may be drawn on, and what comes of that is named.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Literal

from ostension.config import require

How = Literal["interpolated", "at most", "extrapolated", "never"]
Curve = Sequence[tuple[float, float]]  # (images seen, accuracy), images rising


@dataclasses.dataclass(frozen=True)
class Needed:
    """Images for an accuracy.

    Attributes:
        images: how many; infinite where the curve does not rise at its end.
        how: "interpolated" between two points or at one; "at most", where its first point is there already;
            "extrapolated" along the last rise; "never" where there is none.
    """

    images: float
    how: How


def images_for(curve: Curve, accuracy: float) -> Needed:
    """How many images the curve needs for `accuracy`."""
    points = envelope(curve)
    if accuracy <= points[0][1]:
        return Needed(points[0][0], "interpolated" if accuracy == points[0][1] else "at most")
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if y0 < accuracy <= y1:
            return Needed(_along(x0, y0, x1, y1, accuracy), "interpolated")
    if len(points) < 2 or points[-1][1] <= points[-2][1]:
        return Needed(math.inf, "never")
    return Needed(_along(*points[-2], *points[-1], accuracy), "extrapolated")


def ratio(slow: Curve, fast: Curve, accuracy: float) -> tuple[float, How]:
    """How many times the images of `fast` the curve `slow` needs for `accuracy`, and the weaker of both readings.

    With "at most" for `fast` the ratio is a lower bound.
    """
    needed = images_for(slow, accuracy), images_for(fast, accuracy)
    ranking: tuple[How, ...] = ("never", "extrapolated", "at most", "interpolated")
    how = min((one.how for one in needed), key=ranking.index)
    return (math.inf if how == "never" else needed[0].images / needed[1].images), how


def envelope(curve: Curve) -> list[tuple[float, float]]:
    """The curve with each accuracy replaced by the best up to there."""
    require(len(curve) >= 1, "curve", list(curve), "one point or more")
    require(all(a[0] < b[0] for a, b in itertools.pairwise(curve)), "curve", list(curve), "rising images")
    best, found = -math.inf, []
    for images, accuracy in curve:
        best = max(best, accuracy)
        found.append((images, best))
    return found


def _along(x0: float, y0: float, x1: float, y1: float, y: float) -> float:
    """The x of y on the straight line through two points, x on a log scale."""
    return math.exp(math.log(x0) + (math.log(x1) - math.log(x0)) * (y - y0) / (y1 - y0))
