"""Stochastic rounding to bfloat16: a weight moves by less than its last bit on average, so it needs no float32 master.

A number between two neighbours of bfloat16 becomes the upper one with the probability of its place between them, so that
the mean over many roundings is the number itself, and what bfloat16 can say stays as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor


def stochastic_round(values: Tensor, generator: torch.Generator) -> Tensor:
    """`values` (float32) in bfloat16, each rounded up or down at random so that the expected value is kept.

    bfloat16 is the upper half of a float32's bits, subnormal numbers included. So 16 random bits are added to the lower
    half, which carries into the upper one with the right probability, and the lower half is dropped; the sign is a bit
    of its own, so that negative numbers mirror positive ones. Numbers beyond the largest of bfloat16 become that, and
    infinities and NaN stay what they are.
    """
    count = values.numel()
    # Four numbers of 16 bits from one draw of 64: random bits are the dearest part, and this halves the time.
    drawn = torch.empty((count + 3) // 4, dtype=torch.int64, device=values.device).random_(-(2**63), None, generator=generator)
    noise = drawn.view(torch.int16)[:count].view(values.shape).int().bitwise_and_(0xFFFF)
    bits = noise.add_(values.contiguous().view(torch.int32)).bitwise_and_(-0x10000)
    largest = torch.finfo(torch.bfloat16).max
    rounded = bits.view(torch.float32).clamp_(-largest, largest)
    return torch.where(values.isfinite(), rounded, values).bfloat16()
