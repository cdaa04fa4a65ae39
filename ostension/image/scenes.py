"""Scenes of a known number of objects, for counting: shapes or given drawings on a background, apart from each other.

Sizes are those of the scene (a factor of 0.4 to 1, so that covered area says little about the number) times those of the
object. Objects are drawn whole and their boxes do not touch. Made after CLEVR (Johnson et al. 2017): its eight colours, and
kinds, colours and places that are drawn independently of each other; flat where CLEVR renders.

Every random choice comes from the generator that is passed in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from ostension.config import require

Box = tuple[int, int, int, int]
COLOURS = {
    "gray": (87, 87, 87), "red": (173, 35, 35), "blue": (42, 75, 215), "green": (29, 105, 20), "brown": (129, 74, 25),
    "purple": (129, 38, 192), "cyan": (41, 208, 208), "yellow": (255, 238, 51),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "diamond", "cross")
SCENE = (0.4, 1.0)  # factor of all sizes in a scene
OBJECT = (0.1, 0.22)  # an object's side, as a share of the picture's
GAP = 2  # pixels at least between boxes
TRIES = 60  # places that are tried for one object before the whole scene is made smaller
APART = 60  # least difference of some channel between a shape and the background; with less it hardly shows
FINE = 4  # shapes are drawn this much larger and reduced, for smooth edges


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """A picture, and the boxes (left, top, right, bottom) of its objects."""

    picture: Image.Image
    boxes: tuple[Box, ...]


def draw_scene(count: int, generator: np.random.Generator, *, side: int = 224, drawings: Sequence[Image.Image] = ()) -> Scene:
    """A scene of `count` objects.

    Args:
        side: of the picture, in pixels.
        drawings: with transparency (RGBA), which objects are drawn from instead of shapes.
    """
    require(count >= 0, "count", count, "0 or more")
    require(side >= 64, "side", side, "64 pixels or more")
    picture, ends = _background(side, generator)
    boxes = _boxes(count, side, generator)
    for box in boxes:
        if drawings:
            drawing = drawings[int(generator.integers(len(drawings)))].convert("RGBA")
        else:
            drawing = _shape(box[2] - box[0], ends, generator)
        drawing = drawing.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.LANCZOS)
        picture.paste(drawing, box[:2], drawing)
    return Scene(picture=picture, boxes=tuple(boxes))


def _boxes(count: int, side: int, generator: np.random.Generator) -> list[Box]:
    """Squares inside the picture that do not touch; all are made smaller when one finds no place."""
    factor = generator.uniform(*SCENE)
    while True:
        found: list[Box] = []
        for _ in range(count):
            length = max(4, round(side * factor * generator.uniform(*OBJECT)))
            for left, top in generator.integers(0, side - length + 1, (TRIES, 2)).tolist():
                box = (left, top, left + length, top + length)
                if not any(_near(box, other) for other in found):
                    found.append(box)
                    break
        if len(found) == count:
            return found
        factor *= 0.9


def _near(one: Box, other: Box) -> bool:
    return one[0] < other[2] + GAP and other[0] < one[2] + GAP and one[1] < other[3] + GAP and other[1] < one[3] + GAP


def _background(side: int, generator: np.random.Generator) -> tuple[Image.Image, np.ndarray]:
    """One colour, or two that run into each other, with a little noise; and these two."""
    ends = generator.integers(40, 256, (2, 3)).astype(np.float64)
    if generator.random() < 0.5:
        ends[1] = ends[0]
    angle = generator.uniform(0, 2 * np.pi)
    rows, columns = np.mgrid[0:side, 0:side] / max(1, side - 1) - 0.5
    share = np.clip(0.5 + (columns * np.cos(angle) + rows * np.sin(angle)) / 1.42, 0, 1)[..., None]  # 1.42: the diagonal
    pixels = ends[0] * (1 - share) + ends[1] * share + generator.normal(0, 3, (side, side, 1))
    return Image.fromarray(np.clip(pixels, 0, 255).round().astype(np.uint8)), ends


def _shape(length: int, ends: np.ndarray, generator: np.random.Generator) -> Image.Image:
    """A turned shape with a darker edge, in a colour of the eight that shows before all of the background."""
    behind = np.stack([ends[0], ends.mean(axis=0), ends[1]])
    apart = {colour: np.abs(behind - colour).max(axis=1).min() for colour in COLOURS.values()}
    shown = [colour for colour, least in apart.items() if least >= APART] or [max(apart, key=apart.__getitem__)]
    colour = shown[int(generator.integers(len(shown)))]
    kind = SHAPES[int(generator.integers(len(SHAPES)))]
    turn = generator.uniform(0, 2 * np.pi)
    big = length * FINE
    picture = Image.new("RGBA", (big, big), (*colour, 0))
    pen, edge = ImageDraw.Draw(picture), tuple(value // 2 for value in colour)
    middle, reach = big / 2, big / 2 - FINE
    if kind == "circle":
        pen.ellipse((middle - reach, middle - reach, middle + reach, middle + reach), fill=colour, outline=edge, width=FINE)
    else:
        angles = turn + np.array(_ANGLES[kind])
        radii = reach * np.array(_RADII[kind])
        points = [(middle + r * np.cos(a), middle + r * np.sin(a)) for r, a in zip(radii, angles, strict=True)]
        pen.polygon(points, fill=colour, outline=edge, width=FINE)
    return picture.resize((length, length), Image.Resampling.LANCZOS)


def _round(corners: int) -> list[float]:
    return [2 * np.pi * corner / corners for corner in range(corners)]


# Corners by angle and by radius, as a share of the reach. The cross has arms of width 0.7 around inner corners.
_CROSS = [base + turn for base in _round(4) for turn in (-0.36, 0.36, np.pi / 4)]
_ANGLES = {"square": _round(4), "triangle": _round(3), "diamond": _round(4), "cross": _CROSS}
_RADII = {
    "square": [1.0] * 4, "triangle": [1.0] * 3, "diamond": [1.0, 0.55, 1.0, 0.55], "cross": [1.0, 1.0, 0.5] * 4,
}  # fmt: skip
