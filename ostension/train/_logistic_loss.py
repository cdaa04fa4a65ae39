"""The two losses of a linear classifier: softmax over classes, and one sigmoid a class; each with what a solver needs.

Letters: n samples of a chunk, C classes.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ostension.train._logistic_rows import LOG_FLOOR


class Loss(Protocol):
    """A loss that is a sum over samples of a convex function of their logits.

    Attributes:
        bound: no second derivative by the logits is larger, in any direction (Boehning 1992).
    """

    bound: float

    def residual(self, logits: Tensor, part: slice, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of the samples `part`, its derivative by their logits (n, C), and the size of the numbers whose differences
        the loss is, by which its rounding is known; both sums 0-d in float64. `logits` is used up.
        """

    def class_curvature(self, logits: Tensor, part: slice, weights: Tensor | None) -> Tensor:
        """The sum over samples of the loss's second derivative by the logits (C, C); `logits` is used up."""


class SoftmaxLoss:
    """logsumexp(l) - l_y."""

    bound = 0.5

    def __init__(self, labels: Tensor):
        self.labels = labels

    def residual(self, logits: Tensor, part: slice, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        own = self.labels[part, None]
        logs = torch.log_softmax(logits, dim=1)
        losses = -logs.gather(1, own).squeeze(1).double()
        size = logits.gather(1, own).abs().sum(dtype=torch.float64) + losses.sum()
        residual = logs.clamp_(min=LOG_FLOOR).exp_()
        # p_y - 1 as minus the sum of the others: p_y itself is rounded at 1, they are not, and the sum is zero as it must be.
        residual.scatter_(1, own, 0.0)
        residual.scatter_(1, own, -residual.sum(1, keepdim=True))
        if weights is None:
            return losses.sum(), residual, size
        return (losses * weights[part]).sum(), residual.mul_(weights[part, None].to(residual.dtype)), size

    def class_curvature(self, logits: Tensor, part: slice, weights: Tensor | None) -> Tensor:
        shares = torch.softmax(logits.sub_(logits.amax(1, keepdim=True)).clamp_(min=LOG_FLOOR), dim=1)
        weighted = shares if weights is None else shares * weights[part, None].to(shares.dtype)
        return torch.diag(weighted.sum(0)) - weighted.T @ shares


class SigmoidLoss:
    """The sum over classes of log(1 + exp(l)) - t l, with targets t of 0 and 1: a classifier of its own for each class."""

    bound = 0.25

    def __init__(self, targets: Tensor):
        self.targets = targets

    def residual(self, logits: Tensor, part: slice, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        # With the sign s = 1 - 2 t the loss is log(1 + exp(s l)) and its derivative s / (1 + exp(-s l)): no differences.
        signs = 1 - 2 * self.targets[part].to(logits.dtype)
        signed = logits.mul_(signs)
        losses = torch.nn.functional.softplus(signed).sum(1, dtype=torch.float64)
        size = losses.sum()
        residual = signed.clamp_(min=LOG_FLOOR).sigmoid_().mul_(signs)
        if weights is None:
            return losses.sum(), residual, size
        return (losses * weights[part]).sum(), residual.mul_(weights[part, None].to(residual.dtype)), size

    def class_curvature(self, logits: Tensor, part: slice, weights: Tensor | None) -> Tensor:
        shares = logits.clamp_(min=LOG_FLOOR).sigmoid_()
        curvature = shares * (1 - shares)
        return torch.diag((curvature if weights is None else curvature * weights[part, None].to(shares.dtype)).sum(0))
