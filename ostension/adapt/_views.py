"""Random views of a picture for tuning at test time: crops, flips and AugMix.

AugMix (Hendrycks et al. 2020, arXiv:1912.02781), as TPT's code uses it on the fine-grained sets, on top of the crop: three
chains of one to three random operations, mixed by Dirichlet weights, and the mixture mixed with the crop by a Beta weight.

Letters: V views, E embedding, S pixels a side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ostension.adapt._examples import CROPS
from ostension.files import sha256_bytes
from ostension.image.augment import random_box
from ostension.image.decode import open_image
from ostension.image.transforms import Transform
from ostension.model.clip import CLIP
from ostension.runtime import numpy_generator
from ostension.shapes import Float

WIDTH, MAX_DEPTH, SEVERITY = 3, 3, 1
Mix = Literal["none", "augmix"]


class Views:
    """Views of pictures, as pixels or as rows of the frozen tower.

    Args:
        model: whose preprocessing is view 0.
        count: of views.
        mix: what follows the crop.
        seed: of all views; those of a picture are a function of it and the picture, wherever among others that stands.
    """

    def __init__(self, model: CLIP, count: int, mix: Mix = "none", *, seed: int = 0):
        self.model, self.count, self.mix, self.seed = model, count, mix, seed

    def pixels(self, image: object) -> Float[Tensor, "V 3 S S"]:
        """The views of a picture, the model's own preprocessing first."""
        transform = self.model.transform
        config = transform.config
        picture = open_image(
            image, max_pixels=config.max_pixels, max_bytes=config.max_bytes, exif=config.exif, alpha=config.alpha
        )
        generator = numpy_generator(self.seed, "views", sha256_bytes(picture.tobytes()))
        found = [transform(picture)]
        found += [self._view(picture, transform, generator) for _ in range(self.count - 1)]
        return torch.stack(found)

    @torch.no_grad()
    def rows(self, image: object) -> Float[Tensor, "V E"]:
        """Unit rows of the views."""
        return self.model.encode_image(self.pixels(image), normalize=True).float()

    def _view(self, picture: Image.Image, transform: Transform, generator: np.random.Generator) -> Tensor:
        side = transform.config.image_size
        crop = picture.crop(random_box(picture.size, CROPS, generator)).resize((side, side), Image.Resampling.BICUBIC)
        if generator.random() < 0.5:
            crop = ImageOps.mirror(crop)
        if self.mix == "none":
            return transform(crop)
        return augmix(crop, transform, generator)


def augmix(crop: Image.Image, transform: Callable[[Image.Image], Tensor], generator: np.random.Generator) -> Tensor:
    """A mixture of altered copies of a crop, in preprocessed form: m x + (1 - m) sum_i w_i chain_i(x)."""
    weights = generator.dirichlet(np.ones(WIDTH))
    share = float(generator.beta(1.0, 1.0))
    plain = transform(crop)
    mixed = torch.zeros_like(plain)
    for weight in weights.tolist():
        altered = crop
        for _ in range(int(generator.integers(1, MAX_DEPTH + 1))):
            altered = OPERATIONS[int(generator.integers(len(OPERATIONS)))](altered, generator)
        mixed += weight * transform(altered)
    return share * plain + (1 - share) * mixed


def _level(generator: np.random.Generator, largest: float) -> float:
    """How far an operation goes: a random part of a tenth of its largest reach times the severity."""
    return float(generator.uniform(0.1, SEVERITY)) * largest / 10


def _signed(generator: np.random.Generator, largest: float) -> float:
    level = _level(generator, largest)
    return -level if generator.random() < 0.5 else level


def _posterize(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    return ImageOps.posterize(image, 4 - int(_level(generator, 4)))


def _solarize(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    return ImageOps.solarize(image, 256 - int(_level(generator, 256)))


def _rotate(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    return image.rotate(int(_signed(generator, 30)), resample=Image.Resampling.BILINEAR)


def _affine(place: int, reach: float, in_pixels: bool) -> Callable[[Image.Image, np.random.Generator], Image.Image]:
    def move(image: Image.Image, generator: np.random.Generator) -> Image.Image:
        level = int(_signed(generator, image.width / 3)) if in_pixels else _signed(generator, reach)
        matrix = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
        matrix[place] = level
        return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR)

    return move


OPERATIONS: tuple[Callable[[Image.Image, np.random.Generator], Image.Image], ...] = (
    lambda image, _: ImageOps.autocontrast(image),
    lambda image, _: ImageOps.equalize(image),
    _posterize,
    _rotate,
    _solarize,
    _affine(1, 0.3, False),  # shear along x
    _affine(3, 0.3, False),
    _affine(2, 0, True),  # translate along x
    _affine(5, 0, True),
)
