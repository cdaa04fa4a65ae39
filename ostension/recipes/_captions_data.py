"""Pictures of things that have a class, a caption and a drawing style: what the ImageNet-Captions study is repeated on.

"emoji": things are emoji, classes the subgroups of the Unicode list with twelve things or more, captions a thing's name, its
keywords and its class. Three styles are the original distribution, two the shifted one: line art, and rendered in 3-D.

"shapes" is drawn on the spot, for runs of seconds: a class is a shape, a thing a shape and a colour; the original pictures are
filled, the shifted ones outlines.

A third of the things is held out in every style. The same held-out things are asked in both distributions, so that nothing but
the style differs between the two.

Letters: N pictures, T things, C classes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image, ImageDraw

from ostension.files import sha256_json
from ostension.recipes._emoji_batches import emoji_set
from ostension.runtime import numpy_generator
from ostension.shapes import Int

Source = Literal["emoji", "shapes"]
SOURCES: tuple[Source, ...] = get_args(Source)
SHIFTED = ("fluent3d", "openmoji_black")
FEWEST = 12  # things a class of emoji has at least
HELD_OUT = 3  # one thing of so many in each class
SHAPES = ("circle", "square", "triangle", "cross", "bar", "diamond")
COLOURS = {
    "red": (205, 40, 40), "green": (40, 150, 60), "blue": (50, 80, 205), "orange": (235, 140, 20), "purple": (140, 50, 170),
    "brown": (120, 75, 40), "pink": (235, 120, 180), "grey": (120, 120, 120), "black": (25, 25, 25),
}  # fmt: skip
SIDE, COPIES = 64, 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudySet:
    """The pictures and what is said of them.

    Attributes:
        classes: C names.
        pixels: (N, 64, 64, 4) uint8, red, green, blue, alpha.
        target: (N,) classes.
        thing: (N,) what is shown.
        shifted: (N,) whether in the shifted distribution.
        held_out: (N,) whether the thing is only asked, never learned.
        words: of each thing, its name first, then keywords.
        class_of: (T,) the class of each thing.
        fingerprint: of all that.
    """

    classes: tuple[str, ...]
    pixels: np.ndarray
    target: Int[np.ndarray, " N"]
    thing: Int[np.ndarray, " N"]
    shifted: np.ndarray
    held_out: np.ndarray
    words: tuple[tuple[str, ...], ...]
    class_of: Int[np.ndarray, " T"]
    fingerprint: str

    def training(self, *, both: bool, pictures: int | None, seed: int) -> Int[np.ndarray, " n"]:
        """The pictures to learn from; fewer are part of more.

        Args:
            both: of both distributions, in equal chances for every picture, or of the original one.
            pictures: how many; None takes as many as the original distribution has, whichever they are of.
        """
        known = ~self.held_out
        rows = np.flatnonzero(known if both else known & ~self.shifted)
        most = int((known & ~self.shifted).sum())
        order = numpy_generator(seed, "pictures to learn from", int(both)).permutation(rows)
        return np.sort(order[: most if pictures is None else min(pictures, most)])

    @property
    def asked(self) -> Int[np.ndarray, " n"]:
        """The pictures that are asked: of held-out things, in both distributions."""
        return np.flatnonzero(self.held_out)


@functools.cache
def study_set(source: Source) -> StudySet:
    """The set of that name, made once a process."""
    return _emoji() if source == "emoji" else _shapes()


def _emoji() -> StudySet:
    emoji = emoji_set()
    counts = Counter(concept.subgroup for concept in emoji.concepts)
    kept = sorted(name for name, count in counts.items() if count >= FEWEST and not name.startswith("other-"))
    things = [index for index, concept in enumerate(emoji.concepts) if concept.subgroup in set(kept)]
    place = np.full(len(emoji.concepts), -1)
    place[things] = np.arange(len(things))
    rows = np.flatnonzero(place[emoji.concept] >= 0)
    class_of = np.array([kept.index(emoji.concepts[index].subgroup) for index in things])
    words = tuple(
        (emoji.concepts[index].name, *(tag for tag in emoji.concepts[index].tags if tag != emoji.concepts[index].name))
        for index in things
    )
    thing = place[emoji.concept[rows]]
    shifted = np.isin(np.array(emoji.styles)[emoji.style[rows]], SHIFTED)
    names = tuple(name.replace("-", " ") for name in kept)
    return _made(names, emoji.pixels[rows], thing, shifted, words, class_of, emoji.fingerprint)


def _shapes() -> StudySet:
    pixels, thing, shifted, class_of = [], [], [], []
    words: list[tuple[str, ...]] = []
    for number, shape in enumerate(SHAPES):
        for colour, paint in COLOURS.items():
            for outline in (False, True):
                for copy in range(COPIES):
                    generator = numpy_generator(0, "shape", shape, colour, int(outline), copy)
                    pixels.append(_drawn(shape, paint, outline, generator))
                    thing.append(len(words))
                    shifted.append(outline)
            words.append((f"{colour} {shape}", colour))
            class_of.append(number)
    return _made(SHAPES, np.stack(pixels), np.array(thing), np.array(shifted), tuple(words), np.array(class_of), "shapes 1")


def _made(
    classes: tuple[str, ...], pixels: np.ndarray, thing: np.ndarray, shifted: np.ndarray,
    words: tuple[tuple[str, ...], ...], class_of: np.ndarray, fingerprint: str,
) -> StudySet:  # fmt: skip
    held_out = np.zeros(len(words), dtype=bool)
    for number in range(len(classes)):
        members = numpy_generator(0, "held-out things", number).permutation(np.flatnonzero(class_of == number))
        held_out[members[: len(members) // HELD_OUT]] = True
    facts = [fingerprint, list(classes), class_of.tolist(), np.flatnonzero(held_out).tolist(), list(map(list, words))]
    return StudySet(
        classes=classes, pixels=pixels, target=class_of[thing], thing=thing, shifted=shifted, held_out=held_out[thing],
        words=words, class_of=class_of, fingerprint=sha256_json(facts),
    )  # fmt: skip


def _drawn(shape: str, paint: tuple[int, int, int], outline: bool, generator: np.random.Generator) -> np.ndarray:
    """One shape, (64, 64, 4), at a random place and of a random size."""
    picture = Image.new("RGBA", (SIDE, SIDE), (255, 255, 255, 0))
    draw = ImageDraw.Draw(picture)
    radius = int(generator.integers(16, 26))
    x, y = (int(value) for value in generator.integers(radius + 2, SIDE - radius - 2, 2))
    corners: dict[str, list[tuple[float, float]]] = {
        "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
        "triangle": [(0, -1), (1, 1), (-1, 1)],
        "diamond": [(0, -1), (1, 0), (0, 1), (-1, 0)],
        "bar": [(-1, -0.3), (1, -0.3), (1, 0.3), (-1, 0.3)],
        "cross": [(-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3), (0.3, 1), (-0.3, 1), (-0.3, 0.3),
                  (-1, 0.3), (-1, -0.3), (-0.3, -0.3)],
    }  # fmt: skip
    ink = (*paint, 255)
    look: dict[str, Any] = {"outline": ink, "width": 5} if outline else {"fill": ink}
    if shape == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), **look)
    else:
        draw.polygon([(x + radius * across, y + radius * down) for across, down in corners[shape]], **look)
    return np.asarray(picture)
