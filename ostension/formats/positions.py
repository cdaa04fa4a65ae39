"""Position embeddings for another picture size or number of tokens, by interpolation.

The grid of an image tower is interpolated bicubically with antialias, its first row (class token, or the mean of a
residual network's attention pool) kept; text positions linearly. This is what open_clip does.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ostension.errors import CheckpointError, ConfigError
from ostension.model.config import ModelConfig, VitConfig

_IMAGE = ("visual.positional_embedding", "visual.attnpool.positional_embedding")
_TEXT = "text.positional_embedding"


def resized_config(config: ModelConfig, image_size: int | None, context_length: int | None, path: Path) -> ModelConfig:
    """`config` for pictures of `image_size` pixels a side and texts of `context_length` tokens (None: as it is).

    Raises:
        CheckpointError: for a size that the towers cannot have.
    """
    try:
        if image_size is not None:
            vision = dataclasses.replace(config.vision, image_size=image_size)
            config = dataclasses.replace(
                config, vision=vision, preprocess=dataclasses.replace(config.preprocess, image_size=image_size)
            )
        if context_length is not None:
            tokenizer = dataclasses.replace(config.tokenizer, context_length=context_length)
            config = dataclasses.replace(
                config, tokenizer=tokenizer, text=dataclasses.replace(config.text, context_length=context_length)
            )
    except ConfigError as error:
        raise CheckpointError(error.what, source=path, expected=error.expected) from None
    return config


def resized(name: str, tensor: Tensor, old: ModelConfig, new: ModelConfig) -> Tensor:
    """The parameter `name` of a model `old` as a model `new` needs it; any but the position embeddings as it is."""
    if name in _IMAGE and old.vision.grid != new.vision.grid:
        first = not isinstance(old.vision, VitConfig) or old.vision.class_token
        return resize_grid(tensor, new.vision.grid, first_row=first)
    if name == _TEXT and old.text.context_length != new.text.context_length:
        return resize_line(tensor, new.text.context_length)
    return tensor


def resize_grid(positions: Tensor, grid: int, *, first_row: bool) -> Tensor:
    """Rows of a square grid, (P, W) or with a first row of its own (1 + P, W), for `grid` x `grid` patches."""
    kept, patches = positions.split([int(first_row), len(positions) - int(first_row)])
    side = round(len(patches) ** 0.5)
    image = patches.float().unflatten(0, (side, side)).permute(2, 0, 1)[None]  # 1 W side side
    image = F.interpolate(image, size=(grid, grid), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([kept, image[0].flatten(1).t().to(positions.dtype)])


def resize_line(positions: Tensor, length: int) -> Tensor:
    """Rows of a sequence (T, W) for `length` tokens."""
    line = F.interpolate(positions.float().t()[None], size=length, mode="linear", align_corners=False)
    return line[0].t().to(positions.dtype)
