"""Pillow's antialiased resize, bit for bit, of only the window that is wanted.

Pillow resizes an 8-bit picture in two passes, over columns and over rows. In each pass an output pixel is

    clip8(floor(sum_i k_i p_i / 2^22 + 1/2)),    k_i = round(2^22 w_i / sum_j w_j),    w_i = filter((i + 1/2 - c) / max(s, 1))

with s = input size / output size, c = s (x + 1/2) and i over the pixels within the filter's reach of c. The sums are
integers over 2^22 below 2^31, so float64 holds them exactly whatever the order of addition: a pass is a product with a
banded matrix, and BLAS may do it. That is exact, faster than Pillow (`benchmarks/preprocess.py`), and costs nothing for
what a centre crop throws away: a 1 x 4,000 strip would be resized to 224 x 896,000 first.

Source: Pillow's `Resample.c` and `Geometry.c` for the equations; the tests compare with Pillow itself.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator

import numpy as np
import PIL
from PIL import Image

from ostension.shapes import UInt8

# Modes that Pillow keeps as bytes and resizes with a filter; palettes and 1-bit pictures it resizes by nearest pixel.
FILTERED_MODES = frozenset(("L", "LA", "La", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"))
_BITS = 22  # Pillow's PRECISION_BITS: 32 - 8 for the pixel - 2 for the overshoot of the filter
# OpenBLAS starts its own threads above this many multiplications; they would compete with the workers of a batch.
_PRODUCTS_PER_CALL = 1 << 18
_VALUES_PER_STRIP = 1 << 19  # 4 MB of float64
_CACHED_WEIGHTS = 1 << 16
_PILLOW = tuple(int(part) for part in PIL.__version__.split(".")[:2])


@dataclasses.dataclass(frozen=True, slots=True)
class _Block:
    """Outputs `first` to `last` of an axis are inputs `low` to `high` times `weights` (inputs x outputs)."""

    first: int
    last: int
    low: int
    high: int
    weights: np.ndarray


def resample(
    image: Image.Image, size: tuple[int, int], window: tuple[int, int, int, int], interpolation: str = "bicubic"
) -> UInt8[np.ndarray, "bands height width"]:
    """The pixels that `image.resize(size, filter).crop(window)` has, as planes.

    Args:
        image: a picture in one of `FILTERED_MODES`. With alpha it has to be premultiplied ("RGBa", "La"), as Pillow does.
        size: width and height of the whole resized picture.
        window: left, top, right and bottom of the wanted part of it.
        interpolation: "bicubic" (a = -1/2) or "bilinear".
    """
    left, top, right, bottom = window
    columns = _axis(image.width, size[0], left, right, interpolation)
    rows = _axis(image.height, size[1], top, bottom, interpolation)
    # What of the picture the passes need.
    left, right = (columns[0].low, columns[-1].high) if columns else (left, right)
    top, bottom = (rows[0].low, rows[-1].high) if rows else (top, bottom)
    source: _Source = _Picture(image, (left, top, right, bottom))
    passes = [(_columns_pass, columns), (_rows_pass, rows)]
    for run, blocks in reversed(passes) if rows_first(image.size, size) else passes:
        source = _Lines(run(source, blocks)) if blocks else source
    return source.read(0, 0, source.height, source.width).transpose(1, 0, 2)


def nearest(image: Image.Image, size: tuple[int, int], window: tuple[int, int, int, int]) -> np.ndarray:
    """The values that `image.resize(size, NEAREST).crop(window)` has, for pictures of one band."""
    left, top, right, bottom = window
    rows = _nearest_inputs(image.height, size[1])[top:bottom]
    columns = _nearest_inputs(image.width, size[0])[left:right]
    low, high = int(columns[0]), int(columns[-1]) + 1
    band = np.asarray(image.crop((low, int(rows[0]), high, int(rows[-1]) + 1)))
    return band[np.ix_(rows - rows[0], columns - low)]


class _Picture:
    """A part of a Pillow image, read as lines of bytes: (height, bands, width), the layout in which both passes are plain
    products of matrices."""

    def __init__(self, image: Image.Image, box: tuple[int, int, int, int]):
        self.image, self.left, self.top = image, box[0], box[1]
        self.bands, self.height, self.width = len(image.getbands()), box[3] - box[1], box[2] - box[0]

    def read(self, top: int, left: int, bottom: int, right: int) -> np.ndarray:
        part = self.image.crop((self.left + left, self.top + top, self.left + right, self.top + bottom))
        if part.mode in ("RGB", "CMYK"):
            planes = [part.tobytes("raw", letter) for letter in part.mode]  # saves the copy that split() makes
        else:
            planes = [band.tobytes() for band in part.split()]
        return np.frombuffer(b"".join(planes), np.uint8).reshape(self.bands, bottom - top, right - left).transpose(1, 0, 2)


class _Lines:
    """The outcome of a pass, (height, bands, width)."""

    def __init__(self, lines: np.ndarray):
        self.lines = lines
        self.height, self.bands, self.width = lines.shape

    def read(self, top: int, left: int, bottom: int, right: int) -> np.ndarray:
        return self.lines[top:bottom, :, left:right]


_Source = _Picture | _Lines


def _columns_pass(source: _Source, blocks: tuple[_Block, ...]) -> np.ndarray:
    """All rows with their columns resampled, in strips of rows so that float64 never holds the picture."""
    offset, bands = blocks[0].low, source.bands
    out = np.empty((source.height, bands, blocks[-1].last), np.uint8)
    products = bands * max(block.weights.size for block in blocks)
    height = _even(source.height, min(_PRODUCTS_PER_CALL // products, _VALUES_PER_STRIP // (bands * source.width)))
    taps = np.empty((height, bands, source.width))
    sums = np.empty((height, bands, out.shape[2]))
    for top in range(0, source.height, height):
        count = min(height, source.height - top)
        taps[:count] = source.read(top, 0, top + count, source.width)
        inputs, outputs = (lines[:count].reshape(count * bands, -1) for lines in (taps, sums))
        for block in blocks:
            columns = inputs[:, block.low - offset : block.high - offset]
            np.matmul(columns, block.weights, out=outputs[:, block.first : block.last])
        _to_bytes(sums[:count], out[top : top + count])
    return out


def _rows_pass(source: _Source, blocks: tuple[_Block, ...]) -> np.ndarray:
    """All columns with their rows resampled, in strips of columns and groups of blocks for the same reason."""
    offset, bands = blocks[0].low, source.bands
    out = np.empty((blocks[-1].last, bands, source.width), np.uint8)
    width = _even(source.width, _PRODUCTS_PER_CALL // (bands * max(block.weights.size for block in blocks)))
    for left in range(0, source.width, width):
        right = min(left + width, source.width)
        for group in _groups(blocks, _VALUES_PER_STRIP // (bands * width)):
            low, first, last = group[0].low, group[0].first, group[-1].last
            lines = source.read(low - offset, left, group[-1].high - offset, right)
            inputs = lines.astype(np.float64, order="C").reshape(len(lines), -1)
            outputs = np.empty((last - first, inputs.shape[1]))
            for block in group:
                rows = inputs[block.low - low : block.high - low]
                np.matmul(block.weights.T, rows, out=outputs[block.first - first : block.last - first])
            _to_bytes(outputs.reshape(-1, bands, right - left), out[first:last, :, left:right])
    return out


def _groups(blocks: tuple[_Block, ...], lines: int) -> Iterator[list[_Block]]:
    """Neighbouring blocks that together need at most `lines` inputs, or single ones that need more."""
    group: list[_Block] = []
    for block in blocks:
        if group and block.high - group[0].low > lines:
            yield group
            group = []
        group.append(block)
    yield group


def _even(length: int, most: int) -> int:
    """The length of equal parts of at most `most`."""
    return math.ceil(length / math.ceil(length / max(1, most)))


def rows_first(size: tuple[int, int], out: tuple[int, int]) -> bool:
    """Whether the installed Pillow runs the row pass first; the passes round, so their order shows in the last bit."""
    if _PILLOW >= (13, 0):
        return 0 < size[1] - out[1] > 2 * (size[0] - out[0])
    return _PILLOW >= (12, 2) and size[1] > 100 * size[0] and out[1] < size[1]


def _to_bytes(sums: np.ndarray, out: np.ndarray) -> None:
    """clip8(floor(sums + 1/2)) into `out`. The cast to integers drops the fraction, which below zero is clipped anyhow."""
    whole = np.empty(sums.shape, np.int16)
    np.add(sums, 0.5, out=whole, casting="unsafe")
    np.clip(whole, 0, 255, out=whole)
    out[...] = whole


def _axis(size: int, out: int, first: int, last: int, interpolation: str) -> tuple[_Block, ...]:
    """The blocks of one pass; none where Pillow skips the pass."""
    if size == out:
        return ()
    reach = _FILTERS[interpolation][0] * max(size / out, 1.0)
    # Big pictures differ from file to file, and their weights are a small part of the work: not worth the memory.
    small = (last - first) * 2 * reach <= _CACHED_WEIGHTS
    return (_cached_blocks if small else _blocks)(size, out, first, last, interpolation)


def _blocks(size: int, out: int, first: int, last: int, interpolation: str) -> tuple[_Block, ...]:
    lows, highs, weights = coefficients(size, out, first, last, interpolation)
    count, taps = weights.shape
    # Wide blocks make few calls, narrow ones waste few products with zeros; BLAS likes powers of two.
    width = min(16, 2 ** max(0, round(math.log2(40 * out / size))))
    starts = np.arange(0, count, width)
    stops = np.minimum(starts + width, count)
    begins, ends = lows[starts], highs[stops - 1]
    shifts = lows - np.repeat(begins, stops - starts)
    bands = np.zeros((int(shifts.max()) + taps, count))
    bands[shifts + np.arange(taps)[:, None], np.arange(count)] = weights.T
    return tuple(
        _Block(start, stop, low, high, bands[: high - low, start:stop])
        for start, stop, low, high in zip(starts.tolist(), stops.tolist(), begins.tolist(), ends.tolist(), strict=True)
    )


_cached_blocks = functools.lru_cache(maxsize=64)(_blocks)


def coefficients(size: int, out: int, first: int, last: int, interpolation: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pillow's weights for outputs `first` to `last` of an axis: first input, one past the last input, weights.

    The weights are whole multiples of 2^-22 in float64, zero past an output's last input. The operations and their order
    are those of the C code, so that rounding is the same.
    """
    reach, filter_ = _FILTERS[interpolation]
    scale = size / out
    stretch = max(scale, 1.0)
    support = reach * stretch
    taps = math.ceil(support) * 2 + 1
    centers = (np.arange(first, last) + 0.5) * scale
    lows = np.maximum((centers - support + 0.5).astype(np.int64), 0)
    highs = np.minimum((centers + support + 0.5).astype(np.int64), size)
    inputs = lows[:, None] + np.arange(taps)
    weights = filter_((inputs - centers[:, None] + 0.5) * (1.0 / stretch))
    weights[inputs >= highs[:, None]] = 0.0
    weights /= np.cumsum(weights, axis=1)[:, -1:]  # adds from left to right; sum() would add in pairs
    weights *= 1 << _BITS
    weights += np.where(weights < 0, -0.5, 0.5)
    return lows, highs, np.trunc(weights) / (1 << _BITS)


def _bicubic(x: np.ndarray) -> np.ndarray:
    a = -0.5
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _bilinear(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    return np.where(x < 1.0, 1.0 - x, 0.0)


_FILTERS: dict[str, tuple[float, Callable[[np.ndarray], np.ndarray]]] = {
    "bicubic": (2.0, _bicubic),
    "bilinear": (1.0, _bilinear),
}


@functools.lru_cache(maxsize=16)
def _nearest_inputs(size: int, out: int) -> np.ndarray:
    """The input pixel of every output pixel: steps of size / out added up one by one, as the C code does."""
    step = size / out
    positions = np.full(out, step)
    positions[0] = step * 0.5
    return np.minimum(np.cumsum(positions).astype(np.int64), size - 1)
