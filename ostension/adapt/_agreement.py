"""How far the views of a picture agree, and steps that make them agree more: what is tuned on at test time, without labels.

    H_i = entropy of softmax(s f_i T');   S = the k views with the lowest H;   L = entropy of 1/k sum_{i in S} softmax(s f_i T')

Many pictures share the way. T, the classes' rows at V_0, is the same for all; per picture only dL/dT differs, so a block of
pictures needs one graph and one batched product with its Jacobian. AdamW's first step from nothing is
V_0 (1 - lr wd) - lr g / (|g| + eps), so no optimiser is needed.

Letters: B pictures, V views, k of them, C classes, E embedding, N contexts, W width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ostension.adapt._fit import frozen
from ostension.shapes import Float

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # AdamW's usual ones


def confident(
    views: Float[Tensor, "B V E"], rows: Float[Tensor, "*_B C E"], scale: Tensor, share: float
) -> Float[Tensor, "B k E"]:
    """The share of views (k = int(share V), 1 at least) with the lowest entropies, the first of equal ones."""
    logs, count = (scale * views @ rows.mT).log_softmax(-1), max(1, int(share * views.shape[1]))
    entropies = -(logs.exp() * logs).sum(-1)
    best = entropies.sort(dim=1, stable=True).indices[:, :count]
    return views.gather(1, best[..., None].expand(-1, -1, views.shape[2]))


def entropy(chosen: Float[Tensor, "B k E"], rows: Float[Tensor, "*_B C E"], scale: Tensor) -> Float[Tensor, " B"]:
    """L of each picture, from the logarithm of the mean prediction."""
    logs = (scale * chosen @ rows.mT).log_softmax(-1)
    mean = logs.logsumexp(1) - math.log(chosen.shape[1])
    return -(mean.exp() * mean).sum(-1)


def gradients_through(
    rows: Float[Tensor, "C E"], contexts: Float[Tensor, "N W"], chosen: Float[Tensor, "B k E"], scale: Tensor
) -> Float[Tensor, "B N W"]:
    """dL/dV of each picture, where rows T(V) are the same for all: one graph, one batched product with its Jacobian."""
    own = rows.detach().expand(len(chosen), *rows.shape).clone().requires_grad_()
    (pulls,) = torch.autograd.grad(entropy(chosen, own, scale).sum(), own)
    return torch.autograd.grad(rows, contexts, pulls, is_grads_batched=True)[0]


class AdamW:
    """AdamW of one tensor, from nothing: m and v are those of the steps so far, so the first goes by signs."""

    def __init__(self, lr: float, weight_decay: float):
        self.lr, self.weight_decay, self.steps = lr, weight_decay, 0
        self.first: Tensor | float = 0.0
        self.second: Tensor | float = 0.0

    def step(self, value: Tensor, gradient: Tensor) -> Tensor:
        """The tensor after one more step."""
        self.steps += 1
        self.first = BETA1 * self.first + (1 - BETA1) * gradient
        self.second = BETA2 * self.second + (1 - BETA2) * gradient * gradient
        mean = self.first / (1 - BETA1**self.steps)
        spread = (self.second / (1 - BETA2**self.steps)) ** 0.5
        return value * (1 - self.lr * self.weight_decay) - self.lr * mean / (spread + EPS)


def plain_tuned(addition: Any, views: Float[Tensor, "V E"]) -> Float[Tensor, "N W"]:
    """One picture's contexts by the plain loop, with an optimiser: the reference of what goes faster."""
    config, scale = addition.config, addition.scale()
    with frozen(addition.model), torch.enable_grad():
        context = addition.first(views[None])[0].clone().requires_grad_()
        optimizer = torch.optim.AdamW([context], lr=config.lr, weight_decay=config.weight_decay, eps=EPS)
        rows = addition.prompts.encode(context.detach())
        (chosen,) = confident(views[None], rows, scale, config.keep)
        for _ in range(config.steps):
            probabilities = (scale * chosen @ addition.prompts.encode(context).T).softmax(-1).mean(0)
            loss = -(probabilities * probabilities.log()).sum()
            (context.grad,) = torch.autograd.grad(loss, context)
            optimizer.step()
        return context.detach()
