"""What a fit of logistic regression is worth, by the plain formula: nothing here is shared with the solver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ostension.train.logistic import LogisticFit


def certificate(
    fit: LogisticFit,
    features: Tensor,
    labels: Tensor,
    *,
    loss: Literal["softmax", "sigmoid"] = "softmax",
    offset: Tensor | None = None,
    prior: Tensor | None = None,
    sample_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """J (S,) and its gradient's norm (S,) at each strength, anew in float64 from the data as given.

    It shares no code with the solver: the plain formula, torch's own derivative, all samples at once.
    """
    features = features.double()
    shares = torch.ones(len(features)).double() if sample_weights is None else sample_weights.double()
    total = shares.sum()
    mean = (shares[:, None] * features).sum(0) / total
    spread = ((shares[:, None] * (features - mean).square()).sum() / total).sqrt()
    spread = torch.where(spread > 0, spread, 1.0)
    objectives, norms = [], []
    for index, strength in enumerate(fit.strengths):
        weight, bias = (value[index].double().requires_grad_() for value in (fit.weight, fit.bias))
        # The bias for centred features, by which the stop rule is stated.
        logits = (features - mean) @ weight.T + (bias + (mean @ weight.T).detach())
        pull = weight if prior is None else weight - prior.double()
        if offset is not None:
            logits = logits + offset.double()
        if loss == "softmax":
            losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        else:
            used = bias.detach().isfinite()
            losses = torch.nn.functional.binary_cross_entropy_with_logits(
                logits[:, used], labels[:, used].double(), reduction="none"
            ).sum(1)
        value = (shares * losses).sum() / total + pull.square().sum() / (2 * strength * total)
        by_weight, by_bias = torch.autograd.grad(value, (weight, bias))
        objectives.append(value.detach())
        norms.append(torch.sqrt((by_weight / spread).square().sum() + by_bias.square().sum()))
    return torch.stack(objectives), torch.stack(norms)
