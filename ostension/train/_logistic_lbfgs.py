"""L-BFGS for a data term plus lambda/2 ||V||^2, with a preconditioner, and with pairs that outlive a change of lambda.

A pair (s, y) holds a step and the change of the *data term's* gradient over it. The penalty's share of y is lambda s, which is
exact and known for every lambda: so what was learnt at one strength serves the next.

The preconditioner takes the data term's curvature for A (x) B: variances along the principal axes times the mean curvature
of the loss by the logits. With B's eigenvectors Q, both are diagonal: a_i b_j + lambda.

A point is (R + 1, C): R rows of weights and one of biases, which carry no penalty.
Source: Nocedal and Wright, algorithm 7.4 (two loops); the product form of the curvature as in Boehning (1992), whose bound
has B = 1/C for all classes, refined by what the current probabilities say.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from ostension.train._logistic_rows import HISTORY

LEAST_SHARE = 1e-3  # curvatures of the classes' directions below this share of the largest are raised to it
LEAST_CURVATURE = 1e-12  # of a pair, relative; below it y is rounding


class Preconditioner:
    """An approximate inverse of the curvature, for any penalty.

    Args:
        variances: (R,) along the principal axes.
        classes: (C, C) mean second derivative of the loss by the logits.
    """

    def __init__(self, variances: Tensor, classes: Tensor):
        curvature, self.mixing = torch.linalg.eigh(classes.double())
        largest = float(curvature[-1]) if len(curvature) else 0.0  # every class may be constant
        curvature = curvature.clamp(min=LEAST_SHARE * largest if largest > 0 else 1.0)
        self.variances, self.curvature = variances.double()[:, None], curvature
        self.mixing = self.mixing.to(variances.dtype)

    def __call__(self, gradient: Tensor, penalty: float, scale: float = 1.0) -> Tensor:
        """The inverse curvature times `gradient` (R + 1, C), with the data term's curvature multiplied by `scale`."""
        turned = gradient @ self.mixing
        turned[:-1] /= (scale * self.variances * self.curvature + penalty).to(turned.dtype)
        turned[-1] /= (scale * self.curvature).to(turned.dtype)
        return turned @ self.mixing.T


class Memory:
    """The last steps and changes of the data term's gradient."""

    def __init__(self):
        self.pairs: deque[_Pair] = deque(maxlen=HISTORY)

    def add(self, step: Tensor, turn: Tensor) -> None:
        """Remember a pair, if it shows positive curvature."""
        pair = _Pair(step.reshape(-1), turn.reshape(-1), step.shape[1])
        if pair.data_curvature > LEAST_CURVATURE * _dot(pair.step, pair.step):
            self.pairs.append(pair)

    def direction(self, gradient: Tensor, penalty: float, inverse: Preconditioner) -> Tensor:
        """Minus the estimated inverse curvature times `gradient` (R + 1, C)."""
        result = gradient.reshape(-1).clone()
        weights = result[: -gradient.shape[1]]  # a view
        applied = []
        for pair in reversed(self.pairs):
            curvature = pair.data_curvature + penalty * pair.square
            factor = _dot(pair.step, result) / curvature
            result.sub_(pair.turn, alpha=factor)
            weights.sub_(pair.weights, alpha=factor * penalty)
            applied.append((factor, curvature))
        scale = 1.0
        if self.pairs:  # the newest pair says how far the data term's curvature is from what the preconditioner takes it for
            newest = self.pairs[-1]
            turn = newest.turn.view_as(gradient)
            scale = _dot(newest.turn, inverse(turn, penalty).reshape(-1)) / newest.data_curvature
        result = inverse(result.view_as(gradient), penalty, scale).reshape(-1)
        weights = result[: -gradient.shape[1]]
        for pair, (factor, curvature) in zip(self.pairs, reversed(applied), strict=True):
            other = (_dot(pair.turn, result) + penalty * _dot(pair.weights, weights)) / curvature
            result.add_(pair.step, alpha=factor - other)
        return result.neg_().view_as(gradient)


class _Pair:
    """A step and the change of the data term's gradient over it, flat, with the products that every direction needs."""

    def __init__(self, step: Tensor, turn: Tensor, num_classes: int):
        self.step, self.turn = step, turn
        self.weights = step[:-num_classes]  # without the biases
        self.data_curvature, self.square = _dot(step, turn), _dot(self.weights, self.weights)


def _dot(left: Tensor, right: Tensor) -> float:
    return float(torch.dot(left, right))
