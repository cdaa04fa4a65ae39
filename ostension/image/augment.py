"""Random views for training: crops of photos, and whole batches of cut-out drawings turned, moved, recoloured, composited.

Photos: the paper's only augmentation is a random square of the resized picture; open_clip's is a random part of it, resized
to the square. Both go through `Transform`, so that only what is cut out is resized, and their pixels are Pillow's.

Drawings have alpha, so backgrounds are composited and never painted over. After the warp everything is linear in a pixel
(r, g, b, alpha), with colour premultiplied: background k, gain g, contrast t about the view's mean m, saturation s give

    out = A rgb - (A k) alpha + A k + (1 - t) m,    A = t (s I + (1 - s) / 3 J) diag(g),    J all ones,

which is one small product for a view, normalisation included; the tests compare it with the steps one after the other.

Every random choice comes from the generator that is passed in.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ostension.config import require
from ostension.image.decode import open_image
from ostension.image.transforms import PreprocessConfig, Transform
from ostension.shapes import Float, UInt8


@dataclasses.dataclass(frozen=True, kw_only=True)
class CropConfig:
    """Which part of a photo a view shows.

    Attributes:
        kind: "square" cuts a square of the short side at a random place of the resized picture (the paper); "resized"
            takes a part of random area and shape and squashes it to the square (open_clip).
        scale: least and greatest share of the picture's area, for "resized".
        ratio: least and greatest width over height, drawn evenly on a log scale, for "resized".
        mirror: turn every second view, by chance, left to right.
    """

    kind: Literal["square", "resized"] = "square"
    scale: tuple[float, float] = (0.9, 1.0)  # open_clip's default
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    mirror: bool = False

    def __post_init__(self):
        require(0 < self.scale[0] <= self.scale[1] <= 1, "crop.scale", self.scale, "two shares of an area, the lower one first")
        require(0 < self.ratio[0] <= self.ratio[1], "crop.ratio", self.ratio, "two positive numbers, the lower one first")


class RandomView:
    """Maps a picture to a random view of it: `view(picture, generator)`, normalised like `Transform`'s output."""

    def __init__(self, preprocess: PreprocessConfig, crop: CropConfig):
        self.crop = crop
        squash = dataclasses.replace(preprocess, resize="squash")
        self.transform = Transform(preprocess if crop.kind == "square" else squash)

    def __call__(self, image: object, generator: np.random.Generator, *, name: str | None = None) -> Float[Tensor, "3 H W"]:
        """Raises: DataError, LimitError: as `Transform` does."""
        view = self._cut(image, generator, name)
        return view.flip(-1) if self.crop.mirror and generator.random() < 0.5 else view

    def _cut(self, image: object, generator: np.random.Generator, name: str | None) -> Float[Tensor, "3 H W"]:
        if self.crop.kind == "square":
            across, down = generator.random(2)
            return self.transform(image, name=name, place=(across, down))
        config = self.transform.config
        picture = open_image(
            image, max_pixels=config.max_pixels, max_bytes=config.max_bytes, exif=config.exif, alpha=config.alpha, name=name
        )
        return self.transform(picture.crop(random_box(picture.size, self.crop, generator)), name=name)


def random_box(size: tuple[int, int], config: CropConfig, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a part of random area and shape.

    As torchvision's RandomResizedCrop: ten tries, then the largest part in the middle whose shape is allowed.
    """
    width, height = size
    for _ in range(10):
        area = width * height * generator.uniform(*config.scale)
        ratio = math.exp(generator.uniform(math.log(config.ratio[0]), math.log(config.ratio[1])))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left, top = int(generator.integers(width - wide + 1)), int(generator.integers(height - high + 1))
            return left, top, left + wide, top + high
    allowed = min(max(width / height, config.ratio[0]), config.ratio[1])
    wide = min(width, max(1, round(height * allowed)))
    high = min(height, max(1, round(width / allowed)))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How far the random changes of drawings go at full strength.

    Attributes:
        rotation: degrees, both ways.
        zoom: the log of the scale, both ways; the sides differ by up to half as much again.
        shift: of the side, both ways.
        shear: the same.
        jitter: the log of brightness and contrast, both ways; saturation goes twice as far; the log of each colour's cast
            has a third of it as standard deviation.
        grey: share of views without colour.
        background: share of views on a plain random colour; the others stay on white, as in use.
    """

    rotation: float = 12.0
    zoom: float = 0.15
    shift: float = 0.08
    shear: float = 0.08
    jitter: float = 0.2
    grey: float = 0.1
    background: float = 0.5

    def __post_init__(self):
        for field in dataclasses.fields(self):
            require(getattr(self, field.name) >= 0, f"augment.{field.name}", getattr(self, field.name), "0 or more")
        for name in ("grey", "background"):
            require(getattr(self, name) <= 1, f"augment.{name}", getattr(self, name), "a share, 0 to 1")


@dataclasses.dataclass(frozen=True)
class Recolouring:
    """What happens to a batch's colours: `background` and `gain` (B, 3), `contrast` and `saturation` (B,)."""

    background: Tensor
    gain: Tensor
    contrast: Tensor
    saturation: Tensor


def premultiplied(drawings: UInt8[Tensor, "B H W 4"]) -> Float[Tensor, "B 4 H W"]:
    """Drawings as floats in 0..1 with colour times alpha, which may be averaged and resampled."""
    x = drawings.permute(0, 3, 1, 2).contiguous().float()
    x[:, 3].div_(255)
    x[:, :3].mul_(x[:, 3:] / 255)
    return x


def augment(
    x: Float[Tensor, "B 4 H W"],
    config: AugmentConfig,
    generator: torch.Generator,
    *,
    side: int,
    strength: float = 1.0,
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0),
    std: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Float[Tensor, "B 3 side side"]:
    """Random views of premultiplied drawings, normalised with `mean` and `std`; before that mostly in 0..1, not clipped.

    Args:
        side: pixels a side of the views.
        strength: from 0 to 1, scales every range and share, for a training that starts with easy views.
    """
    moved = warp(x, random_affine(len(x), config, generator, strength=strength), side)
    return recolour(moved, random_recolouring(len(x), config, generator, strength=strength), mean=mean, std=std)


def random_affine(
    count: int, config: AugmentConfig, generator: torch.Generator, *, strength: float = 1.0
) -> Float[Tensor, "B 2 3"]:
    """Matrices from places in a view to places in its drawing, both in -1..1."""
    angle = _uniform(count, math.radians(config.rotation) * strength, generator)
    shear = _uniform(count, config.shear * strength, generator)
    wide = _uniform(count, config.zoom * strength, generator).exp()
    high = wide * _uniform(count, config.zoom / 2 * strength, generator).exp()
    across, down = (2 * _uniform(count, config.shift * strength, generator) for _ in range(2))
    rows = [
        torch.stack([angle.cos() * wide, (shear - angle.sin()) * wide, across], dim=1),
        torch.stack([angle.sin() * high, angle.cos() * high, down], dim=1),
    ]
    return torch.stack(rows, dim=1)


def warp(x: Float[Tensor, "B C H W"], matrices: Float[Tensor, "B 2 3"], side: int) -> Float[Tensor, "B C side side"]:
    """The batch resampled (bilinear) at affine places; outside is zero, which premultiplied means transparent."""
    # Centres of pixels in -1..1. Not affine_grid, whose product with two columns takes half as long as the sampling.
    at = (torch.arange(side, dtype=x.dtype) * 2 + 1) / side - 1
    grid = torch.empty(len(x), side, side, 2, dtype=x.dtype)
    for axis in range(2):
        a, b, c = matrices[:, axis].to(x.dtype).unbind(dim=1)
        torch.add((a[:, None] * at)[:, None, :], (b[:, None] * at + c[:, None])[:, :, None], out=grid[..., axis])
    return F.grid_sample(x, grid, align_corners=False)


def random_recolouring(
    count: int, config: AugmentConfig, generator: torch.Generator, *, strength: float = 1.0
) -> Recolouring:
    """Backgrounds and changes of colour for a batch."""
    jitter = config.jitter * strength
    colour = torch.rand(count, 3, generator=generator)
    background = torch.where(_chosen(count, config.background * strength, generator)[:, None], colour, 1.0)
    cast = torch.randn(count, 3, generator=generator) * (jitter / 3)
    gain = (_uniform(count, jitter, generator)[:, None] + cast).exp()
    contrast = _uniform(count, jitter, generator).exp()
    without = _chosen(count, config.grey * strength, generator)
    saturation = torch.where(without, 0.0, _uniform(count, 2 * jitter, generator).exp())
    return Recolouring(background, gain, contrast, saturation)


def recolour(
    x: Float[Tensor, "B 4 H W"],
    change: Recolouring,
    *,
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0),
    std: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Float[Tensor, "B 3 H W"]:
    """Premultiplied drawings on their backgrounds, recoloured and normalised: the equation at the head of this file."""
    shift, scale = (torch.tensor(values, dtype=x.dtype) for values in (mean, std))
    background, gain = change.background.to(x.dtype), change.gain.to(x.dtype)
    contrast, saturation = change.contrast.to(x.dtype)[:, None], change.saturation.to(x.dtype)[:, None, None]
    means = x.mean(dim=(2, 3))  # (B, 4)
    middle = (gain * (means[:, :3] + (1 - means[:, 3:]) * background)).mean(dim=1, keepdim=True)
    mixing = saturation * torch.eye(3, dtype=x.dtype) + (1 - saturation) / 3
    matrix = contrast[:, :, None] * mixing * gain[:, None, :]
    on_background = (matrix @ background[:, :, None]).squeeze(2)
    weights = torch.cat([matrix, -on_background[:, :, None]], dim=2) / scale[:, None]  # (B, 3, 4)
    offset = (on_background + (1 - contrast) * middle - shift) / scale
    return torch.baddbmm(offset[:, :, None], weights, x.flatten(2)).view(len(x), 3, *x.shape[2:])


def _uniform(count: int, reach: float, generator: torch.Generator) -> Tensor:
    """Evenly between -reach and reach."""
    return (torch.rand(count, generator=generator) * 2 - 1) * reach


def _chosen(count: int, share: float, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator) < share
