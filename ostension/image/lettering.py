"""Words written on pictures, for typographic attacks: place, size, colours and form are drawn, and every word can be read.

A word stands on a plate of one colour, or has an outline of it. Every colour has a contrast of 4.58 (the root of 21) or more
to black or to white, so one of the two goes with whatever was drawn; 4.5 is what WCAG 2.2 asks of small print. What lies below
then does not matter. Pictures that are too small for letters are enlarged first.

Every random choice comes from the generator that is passed in.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import unicodedata
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ostension.config import require
from ostension.errors import ConfigError, DataError

Colour = tuple[int, int, int]
Form = Literal["outline", "plate"]
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
LEAST_SIZE = 10  # pixels of a font's height below which letters run together
SHRINK = 0.9  # from one try to the next, where a word does not fit


@dataclasses.dataclass(frozen=True, kw_only=True)
class WritingConfig:
    """How words are written.

    Attributes:
        side: pictures whose shorter side has fewer pixels are enlarged to it.
        size: least and greatest height of the font, as shares of the shorter side; a word that does not fit gets less.
        forms: what one is drawn from.
        font: a font file; None takes Pillow's own (Aileron), whose letters are A to Z.
    """

    side: int = 224
    size: tuple[float, float] = (0.1, 0.25)
    forms: tuple[Form, ...] = ("outline", "plate")
    font: Path | None = None

    def __post_init__(self):
        require(self.side >= 64, "side", self.side, "64 pixels or more")
        require(0 < self.size[0] <= self.size[1] <= 1, "size", self.size, "two shares of the side, the lower one first")
        require(bool(self.forms), "forms", self.forms, "one or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Written:
    """A picture with a word on it.

    Attributes:
        picture: RGB.
        text: as it stands there, with its lines.
        box: left, top, right, bottom of the word with its plate or outline; inside the picture.
        size: the font's height in pixels.
        ink, ground: colours of the letters and of what is around them.
        form: "outline" or "plate".
    """

    picture: Image.Image
    text: str
    box: tuple[int, int, int, int]
    size: int
    ink: Colour
    ground: Colour
    form: Form


def write(picture: Image.Image, word: str, generator: np.random.Generator, config: WritingConfig | None = None) -> Written:
    """A copy of the picture, enlarged if it is small, with the word on it.

    Raises:
        DataError: for an empty word, one with signs that the font lacks, or one too long for the picture.
    """
    config = config or WritingConfig()
    word = spelled(word, config.font)
    picture = enlarged(picture.convert("RGB"), config.side)
    form = config.forms[int(generator.integers(len(config.forms)))]
    ink, ground = _colours(generator)
    wanted = generator.uniform(*config.size) * min(picture.size)
    text, size, edge, (width, height), offset = _fitted(word, wanted, picture.size, form, config.font)
    across, down = generator.random(2)
    left, top = round(across * (picture.width - width)), round(down * (picture.height - height))
    box = (left, top, left + width, top + height)
    pen = ImageDraw.Draw(picture)
    if form == "plate":
        pen.rectangle((left, top, left + width - 1, top + height - 1), fill=ground)
    pen.multiline_text(
        (left - offset[0], top - offset[1]), text, fill=ink, font=font_of(config.font, size), align="center",
        stroke_width=edge if form == "outline" else 0, stroke_fill=ground,
    )  # fmt: skip
    return Written(picture=picture, text=text, box=box, size=size, ink=ink, ground=ground, form=form)


def enlarged(picture: Image.Image, side: int) -> Image.Image:
    """A copy whose shorter side has `side` pixels or more, in the same proportions."""
    short = min(picture.size)
    if short >= side:
        return picture.copy()
    width, height = (max(side, round(length * side / short)) for length in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def spelled(word: str, font: Path | None = None) -> str:
    """The word in signs that the font has: accents are left out where it lacks the letters that have them.

    Raises:
        DataError: for an empty word, or a sign that is missing all the same.
    """
    word = " ".join(word.split())
    if not word:
        raise DataError("an empty word to write", expected="letters")
    if _missing(word, font):
        parts = unicodedata.normalize("NFKD", word)
        word = "".join(sign for sign in parts if not unicodedata.combining(sign))
    if missing := _missing(word, font):
        raise DataError(f"the font has no sign for {missing!r}, in {word!r}", fix="give a font file that has it")
    return word


def contrast(one: Colour, other: Colour) -> float:
    """The contrast ratio of two colours, 1 to 21. Source: WCAG 2.2, relative luminance of sRGB."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@functools.cache
def font_of(path: Path | None, size: int) -> Any:
    """A font of some height in pixels.

    Raises:
        ConfigError: for a file that is no font, or a Pillow that was built without FreeType.
    """
    try:
        font = ImageFont.load_default(size) if path is None else ImageFont.truetype(str(path), size)
    except (OSError, ImportError) as error:
        raise ConfigError(f"not a font: {error}", source=path, expected="a TrueType or OpenType file") from None
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise ConfigError("this Pillow has no scalable fonts", fix="install a Pillow with FreeType")
    return font


def _fitted(
    word: str, wanted: float, area: tuple[int, int], form: Form, font: Path | None
) -> tuple[str, int, int, tuple[int, int], tuple[int, int]]:
    """The text in lines, the font's size, the width of the edge, the size of the whole, and where the text begins in it."""
    size = max(LEAST_SIZE, round(wanted))
    while True:
        edge = max(2, round(size / 10)) if form == "outline" else max(3, round(size / 5))
        text = _wrapped(word, size, font, area[0] - 2 * edge)
        pen = ImageDraw.Draw(Image.new("L", (1, 1)))
        stroke, pad = (edge, 0) if form == "outline" else (0, edge)
        found = pen.multiline_textbbox((0, 0), text, font=font_of(font, size), align="center", stroke_width=stroke)
        left, top, right, bottom = (math.floor(found[0]) - pad, math.floor(found[1]) - pad,
                                    math.ceil(found[2]) + pad, math.ceil(found[3]) + pad)  # fmt: skip
        if right - left <= area[0] and bottom - top <= area[1]:
            return text, size, edge, (right - left, bottom - top), (left, top)
        if size <= LEAST_SIZE:
            raise DataError(f"{word!r} is too long to be read on {area[0]} x {area[1]} pixels", fix="enlarge pictures more")
        size = max(LEAST_SIZE, int(size * SHRINK))


def _wrapped(word: str, size: int, font: Path | None, room: int) -> str:
    """The word in as many lines as it needs, parted where it has spaces."""
    lines: list[str] = []
    for part in word.split(" "):
        longer = f"{lines[-1]} {part}" if lines else part
        if lines and font_of(font, size).getlength(longer) <= room:
            lines[-1] = longer
        else:
            lines.append(part)
    return "\n".join(lines)


def _colours(generator: np.random.Generator) -> tuple[Colour, Colour]:
    """A drawn colour, and black or white, whichever has more contrast to it; either may be the letters'."""
    red, green, blue = generator.integers(0, 256, 3).tolist()
    drawn = (red, green, blue)
    plain = max((BLACK, WHITE), key=lambda colour: contrast(colour, drawn))
    return (drawn, plain) if generator.random() < 0.5 else (plain, drawn)


def _luminance(colour: Colour) -> float:
    parts = [value / 255 for value in colour]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _missing(word: str, font: Path | None) -> str | None:
    """The first sign that the font draws as it draws what it does not have."""
    return next((sign for sign in word if not sign.isspace() and not _has(sign, font)), None)


@functools.cache
def _has(sign: str, font: Path | None) -> bool:
    opened = font_of(font, 32)
    drawn, none = (opened.getmask(text) for text in (sign, "\uffff"))
    return drawn.size != none.size or bytes(drawn) != bytes(none)
