"""Rules for pictures: format, size, shape, frames, whether they can be decoded; judged from the header where that suffices."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from ostension.config import require
from ostension.curate.images_header import Header, looked_through, read_header

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
# What tables call the sizes of pictures: img2dataset's before it resized, its own, LAION's.
SIZE_NAMES = (("original_width", "original_height"), ("width", "height"), ("WIDTH", "HEIGHT"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pictures:
    """Rules for pictures. What is not given is as the preset says, or off; 0 is no limit.

    Attributes:
        check: off looks at no picture, whatever else is set; header reads format, size, frames and the file's ending; decode
            decodes every picture in full, which finds damaged pixels and takes about ten times as long.
        sizes: picture takes sizes from the pictures; meta from the source's fields (original_width and original_height, as
            img2dataset writes them, or width and height), for pictures that were resized or are not there yet.
        formats: the formats that stay (JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF), or any.
        animated: whether pictures of several frames or pages stay.
        min_side: pixels of the shorter side at least.
        max_pixels: pixels at most.
        max_aspect: the longer side over the shorter at most.
        min_bytes: bytes of the file at least.
        max_bytes: bytes of the file at most.
        plain: pictures whose pixels differ by this much at most, of 255, in every channel, go; -1 for off. Decodes.
    """

    check: Literal["off", "header", "decode"] | None = None
    sizes: Literal["picture", "meta"] | None = None
    formats: tuple[str, ...] | None = None
    animated: Literal["keep", "drop"] | None = None
    min_side: int | None = None
    max_pixels: int | None = None
    max_aspect: float | None = None
    min_bytes: int | None = None
    max_bytes: int | None = None
    plain: int | None = None

    def __post_init__(self):
        for name in ("min_side", "max_pixels", "max_aspect", "min_bytes", "max_bytes"):
            value = getattr(self, name)
            require(value is None or value >= 0, f"pictures.{name}", value, "0 or more; 0 is no limit")
        aspect = self.max_aspect
        require(not aspect or aspect >= 1, "pictures.max_aspect", aspect, "1 or more, or 0 for no limit")
        for kind in self.formats or ():
            require(kind in (*FORMATS, "any"), "pictures.formats", kind, f"one of {', '.join(FORMATS)}, or any")
        require(self.plain is None or -1 <= self.plain <= 255, "pictures.plain", self.plain, "-1 to 255")

    @property
    def by_size(self) -> bool:
        """Whether a rule is about the number of pixels."""
        return bool(self.min_side or self.max_pixels or self.max_aspect)

    @property
    def from_meta(self) -> bool:
        return self.sizes == "meta"

    @property
    def reads(self) -> bool:
        """Whether the pictures themselves have to be read."""
        if self.check == "off":
            return False
        others = self.min_bytes or self.max_bytes or self.animated == "drop" or self.wanted_formats or self.decodes
        return bool(others or self.check is not None or (self.by_size and not self.from_meta))

    @property
    def active(self) -> bool:
        """Whether there is anything to do."""
        return self.check != "off" and (self.reads or self.by_size)

    @property
    def decodes(self) -> bool:
        return self.check != "off" and (self.check == "decode" or (self.plain is not None and self.plain >= 0))

    @property
    def wanted_formats(self) -> tuple[str, ...]:
        return () if self.formats is None or "any" in self.formats else self.formats


class Judged(NamedTuple):
    """A picture's reason to go (None if it stays) and what is known of it; sizes are those that were judged by."""

    reason: str | None
    header: Header
    bytes: int


def judge(data: bytes | None, meta: Mapping[str, Any], rules: Pictures) -> Judged:
    """What the rules say of a picture; `data` is None where pictures are not read.

    The reason is the first of: not a picture, damaged picture, picture cut short, too many pixels, too few bytes, too many
    bytes, format not wanted, animated, size not known, too small, too narrow; after decoding the first ones again, and plain
    picture.
    """
    from ostension.image.decode import MAX_PIXELS

    count = 0 if data is None else len(data)
    header = Header(None) if data is None else read_header(data, rules.max_pixels or MAX_PIXELS)
    if header.problem is not None:
        return Judged(header.problem, header, count)
    known = True
    if rules.from_meta:
        width, height = size_in(meta)
        known = width > 0 and height > 0
        header = header._replace(width=width, height=height)
    reason = _by_file(header, count, rules) if data is not None else None
    if reason is None and rules.by_size:
        reason = _by_size(header, rules) if known else "size not known"
    if reason is None and data is not None and rules.decodes:
        problem, spread = looked_through(data, rules.max_pixels or MAX_PIXELS)
        reason = problem or ("plain picture" if rules.plain is not None and spread <= rules.plain else None)
    return Judged(reason, header, count)


def size_in(meta: Mapping[str, Any]) -> tuple[int, int]:
    """Width and height as the source's fields say; 0, 0 if they do not."""
    for names in SIZE_NAMES:
        try:
            width, height = (float(meta[name]) for name in names)
        except (KeyError, TypeError, ValueError):
            continue
        if math.isfinite(width) and math.isfinite(height) and min(width, height) >= 1:
            return int(width), int(height)
    return 0, 0


def _by_file(header: Header, count: int, rules: Pictures) -> str | None:
    if rules.min_bytes and count < rules.min_bytes:
        return "too few bytes"
    if rules.max_bytes and count > rules.max_bytes:
        return "too many bytes"
    if rules.wanted_formats and header.format not in rules.wanted_formats:
        return "format not wanted"
    if rules.animated == "drop" and header.frames > 1:
        return "animated"
    return None


def _by_size(header: Header, rules: Pictures) -> str | None:
    short, long = sorted((header.width, header.height))
    if rules.max_pixels and short * long > rules.max_pixels:
        return "too many pixels"
    if rules.min_side and short < rules.min_side:
        return "too small"
    if rules.max_aspect and long > rules.max_aspect * short:
        return "too narrow"
    return None
