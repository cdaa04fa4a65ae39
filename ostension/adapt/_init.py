"""First values of what methods add, from explicit generators."""

from __future__ import annotations

import torch
from torch import Tensor, nn

TOKEN_STD = 0.02


def linear(inputs: int, outputs: int, generator: torch.Generator, *, bias: bool = True) -> nn.Linear:
    """A linear map with torch's default first values, U(-1/sqrt(inputs), 1/sqrt(inputs)) for weight and bias."""
    with torch.device("meta"):
        made = nn.Linear(inputs, outputs, bias=bias)
    bound = inputs**-0.5
    made.weight = nn.Parameter(uniform((outputs, inputs), bound, generator))
    if bias:
        made.bias = nn.Parameter(uniform((outputs,), bound, generator))
    return made


def uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> Tensor:
    """Numbers between -bound and bound."""
    return (torch.rand(shape, generator=generator) * 2 - 1) * bound


def normal(shape: tuple[int, ...], generator: torch.Generator, std: float = TOKEN_STD) -> Tensor:
    """Numbers from a normal distribution."""
    return torch.randn(shape, generator=generator) * std
