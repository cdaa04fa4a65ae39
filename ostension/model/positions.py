"""Position embeddings for another image size or context length, as pure functions.

Letters: P positions (with the row of the class token or of the mean, where there is one), T tokens, W width.

Source: `resize_pos_embed` and `resize_text_pos_embed` of open_clip 3.3.0, with which the results agree.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ostension.shapes import Float


def resize_image_positions(
    table: Float[Tensor, "P W"], grid: int, *, class_row: bool, antialias: bool = True
) -> Float[Tensor, "P2 W"]:
    """The table of a square of `grid` x `grid` patches: bicubic; the class token's row is kept as it is.

    Args:
        antialias: as open_clip does; Hugging Face's ViT and DINOv2 do not.
    """
    special, patches = table[: int(class_row)], table[int(class_row) :]
    old = math.isqrt(len(patches))
    assert old * old == len(patches)
    if old == grid:
        return table
    square = patches.float().T.view(1, -1, old, old)
    square = F.interpolate(square, size=(grid, grid), mode="bicubic", antialias=antialias, align_corners=False)
    return torch.cat([special, square.flatten(2)[0].T.to(table.dtype)])


def resize_text_positions(table: Float[Tensor, "T W"], length: int) -> Float[Tensor, "T2 W"]:
    """The table of `length` positions, by linear interpolation."""
    if len(table) == length:
        return table
    return F.interpolate(table.float().T[None], size=length, mode="linear", align_corners=False)[0].T.to(table.dtype)
