"""Adam's running means of a weight's gradient and of its square, in float32, or in float16 at half of the memory.

In float16 a tensor x is kept as x / s with one float32 scale s = 1e-8 + max|x| / 65504 (Jukebox, Dhariwal et al. 2020), so
that its largest number is the largest of float16. All is computed in float32, some thousand numbers at a time.

float16 then holds numbers down to 1e-12 of the largest, and squares of gradients span more than that. A second moment v that
became 0 while the first did not would leave a step of m / eps, bounded by nothing but eps: with eps = 1e-8, 100 learning
rates for a gradient that is 1e-6 of its tensor's largest. So v is kept at least at the smallest number that its scale can
say. It is then never too small by more than a rounding, which is a third at the lower end of the range, and no step is
more than 1.23 times as large as the one of float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

LARGEST = torch.finfo(torch.float16).max
SMALLEST = torch.finfo(torch.float16).smallest_normal * torch.finfo(torch.float16).eps  # the last subnormal, 6e-8
LEAST_SCALE = 1e-8

Kind = Literal["fp32", "fp16"]


class Moments:
    """Both moments of one weight.

    Attributes:
        first, second: the stored numbers, shaped as the weight.
        scales: (2,) what the stored numbers are multiplied with; None in full precision.
        count: 0-d, updates so far.
    """

    def __init__(self, weight: Tensor, kind: Kind):
        full = torch.promote_types(weight.dtype, torch.float32)
        stored = torch.float16 if kind == "fp16" else full
        self.first, self.second = torch.zeros_like(weight, dtype=stored), torch.zeros_like(weight, dtype=stored)
        self.scales = torch.ones(2, device=weight.device) if kind == "fp16" else None
        self.count = torch.zeros((), device=weight.device)
        self.next_scales = self.scales

    def tensors(self) -> dict[str, Tensor]:
        """The state, by the part's name."""
        found = {"first": self.first, "second": self.second, "count": self.count}
        return found if self.scales is None else {**found, "scales": self.scales}

    def largest_after(self, gradients: Iterable[tuple[slice, Tensor]], beta1: float, beta2: float) -> Tensor:
        """The largest magnitudes (2,) that the moments will have after a step with these gradients, given some rows at a time.

        An iterator is walked through once, so that only a few rows are held in float32.
        """
        tops = torch.zeros(2, device=self.first.device)
        for rows, gradient in gradients:
            first, second = self.read(rows)
            first.lerp_(gradient, 1 - beta1)
            second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            tops = torch.maximum(tops, torch.stack([first.abs().max(), second.max()]))
        return tops

    def read(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Some rows in full precision: to be changed and then written back."""
        first, second = take_rows(self.first, rows), take_rows(self.second, rows)
        if self.scales is None:
            return first, second
        return first.float().mul_(self.scales[0]), second.float().mul_(self.scales[1])

    def write(self, rows: slice, first: Tensor, second: Tensor) -> None:
        """Store rows that were read and changed, which may be overwritten on the way."""
        if self.next_scales is None:
            return
        take_rows(self.first, rows).copy_(first.div_(self.next_scales[0]))
        take_rows(self.second, rows).copy_(second.div_(self.next_scales[1]).clamp_(min=SMALLEST))

    def finish(self) -> None:
        """All rows are written."""
        if self.scales is not None and self.next_scales is not None:
            self.scales.copy_(self.next_scales)


def scales_for(tops: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The scales (2,) of moments with these largest magnitudes."""
    return {name: LEAST_SCALE + top / LARGEST for name, top in tops.items()}


def take_rows(tensor: Tensor, rows: slice) -> Tensor:
    """A view of some rows; all of a tensor that has none."""
    return tensor[rows] if tensor.ndim else tensor
