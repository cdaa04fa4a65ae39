"""Altered copies of a picture, as copies are found on the web: cropped, stretched, turned, resized, recoloured, recompressed.

They are what a near-duplicate detector is trained and tested on. The kinds of change are those that CLIP's Appendix C names
(random crop and zoom, distortion of the aspect, down- and up-sizing to other resolutions, small rotations, JPEG, jitter of hue,
saturation and value; a random interpolation wherever something is resampled); how far each goes is ours, for no source says.

Every random number comes from the generator that is passed in, and every kind of change draws the same count of them whether
it is used or not: switching one kind off leaves the others as they were.
"""

from __future__ import annotations

import dataclasses
import io
import math

import numpy as np
from PIL import Image

from ostension.config import require

RESAMPLING = tuple(Image.Resampling)  # nearest, box, bilinear, hamming, bicubic, lanczos
TURNING = (Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)  # those that a rotation can have
KINDS = ("crop", "stretch", "turn", "resize", "colour", "jpeg")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CopyConfig:
    """How far the changes go, and how often each kind of them is made.

    Attributes:
        share: of the copies in which a kind of change is made, for each kind by itself.
        kinds: which kinds of change there are.
        crop: least share of the picture's area that is left.
        stretch: most that one side grows over the other, as a factor.
        turn: degrees, both ways; corners are filled with black, white or the mean colour.
        resize: least share of the sides that it is scaled down to; half of these copies are scaled up again.
        hue: of the circle, both ways.
        saturation, value: the log of the factor, both ways.
        jpeg: least and greatest quality.
    """

    share: float = 0.7
    kinds: tuple[str, ...] = KINDS
    crop: float = 0.5
    stretch: float = 1.33
    turn: float = 8.0
    resize: float = 0.25
    hue: float = 0.04
    saturation: float = 0.4
    value: float = 0.3
    jpeg: tuple[int, int] = (25, 95)

    def __post_init__(self):
        for name in ("share", "crop", "resize"):
            require(0 < getattr(self, name) <= 1, f"copies.{name}", getattr(self, name), "a share, above 0 and at most 1")
        require(self.stretch >= 1, "copies.stretch", self.stretch, "a factor, 1 or more")
        require(0 <= self.turn <= 45, "copies.turn", self.turn, "0 to 45 degrees")
        require(0 <= self.hue <= 0.5, "copies.hue", self.hue, "0 to 0.5, half of the circle")
        for name in ("saturation", "value"):
            require(getattr(self, name) >= 0, f"copies.{name}", getattr(self, name), "0 or more")
        require(1 <= self.jpeg[0] <= self.jpeg[1] <= 100, "copies.jpeg", self.jpeg, "two qualities from 1 to 100")
        known = set(self.kinds) <= set(KINDS) and len(set(self.kinds)) == len(self.kinds) > 0
        require(known, "copies.kinds", self.kinds, f"some of {', '.join(KINDS)}")

    def only(self, kind: str) -> CopyConfig:
        """The same, with one kind of change, in every copy."""
        return dataclasses.replace(self, kinds=(kind,), share=1.0)


def altered_copy(picture: Image.Image, config: CopyConfig, generator: np.random.Generator) -> Image.Image:
    """A copy of an RGB picture, changed at random; at least 1 x 1 pixels."""
    for kind in KINDS:
        made, numbers = generator.random() < config.share, generator.random(5)
        if made and kind in config.kinds:
            picture = _CHANGES[kind](picture, config, numbers)
    return picture


def cropped(picture: Image.Image, config: CopyConfig, numbers: np.ndarray) -> Image.Image:
    """A part of the picture, of its own shape and at a random place."""
    side = math.sqrt(_between(config.crop, 1.0, numbers[0]))
    wide, high = (max(1, round(side * length)) for length in picture.size)
    left, top = int(numbers[1] * (picture.width - wide + 1)), int(numbers[2] * (picture.height - high + 1))
    return picture.crop((left, top, left + wide, top + high))


def stretched(picture: Image.Image, config: CopyConfig, numbers: np.ndarray) -> Image.Image:
    """The picture with one side longer and the other shorter; its area stays."""
    factor = math.exp((2 * numbers[0] - 1) * math.log(config.stretch) / 2)
    return _resized(picture, factor, 1 / factor, numbers[1])


def turned(picture: Image.Image, config: CopyConfig, numbers: np.ndarray) -> Image.Image:
    """The picture turned about its middle, in a frame of the same size."""
    mean = tuple(int(value) for value in np.asarray(picture).reshape(-1, 3).mean(axis=0))
    fill = ((0, 0, 0), (255, 255, 255), mean)[int(3 * numbers[0])]
    method = TURNING[int(len(TURNING) * numbers[1])]
    return picture.rotate((2 * numbers[2] - 1) * config.turn, resample=method, fillcolor=fill)


def resized(picture: Image.Image, config: CopyConfig, numbers: np.ndarray) -> Image.Image:
    """The picture at fewer pixels, or at fewer and then at as many as before."""
    size = picture.size
    factor = _between(config.resize, 1.0, numbers[0])
    small = _resized(picture, factor, factor, numbers[1])
    return small if numbers[2] < 0.5 else small.resize(size, _method(numbers[3]))


def recoloured(picture: Image.Image, config: CopyConfig, numbers: np.ndarray) -> Image.Image:
    """The picture with another hue, saturation and brightness."""
    hsv = np.asarray(picture.convert("HSV")).astype(np.float32)
    hsv[..., 0] = (hsv[..., 0] + 256 * config.hue * (2 * numbers[0] - 1)) % 256
    for channel, reach, number in ((1, config.saturation, numbers[1]), (2, config.value, numbers[2])):
        hsv[..., channel] *= math.exp(reach * (2 * number - 1))
    return Image.fromarray(np.clip(hsv, 0, 255).astype(np.uint8), "HSV").convert("RGB")


def recompressed(picture: Image.Image, config: CopyConfig, numbers: np.ndarray) -> Image.Image:
    """The picture through JPEG."""
    low, high = config.jpeg
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=low + int(numbers[0] * (high - low + 1)), subsampling=int(3 * numbers[1]))
    return Image.open(buffer, formats=("JPEG",)).convert("RGB")


_CHANGES = {
    "crop": cropped, "stretch": stretched, "turn": turned, "resize": resized, "colour": recoloured, "jpeg": recompressed,
}  # fmt: skip


def _resized(picture: Image.Image, across: float, down: float, number: float) -> Image.Image:
    size = max(1, round(picture.width * across)), max(1, round(picture.height * down))
    return picture.resize(size, _method(number))


def _method(number: float) -> Image.Resampling:
    return RESAMPLING[int(len(RESAMPLING) * number)]


def _between(low: float, high: float, number: float) -> float:
    return low + (high - low) * float(number)
