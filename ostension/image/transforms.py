"""From a picture to the tensor that a model was trained on, as its `PreprocessConfig` says.

    pixels = crop(resize(picture)) as bytes,    output = (pixels / 255 - mean) / std in float32

With "shortest" the short side becomes n = `image_size`, or `short_side` where that is given, and the long one
int(n * long / short); then a square of `image_size` is cut from the middle, at round-half-even((side - image_size) / 2) or
its floor. The arithmetic is torchvision's ToTensor and Normalize, operation by operation, so the bits are the same. Modes:

- "openai-exact": what OpenAI's code does to a file, bit for bit. It converts to RGB last, so that palettes and 1-bit
  pictures are resized by nearest pixel, and CMYK, grey and (premultiplied) alpha as themselves. We depart in one thing:
  16-bit grey is scaled to 8 bits first, where that code would turn it white.
- "convert-first": RGB first, then the same; what Hugging Face and most loaders do.
- "fast": as "convert-first", with torch's uint8 resize where that shrinks the picture. Its weights have about 15 bits where
  Pillow's have 22, which moves either pass by less than 1/16 level before rounding. So a pass is off by at most one level,
  and the two together by at most two, since bicubic weights add up to at most 1.25 in absolute value. That is the proved
  bound. Measured on 300 photos: 0.2 to 0.3 % of the values move by one level, and of 15 million ten by two, all in photos
  that shrink to less than their size but more than half of it. What is enlarged, and long strips, take the exact way.
"""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ostension.config import require
from ostension.errors import DataError
from ostension.image.decode import has_transparency, read_picture, to_rgb
from ostension.image.resample import FILTERED_MODES, nearest, resample, rows_first
from ostension.shapes import Float, UInt8

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """How a picture becomes the tensor that a model was trained on.

    Attributes:
        image_size: pixels a side of the square output.
        mode: "openai-exact" repeats OpenAI's order bit for bit (resize in the file's own mode, crop, then RGB);
            "convert-first" converts to RGB before resizing (Hugging Face, open_clip loaders, ours by default);
            "fast" may decode and resize by other means, within the bound stated in `transforms`.
        resize: "shortest" short side to `image_size` then centre crop; "squash" both sides to it;
            "longest" long side to it, then padded with `fill`.
        short_side: with "shortest", pixels of the short side before the crop, where that is not `image_size` (classifiers
            trained on ImageNet are given 224 of 256).
        crop_rounding: offset of the centre crop, "half-even" (torchvision, OpenAI) or "floor" (Hugging Face).
        alpha: "white" composites transparent pictures on white; "drop" discards alpha as OpenAI's code does.
        exif: apply the EXIF orientation (the published weights were used without).
        max_pixels, max_bytes: limits checked before decoding.
    """

    image_size: int
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize: Literal["shortest", "squash", "longest"] = "shortest"
    mode: Literal["openai-exact", "convert-first", "fast"] = "convert-first"
    short_side: int | None = None
    crop_rounding: Literal["half-even", "floor"] = "half-even"
    alpha: Literal["white", "drop"] = "white"
    fill: int = 0
    exif: bool = False
    max_pixels: int = 64_000_000
    max_bytes: int = 64_000_000

    def __post_init__(self):
        require(self.image_size >= 1, "preprocess.image_size", self.image_size, "1 or more")
        require(min(self.std) > 0, "preprocess.std", self.std, "positive numbers")
        require(0 <= self.fill <= 255, "preprocess.fill", self.fill, "0 to 255")
        if self.short_side is not None:
            require(self.resize == "shortest", "preprocess.short_side", self.short_side, "nothing unless resize is 'shortest'")
            require(self.short_side >= self.image_size, "preprocess.short_side", self.short_side, "image_size or more")
        for key in ("max_pixels", "max_bytes"):
            require(getattr(self, key) >= 1, f"preprocess.{key}", getattr(self, key), "1 or more")


# "fast" resizes the whole picture, so it pays only while the window is a good part of that.
_FAST_AREA = 4


class Transform:
    """Maps pictures to normalised tensors: `transform(picture)`, or `transform.batch(pictures, workers=4)`.

    A picture is a path, the file's bytes, an open binary file, a Pillow image, or a uint8 array or tensor H x W x 3.
    It holds no state but its `config`, so threads may share it.
    """

    def __init__(self, config: PreprocessConfig):
        self.config = config
        self._mean = np.asarray(config.mean, np.float32)[:, None, None]
        self._std = np.asarray(config.std, np.float32)[:, None, None]

    def __repr__(self) -> str:
        return f"Transform({self.config!r})"

    def __call__(
        self,
        image: object,
        *,
        place: tuple[float, float] | None = None,
        name: str | None = None,
        seen: collections.Counter[str] | None = None,
    ) -> Float[Tensor, "3 H W"]:
        """The normalised tensor of one picture.

        Args:
            place: where to cut, across and down, as shares from 0 to 1 of the length to spare; the middle by default.
            name: what to call the picture in messages, if its path does not say it.
            seen: counts what was met (`decode.TRAITS`: animated, alpha, degenerate, ...).

        Raises:
            DataError, LimitError: naming the picture and the reason; see `decode.read_picture`.
        """
        out = self._empty(3)
        traits = self._write(image, out.numpy(), name, place)
        if seen is not None:
            seen.update(traits)
        return out

    def batch(
        self, images: Iterable[object], workers: int = 0, *, seen: collections.Counter[str] | None = None
    ) -> Float[Tensor, "B 3 H W"]:
        """The normalised tensors of many pictures, in their order whatever `workers` is.

        Args:
            workers: threads; decoding and resizing run side by side in them. 0 and 1 use none.
            seen: as for one picture.

        Raises:
            DataError, LimitError: for the first picture that fails; one without a path is named by its position.
        """
        if isinstance(images, (str, bytes, os.PathLike)):
            raise DataError(f"one picture of type {type(images).__name__} is not a batch", expected="a list of pictures")
        sources = list(images)
        out = self._empty(len(sources), 3)
        rows = out.numpy()

        def write(index: int) -> frozenset[str]:
            source = sources[index]
            name = None if isinstance(source, (str, os.PathLike)) else f"image {index} of {len(sources)}"
            return self._write(source, rows[index], name)

        if workers > 1 and len(sources) > 1:
            with ThreadPoolExecutor(min(workers, len(sources)), thread_name_prefix="transform") as pool:
                traits = list(pool.map(write, range(len(sources))))
        else:
            traits = [write(index) for index in range(len(sources))]
        if seen is not None:
            for found in traits:
                seen.update(found)
        return out

    def pixels(
        self, image: object, *, name: str | None = None, place: tuple[float, float] | None = None
    ) -> UInt8[Tensor, "3 H W"]:
        """The picture before normalisation, in bytes: a quarter of the memory, for caches and for looking at."""
        planes, _ = self._planes(image, name, place)
        return torch.from_numpy(planes.copy())

    def normalize(self, pixels: UInt8[Tensor, "*B 3 H W"]) -> Float[Tensor, "*B 3 H W"]:
        """(pixels / 255 - mean) / std in float32: `transform(x)` is `transform.normalize(transform.pixels(x))`."""
        mean, std = (torch.from_numpy(values).to(pixels.device) for values in (self._mean, self._std))
        return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)

    def _empty(self, *leading: int) -> Tensor:
        side = self.config.image_size
        return torch.empty((*leading, side, side), dtype=torch.float32, device="cpu")

    def _write(
        self, image: object, out: np.ndarray, name: str | None, place: tuple[float, float] | None = None
    ) -> frozenset[str]:
        """Write one picture's tensor into `out` and give its traits.

        In numpy, whose operations on so little data never start threads: torch's may, and waiting for them costs more
        than the work when all cores are busy.
        """
        planes, traits = self._planes(image, name, place)
        np.copyto(out, planes)
        np.divide(out, np.float32(255), out=out)
        np.subtract(out, self._mean, out=out)
        np.divide(out, self._std, out=out)
        return traits

    def _planes(
        self, source: object, name: str | None, place: tuple[float, float] | None = None
    ) -> tuple[UInt8[np.ndarray, "3 H W"], frozenset[str]]:
        config = self.config
        picture = read_picture(
            source,
            max_pixels=config.max_pixels,
            max_bytes=config.max_bytes,
            exif=config.exif,
            name=name,
            keep_memory=config.mode == "fast",
        )
        image = picture.image
        if config.mode != "openai-exact" or (config.alpha == "white" and has_transparency(image)):
            image = to_rgb(image, config.alpha, name=picture.name)
        size = resized_size(image.size, config.short_side or config.image_size, config.resize)
        window = _window(size, config, place)
        if config.mode == "fast" and _fast_pays(image.size, size, window):
            memory = picture.memory if image is picture.image else None
            planes = _resize_fast(image, memory, size, window, config.interpolation)
        else:
            planes = _resize_exact(image, size, window, config.interpolation, picture.name)
        return _pad(planes, config.image_size, config.fill), picture.traits


def resized_size(size: tuple[int, int], side: int, rule: str) -> tuple[int, int]:
    """Width and height after the resize to `side` by one of `PreprocessConfig.resize`'s rules.

    The long side is cut to an integer with "shortest" (torchvision, Hugging Face) and rounded with "longest" (open_clip).
    """
    width, height = size
    if rule == "squash":
        return side, side
    if rule == "longest":
        ratio = max(width, height) / side
        return max(1, round(width / ratio)), max(1, round(height / ratio))
    short, long = min(size), max(size)
    stretched = int(side * long / short)
    return (side, stretched) if width <= height else (stretched, side)


def _window(
    size: tuple[int, int], config: PreprocessConfig, place: tuple[float, float] | None
) -> tuple[int, int, int, int]:
    """The crop: left, top, right, bottom; whole sides where they are not longer than the crop."""
    side = config.image_size
    spare = [max(0, length - side) for length in size]
    if place is not None:
        left, top = (min(int(share * (extra + 1)), extra) for share, extra in zip(place, spare, strict=True))
    else:
        left, top = (extra // 2 if config.crop_rounding == "floor" else round(extra / 2) for extra in spare)
    return left, top, left + min(side, size[0]), top + min(side, size[1])


def _fast_pays(size: tuple[int, int], resized: tuple[int, int], window: tuple[int, int, int, int]) -> bool:
    """Whether torch's resize, which does the whole picture and columns first, is both quick and within the bound."""
    shrinks = resized[0] <= size[0] and resized[1] <= size[1]
    area = (window[2] - window[0]) * (window[3] - window[1])
    return shrinks and resized[0] * resized[1] <= _FAST_AREA * area and not rows_first(size, resized)


def _resize_exact(
    image: Image.Image, size: tuple[int, int], window: tuple[int, int, int, int], interpolation: str, name: str
) -> np.ndarray:
    """Resize in the picture's own mode as Pillow does, only the window of it, and convert that to RGB."""
    if image.mode == "RGB":
        return resample(image, size, window, interpolation)
    if image.mode in ("1", "P"):
        small = Image.fromarray(nearest(image, size, window))
        if image.mode == "P":
            small.putpalette(image.getpalette() or [])
    elif size == image.size:
        small = image.crop(window)  # without a resize Pillow does not premultiply, which loses colour under faint alpha
    else:
        image = image if image.mode in FILTERED_MODES else to_rgb(image, "drop", name=name)
        premultiplied = {"RGBA": "RGBa", "LA": "La"}.get(image.mode, image.mode)
        filtered = image if premultiplied == image.mode else image.convert(premultiplied)
        bands = [Image.fromarray(plane) for plane in resample(filtered, size, window, interpolation)]
        small = Image.merge(premultiplied, bands)
        small = small if premultiplied == image.mode else small.convert(image.mode)
    return np.asarray(to_rgb(small, "drop", name=name)).transpose(2, 0, 1)


def _resize_fast(
    image: Image.Image,
    memory: np.ndarray | None,
    size: tuple[int, int],
    window: tuple[int, int, int, int],
    interpolation: str,
) -> np.ndarray:
    pixels = np.asarray(image) if memory is None else memory
    try:
        tensor = torch.from_dlpack(pixels)  # no copy; from_numpy would warn, as what Pillow gives is read-only
    except BufferError:
        tensor = torch.from_numpy(pixels.copy())
    batch = tensor.permute(2, 0, 1)[None]
    resized = F.interpolate(batch, size=(size[1], size[0]), mode=interpolation, antialias=True)
    left, top, right, bottom = window
    return resized[0, :3, top:bottom, left:right].numpy()


def _pad(planes: np.ndarray, side: int, fill: int) -> np.ndarray:
    """Centre what is smaller than the output; the odd pixel goes to the right and the bottom."""
    height, width = planes.shape[1:]
    if (height, width) == (side, side):
        return planes
    out = np.full((3, side, side), fill, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    out[:, top : top + height, left : left + width] = planes
    return out
