"""How much of each token row a text tower has to see."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def used_lengths(config: Any, tokens: Tensor) -> Tensor:
    """Positions (B,) of each row that can change its embedding: up to the end token, the last that is no padding, or all.

    Args:
        config: of the text tower.
        tokens: (B, T).
    """
    rows, length = tokens.shape
    if config.sees_padding or getattr(config, "pool", None) == "last":
        return torch.full((rows,), length, dtype=torch.int64)
    if hasattr(config, "pad_id"):
        places = torch.arange(1, length + 1)
        return ((tokens != config.pad_id) * places).amax(dim=1).clamp(min=1)
    eos = getattr(config, "eos_id", None)
    return (tokens.argmax(dim=1) if eos is None else tokens.eq(eos).int().argmax(dim=1)) + 1
