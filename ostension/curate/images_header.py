"""What the first bytes of a picture's file say: format, size, frames, and whether the file is whole; nothing is decoded.

A file that is cut short is told by its ending, where the format has one: a JPEG by the end marker that follows its last scan, a
PNG by its last chunk, a GIF by its blocks, a WebP by the length in its head. A whole file can still hold pixels that cannot be
decoded: only decoding tells (`looked_through`).
"""

from __future__ import annotations

import io
from typing import NamedTuple

from ostension.errors import DataError, LimitError

NOT_ONE, DAMAGED, CUT, TOO_LARGE = "not a picture", "damaged picture", "picture cut short", "too many pixels"
_PNG_END = b"IEND\xaeB`\x82"


class Header(NamedTuple):
    """What is known of a picture.

    Attributes:
        problem: why it cannot be used: one of the four reasons above, None if nothing speaks against it.
        format: as Pillow calls it; empty where there is none.
        width: in pixels, as stored; 0 where it could not be read.
        height: likewise.
        frames: or pages; 1 for a still picture.
    """

    problem: str | None
    format: str = ""
    width: int = 0
    height: int = 0
    frames: int = 1


def read_header(data: bytes, max_pixels: int) -> Header:
    """The header of an encoded picture; whatever the bytes are, this gives an answer and raises nothing."""
    # Here and not above: settings of stages are read by every command, and Pillow is not needed for that.
    from PIL import Image, UnidentifiedImageError

    from ostension.image.decode import check_size
    from ostension.image.signatures import format_of
    from ostension.image.silence import pillow_silence

    try:
        kind = format_of(data, "")
    except DataError:
        return Header(NOT_ONE)
    whole, frames = _ending(data, kind)
    with pillow_silence:
        try:
            image = Image.open(io.BytesIO(data), formats=(kind,))
            width, height = image.size
            if kind in ("PNG", "WEBP", "AVIF", "TIFF") and getattr(image, "is_animated", False):
                frames = int(getattr(image, "n_frames", 2))
        except Image.DecompressionBombError:
            return Header(TOO_LARGE, kind)
        except UnidentifiedImageError:
            return Header(DAMAGED if whole else CUT, kind)
        except Exception:  # hostile bytes fail in Pillow in many ways, and each of them is a file that cannot be used
            return Header(DAMAGED if whole else CUT, kind)
    problem = None if whole else CUT
    try:
        check_size(image, max_pixels, "")
    except LimitError:
        problem = TOO_LARGE
    except DataError:
        problem = DAMAGED
    return Header(problem, kind, width, height, frames)


def looked_through(data: bytes, max_pixels: int) -> tuple[str | None, int]:
    """Why a picture cannot be decoded in full (None if it can), and how much its colours differ.

    The second is the largest difference of two pixels in one of the channels red, green and blue, over white: 0 for a picture
    of one colour.
    """
    from ostension.image.decode import read_picture, to_rgb

    try:
        picture = read_picture(data, max_pixels=max_pixels, name="picture")
        spread = max(high - low for low, high in to_rgb(picture.image).getextrema())  # type: ignore[misc, union-attr]
    except LimitError:
        return TOO_LARGE, 0
    except DataError as error:
        return (CUT if "cut short" in error.what else DAMAGED), 0
    return None, int(spread)


def _ending(data: bytes, kind: str) -> tuple[bool, int]:
    """Whether the file's ending is there, and for a GIF how many frames it has."""
    if kind == "JPEG":
        # Scans stuff the bytes of a marker, so the last start of scan is one; thumbnails lie before it.
        return data.find(b"\xff\xd9", max(data.rfind(b"\xff\xda"), 0)) >= 0, 1
    if kind == "PNG":
        return data.rfind(_PNG_END) >= 0, 1
    if kind == "WEBP":
        return int.from_bytes(data[4:8], "little") + 8 <= len(data) + 1, 1  # some writers leave the last pad byte out
    if kind == "GIF":
        return _gif(data)
    return True, 1


def _gif(data: bytes) -> tuple[bool, int]:
    """Walk a GIF's blocks: whether they end within the file, and the number of pictures."""
    if len(data) < 13:
        return False, 1
    place = 13 + (3 << ((data[10] & 7) + 1) if data[10] & 0x80 else 0)
    frames = 0
    while place < len(data):
        block = data[place]
        if block == 0x3B:
            return True, max(frames, 1)
        if block == 0x21:  # extension: a label, then sub-blocks
            place += 2
        elif block == 0x2C:  # picture: ten bytes with flags at the end, its colours, the code size, then sub-blocks
            if place + 10 >= len(data):
                return False, max(frames, 1)
            flags = data[place + 9]
            place += 11 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
            frames += 1
        else:  # what readers stop at
            return frames > 0, max(frames, 1)
        while place < len(data) and data[place]:
            place += data[place] + 1
        place += 1
    return place == len(data) and frames > 0, max(frames, 1)
