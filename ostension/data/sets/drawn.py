"""Sentences with labels, drawn as pictures when they are read: black on white, as Rendered SST2 was made.

The published pictures' font and wrapping are unknown, so results on these are not comparable with published ones.
"""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import Any

from ostension.data.sets.base import LabelledSet, label_text
from ostension.errors import DataError
from ostension.files import sha256_file

SIDE = 448  # as published
MARGIN = 16
FONT_SIZES = (32, 28, 24, 20, 16, 12, 8)  # the largest at which the sentence fits


class DrawnTexts(LabelledSet):
    """Files SPLIT.tsv in a folder: a sentence, a tab and its label in each line; ids are SPLIT/LINE.

    Raises:
        DataError: for no such file, or a line without a label.
    """

    def __init__(self, folder: Path):
        self._files = sorted(folder.glob("*.tsv"))
        self._sentences: list[str] = []
        ids, labels, splits = [], [], []
        for path in self._files:
            try:
                lines = path.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"cannot be read: {error}", source=path) from None
            for number, line in enumerate(filter(None, lines), 1):
                sentence, tab, label = line.rpartition("\t")
                if not tab:
                    raise DataError(f"line {number} has no tab", source=path, expected="a sentence, a tab, a label")
                self._sentences.append(sentence)
                labels.append((label_text(label, f"{path} line {number}"),))
                ids.append(f"{path.stem}/{number}")
                splits.append(path.stem)
        super().__init__(folder, ids, labels, splits=splits, fields={"sentence": self._sentences})

    def image(self, index: int) -> bytes:
        return draw(self._sentences[index])

    def content(self) -> list[Any]:
        from PIL import __version__

        return [__version__, SIDE, [sha256_file(path) for path in self._files]]


def draw(sentence: str) -> bytes:
    """A PNG of the sentence, wrapped, in the largest of a few sizes at which it fits."""
    from PIL import Image, ImageDraw

    room = SIDE - 2 * MARGIN
    picture = Image.new("L", (SIDE, SIDE), 255)
    pen = ImageDraw.Draw(picture)
    for size in FONT_SIZES:
        text = _wrapped(sentence, size, room)
        _, _, right, bottom = pen.multiline_textbbox((MARGIN, MARGIN), text, font=_font(size))
        if right <= SIDE - MARGIN and bottom <= SIDE - MARGIN:
            break
    pen.multiline_text((MARGIN, MARGIN), text, fill=0, font=_font(size))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _wrapped(sentence: str, size: int, room: int) -> str:
    lines, line = [], ""
    for word in sentence.split():
        longer = f"{line} {word}".strip()
        if line and _font(size).getlength(longer) > room:
            lines.append(line)
            longer = word
        line = longer
    return "\n".join([*lines, line])


@functools.cache
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)
