"""A hash of what a picture looks like: 64 bits, of which similar pictures share most.

The picture, on white and in grey, is averaged down to 32 x 32, and the 8 x 8 lowest frequencies of its cosine transform are
taken. Bit 8 u + v says whether the coefficient (u, v) is above the median of the 64:

    c(u, v) = sum over y, x of g(y, x) cos(pi (2 y + 1) u / 64) cos(pi (2 x + 1) v / 64)

Coefficients are rounded to thousandths of a grey level first, so that a flat or a symmetric picture has a fixed hash and not
one of rounding errors. Copies at another size or JPEG quality differ in a few bits, unrelated pictures in about 32.

Source: the widely used pHash in outline (Zauner, 2010); the median includes the first coefficient, as in the common
Python implementation, but hashes are not meant to equal another tool's.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from ostension.image.decode import read_picture, to_rgb

SIDE, LOW = 32, 8
_BASIS = np.cos(np.pi * (2 * np.arange(SIDE) + 1)[None] * np.arange(LOW)[:, None] / (2 * SIDE))  # (8, 32)
_WEIGHTS = np.uint64(1) << np.arange(LOW * LOW, dtype=np.uint64)


def perceptual_hash(image: object) -> int:
    """The 64-bit hash of a picture: a path, bytes, a Pillow picture or an array.

    Raises:
        DataError, LimitError: for what is no picture.
    """
    picture = image if isinstance(image, Image.Image) else read_picture(image).image
    grey = to_rgb(picture, "white").convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    coefficients = np.round(_BASIS @ np.asarray(grey, np.float64) @ _BASIS.T, 3).ravel()
    return int(_WEIGHTS[coefficients > np.median(coefficients)].sum(dtype=np.uint64))


def distances(hashes: np.ndarray, one: int) -> np.ndarray:
    """In how many of their 64 bits hashes (N,) of type uint64 differ from one."""
    return np.bitwise_count(hashes ^ np.uint64(one)).astype(np.int64)
