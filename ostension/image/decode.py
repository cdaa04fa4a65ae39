"""Pictures from anywhere, decoded in full within limits, or one clear error that names the file and the reason.

Eight formats are read, told apart by their first bytes and never by their names: JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF
(where Pillow has it) and the JPEGs of several pictures that phones write. Pillow would try more, Ghostscript among them.
Limits are checked from the header, before a pixel is decoded. Pillow fails in many ways on hostile bytes and warns in
others; here every failure is a `DataError` or a `LimitError`, and no warning leaves this file.
"""

from __future__ import annotations

import dataclasses
import io
import os
import stat
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ostension.errors import DataError, LimitError
from ostension.image.signatures import format_of
from ostension.image.silence import pillow_silence

Alpha = Literal["white", "drop"]

MAX_PIXELS = 64_000_000
MAX_BYTES = 64_000_000
# The longest side that JPEG can store. Past it are only made-up files, of the kind that cost memory by one side alone.
MAX_SIDE = 65_535
# Pillow decodes run-length coded BMP in Python, a byte at a time: about a second for these.
_MAX_RUN_LENGTH_PIXELS = 4_000_000

TRAITS = {
    "animated": "more than one frame or page; the first is used",
    "alpha": "an alpha channel or a transparent colour",
    "degenerate": "a side of one pixel",
    "sixteen_bit": "16-bit grey, scaled to 8 bits",
    "rotated": "turned as the EXIF orientation says",
    "unreadable_exif": "EXIF that cannot be read where its orientation was asked for; the picture is used as stored",
}

# Words in Pillow's messages that mean an early end of the file.
_CUT_SHORT = ("truncated", "unexpected end", "not enough", "incomplete")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture.

    Attributes:
        image: all pixels, 8 bits a band, in the file's own mode.
        name: what to call it in messages.
        format: the file's format, None for pixels that came from memory.
        traits: which of `TRAITS` it has.
        memory: the pixels of an RGB image where they lie, H x W x 4 with an idle fourth byte, if that was asked for and
            could be had.
    """

    image: Image.Image
    name: str
    format: str | None
    traits: frozenset[str]
    memory: np.ndarray | None = None


def open_image(
    source: object,
    *,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
    exif: bool = False,
    alpha: Alpha = "white",
    name: str | None = None,
) -> Image.Image:
    """The picture as RGB; see `read_picture` and `to_rgb`."""
    picture = read_picture(source, max_pixels=max_pixels, max_bytes=max_bytes, exif=exif, name=name)
    return to_rgb(picture.image, alpha, name=picture.name)


def read_picture(
    source: object,
    *,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
    exif: bool = False,
    name: str | None = None,
    keep_memory: bool = False,
) -> Picture:
    """Decode one picture in full, in its own mode.

    Args:
        source: a path, the file's bytes, an open binary file, a Pillow image, or a uint8 array or tensor H x W x 3.
        max_pixels: most pixels, checked before decoding.
        max_bytes: most bytes of the file, checked before reading.
        exif: turn the picture as its EXIF orientation says. TIFF files are always turned, because Pillow does that itself.
        name: what to call the picture in messages, if its path does not say it.
        keep_memory: fill `Picture.memory` where possible, which saves a copy of the picture.

    Raises:
        DataError: for what is missing, not a picture, damaged, cut short, or has no defined 8-bit values.
        LimitError: for a picture past a limit.
    """
    if isinstance(source, Image.Image):
        name = name or getattr(source, "filename", "") or f"<{source.mode} image of {source.width} x {source.height}>"
        return _load(source, source.format, str(name), max_pixels, exif, set())
    if not isinstance(source, (bytes, bytearray, memoryview, str, os.PathLike)) and hasattr(source, "__array__"):
        name = name or "<array>"
        return _load(_from_array(source, name), None, name, max_pixels, exif, set())
    data, name = _read(source, max_bytes, name)
    return _decode(data, name, max_pixels, exif, keep_memory)


def has_transparency(image: Image.Image) -> bool:
    """Whether the picture has an alpha channel or a transparent colour."""
    return image.has_transparency_data


def to_rgb(image: Image.Image, alpha: Alpha = "white", *, name: str = "<image>") -> Image.Image:
    """The picture in RGB; transparency is composited on white, or dropped as OpenAI's code drops it.

    Dropping shows whatever colour lies under transparent pixels: a transparent red square becomes red.

    Raises:
        DataError: for a mode that Pillow cannot convert, or if memory does not suffice.
    """
    try:
        if alpha == "white" and has_transparency(image):
            layer = image if image.mode == "RGBA" else image.convert("RGBA")
            white = Image.new("RGB", image.size, (255, 255, 255))
            white.paste(layer, mask=layer)
            return white
        if image.mode == "P" and has_transparency(image):
            return image.convert("RGBA").convert("RGB")  # the direct way warns
        return image if image.mode == "RGB" else image.convert("RGB")
    except ValueError:
        raise DataError(f"pixels in mode {image.mode!r} have no RGB values", source=name, fix="save it as RGB") from None
    except MemoryError:
        raise DataError(f"there is not enough memory to convert {image.width} x {image.height} pixels", source=name) from None


def _read(source: object, max_bytes: int, name: str | None) -> tuple[bytes, str]:
    """The bytes of a file and its name."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        name = name or f"<{len(data):,} bytes>"
    elif isinstance(source, (str, os.PathLike)):
        name = name or str(source)
        data = _read_path(source, max_bytes, name)
    elif hasattr(source, "read"):
        name = name or str(getattr(source, "name", "<file>"))
        data = source.read(max_bytes + 1)
        if not isinstance(data, bytes):
            raise DataError("this file is open as text", source=name, expected="a file opened with mode 'rb'")
    else:
        raise DataError(
            f"a picture cannot be made from {type(source).__name__}", source=name,
            expected="a path, bytes, a binary file, a Pillow image, or a uint8 array H x W x 3",
        )
    if len(data) > max_bytes:
        raise _too_many_bytes(len(data), max_bytes, name)
    if not data:
        raise DataError("the file is empty", source=name)
    return data, name


def _read_path(source: str | os.PathLike, max_bytes: int, name: str) -> bytes:
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        raise DataError("this is a web address", source=name, expected="a path", fix="download the file first")
    try:
        path = Path(source)
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            kind = "a folder" if stat.S_ISDIR(found.st_mode) else "not a regular file"
            raise DataError(f"this is {kind}", source=name, expected="a picture")
        if found.st_size > max_bytes:
            raise _too_many_bytes(found.st_size, max_bytes, name)
        with path.open("rb") as file:
            return file.read(max_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise DataError(f"cannot be read ({getattr(error, 'strerror', None) or error})", source=name) from None


def _too_many_bytes(count: int, max_bytes: int, name: str) -> LimitError:
    return LimitError(f"{count:,} bytes or more", source=name, expected=f"at most max_bytes = {max_bytes:,}")


def _from_array(source: object, name: str) -> Image.Image:
    try:
        array = np.asarray(source)
    except (TypeError, RuntimeError, ValueError) as error:  # a tensor on a GPU or with gradients
        raise DataError(f"these pixels cannot be read ({error})", source=name, expected="a uint8 array H x W x 3") from None
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        shape = " x ".join(map(str, array.shape)) or "a single value"
        raise DataError(f"pixels of type {array.dtype}, {shape}", source=name, expected="a uint8 array H x W x 3")
    return Image.fromarray(np.ascontiguousarray(array))


def _decode(data: bytes, name: str, max_pixels: int, exif: bool, keep_memory: bool) -> Picture:
    kind = format_of(data, name)
    traits = set()
    with pillow_silence:
        try:
            image = Image.open(io.BytesIO(data), formats=(kind,))
        except Image.DecompressionBombError:
            limit = f"at most max_pixels = {max_pixels:,}"
            raise LimitError("more pixels than Pillow opens at all", source=name, expected=limit) from None
        except UnidentifiedImageError:
            raise DataError(f"the header of this {kind} is damaged or cut short", source=name) from None
        except Exception as error:
            raise damaged(error, kind, name) from None
        if _is_animated(data, image, kind):
            traits.add("animated")
    return _load(image, kind, name, max_pixels, exif, traits, keep_memory)


def _is_animated(data: bytes, image: Image.Image, kind: str) -> bool:
    if kind == "JPEG":
        return False  # the further pictures of a phone's JPEG are depth maps and the like
    if kind != "GIF":
        return bool(getattr(image, "is_animated", False))
    try:
        # Pillow has to read the second frame to know, which would disturb the first: so in a reader of its own.
        return getattr(Image.open(io.BytesIO(data), formats=(kind,)), "is_animated", False)
    except Exception:
        return True  # there is something behind the first frame, damaged though it is


def _load(
    image: Image.Image,
    kind: str | None,
    name: str,
    max_pixels: int,
    exif: bool,
    traits: set[str],
    keep_memory: bool = False,
) -> Picture:
    """Check the size, decode the pixels, turn and scale them."""
    check_size(image, max_pixels, name)
    memory = _lend_memory(image) if keep_memory and kind == "JPEG" and image.mode == "RGB" else None
    loaded = image
    with pillow_silence:
        try:
            image.load()
        except Exception as error:
            raise damaged(error, kind or "image", name) from None
        check_size(image, max_pixels, name)  # decoders may enlarge it to fit a frame
        if exif:
            image = _upright(image, traits)
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image, kind, name)
        traits.add("sixteen_bit")
    if has_transparency(image):
        traits.add("alpha")
    if min(image.size) == 1:
        traits.add("degenerate")
    return Picture(image, name, kind, frozenset(traits), memory if image is loaded else None)


def _lend_memory(image: Image.Image) -> np.ndarray | None:
    """Let Pillow decode into an array of ours, so that nothing has to be copied out of its own memory.

    Pillow maps buffers in this way for `frombuffer`, and `load` fills the memory that an image has. Neither is a promise,
    so this gives None where it does not work, and the pixels are copied.
    """
    try:
        memory = np.empty((image.height, image.width, 4), np.uint8)
        image.im = Image.core.map_buffer(memory, image.size, "raw", 0, (image.mode, 0, 1))
    except (AttributeError, TypeError, ValueError, MemoryError):
        return None
    return memory


def check_size(image: Image.Image, max_pixels: int, name: str) -> None:
    width, height = image.size
    size = f"{width:,} x {height:,} pixels"
    if width < 1 or height < 1:
        raise DataError(f"a picture of {size}", source=name)
    if width * height > max_pixels:
        raise LimitError(size, source=name, expected=f"at most max_pixels = {max_pixels:,}")
    if max(width, height) > MAX_SIDE:
        raise LimitError(size, source=name, expected=f"sides of at most {MAX_SIDE:,} pixels")
    tiles = getattr(image, "tile", None)
    if tiles and tiles[0][0] == "bmp_rle" and width * height > _MAX_RUN_LENGTH_PIXELS:
        limit = f"at most {_MAX_RUN_LENGTH_PIXELS:,} pixels"
        raise LimitError(f"a run-length coded BMP of {size}", source=name, expected=limit)


def _upright(image: Image.Image, traits: set[str]) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # hostile EXIF fails in as many ways as hostile pixels, and is no reason to refuse the picture
        traits.add("unreadable_exif")
        return image
    if orientation not in _TURNS:
        return image
    traits.add("rotated")
    return image.transpose(_TURNS[orientation])


def _eight_bits(image: Image.Image, kind: str | None, name: str) -> Image.Image:
    """16-bit grey over 257, to nearest: 65,535 becomes 255. (`convert` would clip everything past 255 to white.)"""
    if not (image.mode.startswith("I;16") or (image.mode == "I" and kind == "PNG")):
        raise DataError(
            f"pixels in mode {image.mode!r} (32 bits) have no defined white", source=name,
            expected="8 or 16 bits a band", fix="scale it and save it with 8 bits",
        )
    values = np.asarray(image).astype(np.uint32)
    grey = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey


def damaged(error: Exception, kind: str, name: str) -> DataError:
    """What Pillow's exception means, in one short line."""
    text = " ".join(str(error).split())[:160] or type(error).__name__
    if isinstance(error, MemoryError):
        return DataError(f"there is not enough memory to decode this {kind}", source=name)
    cut = isinstance(error, EOFError) or any(word in text.lower() for word in _CUT_SHORT)
    return DataError(f"the {kind} is {'cut short' if cut else 'damaged'} ({text})", source=name)
