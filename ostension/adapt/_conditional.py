"""Contexts that a small net shifts by the picture's feature, as CoCoOp has them.

v_m(x) = v_m + h(f(x)),    h = Linear(E -> E / 16), ReLU, Linear(E / 16 -> W)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ostension.adapt._init import linear
from ostension.adapt._text import ClassTokens, word_context
from ostension.model.clip import CLIP
from ostension.runtime import torch_generator
from ostension.shapes import Float

BOTTLENECK = 16  # the width of the net is the embedding's over this


class ConditionalContext(nn.Module):
    """The contexts, the net, and the prompts around class names."""

    def __init__(self, model: CLIP, words: str, class_names: Sequence[str], seed: int):
        super().__init__()
        generator, width = torch_generator(seed, "conditional context"), model.config.embed_dim
        self.context = nn.Parameter(word_context(model, words))
        self.first = linear(width, max(1, width // BOTTLENECK), generator).to(model.device)
        self.second = linear(max(1, width // BOTTLENECK), self.context.shape[-1], generator).to(model.device)
        self.prompts = ClassTokens(model, class_names)

    def forward(self, features: Float[torch.Tensor, "B E"]) -> Float[torch.Tensor, "B C E"]:
        """Unit rows of the classes for each picture."""
        shift = self.second(self.first(features.to(self.context.dtype)).relu())  # (B, W)
        return self.prompts.encode((self.context + shift[:, None])[:, None])  # contexts (B, 1, N, W)


def silence(addition: Any) -> None:
    """A net that shifts nothing."""
    with torch.no_grad():
        for value in addition.conditional.second.parameters():
            value.zero_()
