"""Tar shards made on the spot, good and bad."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def picture(number: int, side: int = 8) -> bytes:
    """A PNG of one colour that tells its number: red is the number's low byte, green the high one."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), (number % 256, number // 256, 7), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def members(count: int, start: int = 0) -> list[tuple[str, bytes]]:
    """The members of `count` good samples."""
    found = []
    for number in range(start, start + count):
        found += [
            (f"{number:05}.png", picture(number)),
            (f"{number:05}.txt", f"picture {number}".encode()),
            (f"{number:05}.json", json.dumps({"number": number}).encode()),
        ]
    return found


def write_tar(path: Path, content: list[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar of regular members."""
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in content:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def decode(pair, generator):
    """The picture's number, and a random one that tells the generator."""
    from ostension.errors import DataError

    try:
        with Image.open(io.BytesIO(pair.image)) as image:
            pixels = np.asarray(image.convert("RGB"))
    except OSError:
        raise DataError(f"not an image of {len(pair.image)} bytes", source="a decoder") from None
    return np.array([int(pixels[0, 0, 0]) + 256 * int(pixels[0, 0, 1]), int(generator.integers(1 << 30))]), pair.texts[0]
