"""A transformer over the frames of a clip, with a table of positions in time.

Letters: B clips, F frames, E embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ostension.adapt._init import normal
from ostension.errors import ConfigError
from ostension.model.layers import Block
from ostension.runtime import torch_generator
from ostension.shapes import Float

STD = 0.02  # of matrices and positions at first
NORM_EPS = 1e-12


class Temporal(nn.Module):
    """T(x) of frames x: blocks of attention and MLP over x + positions.

    At first matrices and positions are normal with spread 0.02 and the attention's input is Xavier's, as in the published code,
    where it is torch's default.

    Raises:
        ConfigError: for a width that the heads do not divide.
    """

    def __init__(self, width: int, frames: int, layers: int, heads: int, *, seed: int):
        super().__init__()
        if width % heads:
            what = f"{heads} heads over frames of width {width}"
            raise ConfigError(what, expected="a number that divides the width", fix="give the setting heads")
        self.positions = nn.Parameter(torch.empty(frames, width))
        self.blocks = nn.ModuleList(Block(width, heads, 4 * width, "quick_gelu", NORM_EPS) for _ in range(layers))
        generator = torch_generator(seed, "temporal")
        with torch.no_grad():
            for name, value in self.named_parameters():
                if name.endswith("in_proj_weight"):
                    bound = (6 / (value.shape[0] + value.shape[1])) ** 0.5
                    value.copy_((torch.rand(value.shape, generator=generator) * 2 - 1) * bound)
                elif value.ndim == 2:
                    value.copy_(normal(tuple(value.shape), generator, STD))
                else:
                    value.fill_(1.0 if ".ln_" in name and name.endswith("weight") else 0.0)

    def forward(self, frames: Float[Tensor, "B F E"]) -> Float[Tensor, "B F E"]:
        found = frames.to(self.positions.dtype) + self.positions[: frames.shape[1]]
        for block in self.blocks:
            found = block(found)
        return found.to(frames.dtype)
