"""UPT's small transformer, which text contexts and image tokens go through together.

Letters: N contexts, N' tokens a block, L blocks, W width of the text tower, W' of the image tower.
"""

from __future__ import annotations

import torch
from torch import nn

from ostension.adapt._init import linear, normal
from ostension.model.config import VitConfig
from ostension.model.layers import Block
from ostension.shapes import Float

WIDTH = 128


class Mixer(nn.Module):
    """One layer with one head, between maps to its width and back."""

    def __init__(self, width: int, vision: VitConfig, generator: torch.Generator):
        super().__init__()
        self.text_in = linear(width, WIDTH, generator)
        self.image_in = linear(vision.width, WIDTH, generator)
        self.block = Block(WIDTH, 1, 4 * WIDTH, "gelu", 1e-5)
        for name, value in self.block.named_parameters():
            with torch.no_grad():
                if value.ndim > 1:
                    value.copy_(normal(tuple(value.shape), generator, WIDTH**-0.5))
                else:
                    value.fill_(1.0 if "ln" in name and name.endswith("weight") else 0.0)
        self.text_out = linear(WIDTH, width, generator)
        self.image_out = linear(WIDTH, vision.width, generator)

    def forward(
        self, context: Float[torch.Tensor, "N W"], tokens: Float[torch.Tensor, "L N2 W2"]
    ) -> tuple[Float[torch.Tensor, "N W"], Float[torch.Tensor, "L N2 W2"]]:
        """Contexts and tokens made of each other."""
        sequence = torch.cat([self.text_in(context), self.image_in(tokens.flatten(0, 1))])
        mixed = self.block(sequence[None])[0]
        count = len(context)
        return self.text_out(mixed[:count]), self.image_out(mixed[count:]).view(tokens.shape)
