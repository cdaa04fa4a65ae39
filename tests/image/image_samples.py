"""Pictures made on the spot for the image tests."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from ostension.runtime import numpy_generator


def photo(width: int, height: int, *, seed: int = 0, edges: bool = True) -> Image.Image:
    """Something like a photo: broad shading, texture, a little noise, and hard edges."""
    random = numpy_generator(seed, "photo", width, height)

    def layer(step: int) -> np.ndarray:
        cells = random.integers(0, 256, (height // step + 2, width // step + 2, 3), dtype=np.uint8)
        return np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC), np.float64)

    pixels = 0.7 * layer(40) + 0.3 * layer(4) + random.normal(0, 3, (height, width, 3))
    if edges:
        y, x = np.mgrid[:height, :width]
        dark = (x * 9 // width + y * 7 // height) % 2 == 0
        pixels[dark] = pixels[dark] * 0.5 + 60
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def noise(mode: str, width: int, height: int, *, seed: int = 0, binary: bool = False) -> Image.Image:
    """Independent random bytes in every band of `mode`, or only 0 and 255."""
    random = numpy_generator(seed, "noise", mode, width, height)
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = random.integers(0, 256, (bands, height, width), dtype=np.uint8)
    if binary:
        pixels = (pixels > 127).astype(np.uint8) * 255
    if mode == "1":
        return Image.fromarray(pixels[0] > 127)
    if mode == "P":
        image = Image.fromarray(pixels[0])
        image.putpalette(random.integers(0, 256, 768, dtype=np.uint8).tobytes())
        return image
    planes = [Image.fromarray(plane) for plane in pixels]
    return planes[0] if bands == 1 else Image.merge(mode, planes)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    """The bytes of a file of format `kind`."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def oriented(value: int) -> Image.Exif:
    """EXIF with this orientation."""
    exif = Image.Exif()
    exif[0x0112] = value
    return exif
