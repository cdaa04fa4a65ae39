"""Attacks on classifiers of pictures: PGD, CW's margin, and APGD with two losses, within a largest change of every pixel.

Pixels lie in 0..1 and changes in +-epsilon; both always hold. Gradients are taken with respect to the change alone, so nothing
of an attack can reach a model's weights or their gradients.

Source: Madry et al. 2018 (PGD), Carlini and Wagner 2017 (the margin), Croce and Hein 2020, arXiv:2003.01690 (APGD and the loss
DLR of AutoAttack); sizes of TeCoA, arXiv:2212.07016.
Letters: B batch, C classes, S pixels a side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ostension.config import require
from ostension.shapes import Float, Int

Logits = Callable[[Tensor], Tensor]  # pixels (B, 3, S, S) in 0..1 -> logits (B, C)
LossName = Literal["ce", "margin", "dlr"]
MOMENTUM, FEWEST = 0.75, 0.06  # APGD's momentum, and the shortest interval between two looks at the step as a share of the run
PROGRESS = 0.75  # share of steps that must have helped, else the step is halved


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """What an attack may do.

    Attributes:
        epsilon: largest change of a pixel, in 0..1.
        step: change in one step.
        steps: how many.
    """

    epsilon: float = 1 / 255
    step: float = 1 / 255
    steps: int = 2

    def __post_init__(self):
        require(0 <= self.epsilon <= 1, "attack.epsilon", self.epsilon, "0 to 1")
        require(self.step >= 0, "attack.step", self.step, "0 or more")
        require(self.steps >= 0, "attack.steps", self.steps, "0 or more")


def cross_entropy(logits: Float[Tensor, "B C"], targets: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """-log p of the right class."""
    return F.cross_entropy(logits, targets, reduction="none")


def margin(logits: Float[Tensor, "B C"], targets: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """The best wrong logit minus the right one (CW); above 0 the picture is misread."""
    own = logits.gather(1, targets[:, None])[:, 0]
    return logits.scatter(1, targets[:, None], -torch.inf).amax(1) - own


def dlr(logits: Float[Tensor, "B C"], targets: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """The margin over the distance from the largest to the third largest logit, which no scale of logits changes.

    With two classes there is no third, and the distance is to the second.
    """
    ordered = logits.sort(dim=1, descending=True).values
    return margin(logits, targets) / (ordered[:, 0] - ordered[:, min(2, logits.shape[1] - 1)] + 1e-12)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"ce": cross_entropy, "margin": margin, "dlr": dlr}


def pgd(
    logits: Logits,
    pixels: Float[Tensor, "B 3 S S"],
    targets: Int[Tensor, " B"],
    budget: Budget,
    *,
    generator: torch.Generator | None,
    loss: LossName = "ce",
) -> Float[Tensor, "B 3 S S"]:
    """Changed pixels after projected gradient steps from a random start (from none without a generator)."""
    change = torch.zeros_like(pixels)
    if generator is not None and budget.epsilon > 0:
        draw = torch.rand(pixels.shape, generator=generator, device=generator.device).to(pixels)
        change = _inside(pixels, (2 * draw - 1) * budget.epsilon, budget.epsilon)
    for _ in range(budget.steps):
        gradient, _ = _gradient(logits, pixels, change, targets, loss)
        change = _inside(pixels, change + budget.step * gradient.sign(), budget.epsilon)
    return pixels + change


def apgd(
    logits: Logits,
    pixels: Float[Tensor, "B 3 S S"],
    targets: Int[Tensor, " B"],
    budget: Budget,
    *,
    generator: torch.Generator | None,
    loss: LossName = "ce",
) -> Float[Tensor, "B 3 S S"]:
    """Changed pixels of the highest loss that APGD meets: momentum, and a step that halves where it no longer helps.

    `budget.step` is not looked at: the first step is two epsilon.
    """
    if budget.steps == 0 or budget.epsilon == 0:
        return pixels
    change = pgd(logits, pixels, targets, dataclasses.replace(budget, steps=0), generator=generator) - pixels
    step = torch.full((len(pixels), 1, 1, 1), 2 * budget.epsilon, dtype=pixels.dtype, device=pixels.device)
    gradient, value = _gradient(logits, pixels, change, targets, loss)
    best, best_value, best_gradient = change.clone(), value.clone(), gradient.clone()
    before, rises = change.clone(), torch.zeros_like(value)
    last_step, last_best = step.clone(), best_value.clone()
    looks = _looks(budget.steps)
    for index in range(budget.steps):
        straight = _inside(pixels, change + step * gradient.sign(), budget.epsilon)
        if index:
            straight = _inside(
                pixels, change + MOMENTUM * (straight - change) + (1 - MOMENTUM) * (change - before), budget.epsilon
            )
        before, change = change, straight
        gradient, now = _gradient(logits, pixels, change, targets, loss)
        rises += now > value
        value = now
        better = now > best_value
        best[better], best_value[better], best_gradient[better] = change[better], now[better], gradient[better]
        if index + 1 in looks:
            span = looks[index + 1]
            stuck = (step == last_step)[:, 0, 0, 0] & (last_best >= best_value)
            halve = (rises < PROGRESS * span) | stuck
            last_step, last_best = step.clone(), best_value.clone()
            step[halve] /= 2
            change[halve], gradient[halve], value[halve] = best[halve], best_gradient[halve], best_value[halve]
            before[halve] = best[halve]
            rises.zero_()
    return pixels + best


def _gradient(
    logits: Logits, pixels: Tensor, change: Tensor, targets: Tensor, loss: LossName
) -> tuple[Tensor, Float[Tensor, " B"]]:
    """The gradient of the loss with respect to the change, and the loss."""
    with torch.enable_grad():
        moving = change.detach().requires_grad_()
        values = LOSSES[loss](logits(pixels + moving), targets)
        (gradient,) = torch.autograd.grad(values.sum(), moving)
    return gradient, values.detach()


def _inside(pixels: Tensor, change: Tensor, epsilon: float) -> Tensor:
    """The change within +-epsilon and the changed pixels within 0..1."""
    return (pixels + change.clamp(-epsilon, epsilon)).clamp(0, 1) - pixels


def _looks(steps: int) -> dict[int, int]:
    """After which steps APGD looks at its step size, with the steps since the look before."""
    found, share, last = {}, 0.22, 0.0
    at = share
    while at <= 1:
        end = int(-(-at * steps // 1))
        if end > int(-(-last * steps // 1)):
            found[end] = end - int(-(-last * steps // 1))
        share = max(share - 0.03, FEWEST)
        last, at = at, at + share
    return found
