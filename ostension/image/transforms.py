"""Placeholder of the image transform: its configuration is fixed, the rest follows."""

from __future__ import annotations

import dataclasses
from typing import Literal

from ostension.config import require

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
        for key in ("max_pixels", "max_bytes"):
            require(getattr(self, key) >= 1, f"preprocess.{key}", getattr(self, key), "1 or more")
