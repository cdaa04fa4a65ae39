"""Logistic regression on features: every strength in one call, by preconditioned L-BFGS along the path, certified.

For features x (N,D), labels y and a strength c it minimises scikit-learn's objective, divided by c N:

    J(W, b) = 1/N sum_i loss(W x_i + b + o_i, y_i) + 1/(2 c N) ||W - P||^2

with scikit-learn's `C` as strength. The loss is that of a softmax, or of one sigmoid a class. The bias carries no penalty. The
offset o (N,C), fixed logits, and the prior P (C,D), weights that the penalty pulls towards, are zero unless given; sample
weights take the place of 1/N. What makes it fast, none of which moves the optimum:

- The features are centred and turned into their principal axes (`_logistic_rows`), where the curvature is nearly diagonal, and
  L-BFGS starts from that (`_logistic_lbfgs`): tens of steps instead of hundreds.
- Strengths are solved from the strongest penalty to the weakest, each from the straight line (in log c) through the two before
  it, with the curvature that was learnt on the way: two to four passes a strength on a fine grid.

A class without a sample has its optimum at a bias of minus infinity, and that is what it gets: it is never predicted.

**The stop rule**: the Euclidean norm of J's gradient, with the features centred and divided by the root of their mean squared
distance from the mean. So stated it does not depend on where the features lie or on their unit. `certificate` computes it
anew, in float64 and from the features as given.

Letters: N samples, D features, R principal axes, C classes, S strengths.
Source: objective as in scikit-learn's `LogisticRegression`; docs/decisions/solver.md has what was measured.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ostension.errors import DataError
from ostension.train._logistic_certificate import certificate
from ostension.train._logistic_lbfgs import Memory, Preconditioner
from ostension.train._logistic_loss import Loss, SigmoidLoss, SoftmaxLoss
from ostension.train._logistic_rows import RESIDENT_BYTES, MemoryPlan, Rows, as_tensor, plan_memory
from ostension.train.denormals import flushed_denormals

__all__ = ["LogisticFit", "LogisticPath", "MemoryPlan", "certificate", "fit_logistic", "plan_memory"]

LossName = Literal["softmax", "sigmoid"]
TOLERANCE = 1e-5
MAX_ITERATIONS = 1000  # of one strength
ARMIJO = 1e-4
MAX_TRIALS = 25  # of a step's length
GROWTH = 4.0
LEAST_CUT, MOST_CUT = 0.05, 0.6  # what is left of a step that was too long
STEEP = 0.9  # of the slope at the start: Wolfe's condition, and Hager and Zhang's where J is level
# Steps without a smaller gradient or a smaller objective after which the arithmetic has given what it has.
STALLED = 20
# The preconditioner is made anew after a decade of strengths, and where one of them takes so many steps: the curvature at its
# start was then not that along its way.
REFRESH = math.log(10) * 0.999
RENEWED = 15


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogisticFit:
    """The optimum for each strength.

    Attributes:
        strengths: (S,) as given.
        weight: (S, C, D) in the coordinates of the given features.
        bias: (S, C); for a softmax of mean zero over the classes that occur (a common shift changes nothing).
        objective: (S,) J at the optimum.
        gradient_norm: (S,) of J, on the scale of the stop rule.
        iterations: (S,) steps taken.
        converged: (S,) whether `gradient_norm` came under the tolerance.
    """

    strengths: tuple[float, ...]
    weight: Tensor
    bias: Tensor
    objective: Tensor
    gradient_norm: Tensor
    iterations: Tensor
    converged: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """The logits (S, N, C) of `features` (N, D), without any offset."""
        return torch.stack([self.logits_of(index, features) for index in range(len(self.strengths))])

    def logits_of(self, index: int, features: Tensor) -> Tensor:
        """The logits (N, C) at the strength of that position, without any offset."""
        return features.to(self.weight.dtype) @ self.weight[index].T + self.bias[index]


@dataclasses.dataclass(frozen=True)
class Solution:
    """One strength's optimum in principal axes, with the value and gradient of J there."""

    point: Tensor
    data_loss: float
    objective: float
    gradient_norm: float
    iterations: int


def fit_logistic(
    features: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    num_classes: int,
    strengths: Sequence[float],
    *,
    loss: LossName = "softmax",
    offset: Tensor | None = None,
    prior: Tensor | None = None,
    sample_weights: Tensor | None = None,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
    resident_bytes: int = RESIDENT_BYTES,
) -> LogisticFit:
    """Fit one classifier for each of `strengths` (scikit-learn's `C`, inverse of the penalty).

    Args:
        features: (N, D) in float64 or a shorter float; may be memory-mapped. float64 is computed in float64, all else in
            float32, on the processor.
        labels: (N,) integers 0..C-1, or (N, C) zeros and ones for the sigmoid loss.
        offset: (N, C) fixed logits, added to the classifier's.
        prior: (C, D) weights that the penalty pulls towards.
        sample_weights: (N,) not negative; a weight of two is the sample twice.
        tolerance: of the stop rule above.
        resident_bytes: features larger than this (as float32) are read chunk by chunk in every pass; `plan_memory` says
            what a fit holds.

    Raises:
        DataError: for shapes or labels out of range, values that are not finite, or a strength not above 0.
    """
    path = LogisticPath(
        features, labels, num_classes, loss=loss, offset=offset, prior=prior, sample_weights=sample_weights,
        tolerance=tolerance, max_iterations=max_iterations, resident_bytes=resident_bytes,
    )  # fmt: skip
    return path.fit(strengths)


class LogisticPath:
    """The regularisation path of one problem, solved where it is asked for; what is known warms up what comes.

    Arguments as for `fit_logistic`.

    Attributes:
        passes: passes over the samples so far.
    """

    def __init__(
        self,
        features: Tensor | np.ndarray,
        labels: Tensor | np.ndarray,
        num_classes: int,
        *,
        loss: LossName = "softmax",
        offset: Tensor | None = None,
        prior: Tensor | None = None,
        sample_weights: Tensor | None = None,
        tolerance: float = TOLERANCE,
        max_iterations: int = MAX_ITERATIONS,
        resident_bytes: int = RESIDENT_BYTES,
    ):
        labels = as_tensor(labels)
        offset, prior, sample_weights = (
            None if value is None else value.cpu() for value in (offset, prior, sample_weights)
        )  # fmt: skip
        _check(features, labels, num_classes, loss, offset, prior, sample_weights)
        self.tolerance, self.max_iterations = tolerance, max_iterations
        self.num_classes, self.passes = num_classes, 0
        self.total = len(features) if sample_weights is None else float(sample_weights.double().sum())
        scaled = None if sample_weights is None else sample_weights.double() * (len(features) / self.total)
        self.bias_of_constant, self.fitted = _constant_classes(labels, num_classes, loss, scaled)
        self.loss: Loss
        if loss == "softmax":
            position = torch.zeros(num_classes, dtype=torch.int64)
            position[self.fitted] = torch.arange(len(self.fitted))
            self.loss = SoftmaxLoss(position[labels])
        else:
            self.loss = SigmoidLoss(labels[:, self.fitted])
        self.softmax = loss == "softmax"
        self.rows = Rows(features, scaled, len(self.fitted), resident_bytes)
        self.offset = None if offset is None else offset[:, self.fitted].to(self.rows.dtype)
        self.prior = None if prior is None else prior.double()
        self.fixed = self._fixed()
        self.solved: dict[float, Solution] = {}
        self.memory = Memory()
        self.inverse: Preconditioner | None = None
        self.inverse_at = math.inf
        self.rounding = 0.0  # of J at the last point
        self.bounded = False

    def fit(self, strengths: Sequence[float]) -> LogisticFit:
        """The optima for these strengths, solved from the strongest penalty to the weakest."""
        _check_strengths(strengths)
        with flushed_denormals():
            for strength in sorted(strengths):
                self.solve(strength)
            found = [self.solved[strength] for strength in strengths]
            weight, bias = zip(*(self._to_original(one.point) for one in found), strict=True)
        norm = torch.tensor([one.gradient_norm for one in found], dtype=torch.float64)
        return LogisticFit(
            strengths=tuple(strengths), weight=torch.stack(weight), bias=torch.stack(bias),
            objective=torch.tensor([one.objective for one in found], dtype=torch.float64), gradient_norm=norm,
            iterations=torch.tensor([one.iterations for one in found]), converged=norm <= self.tolerance,
        )  # fmt: skip

    def solve(self, strength: float) -> Solution:
        """The optimum at one strength; solved once."""
        if strength not in self.solved:
            self.solved[strength] = self._minimise(self._penalty(strength), *self._start(strength))
        return self.solved[strength]

    def _minimise(self, penalty: float, point: Tensor, loss: float, slope: Tensor) -> Solution:
        """L-BFGS from a point whose data term and its gradient are known."""
        assert self.inverse is not None
        objective, gradient = _with_penalty(point, loss, slope, penalty)
        norm = self._norm(gradient)
        best, stalled, iterations = (norm, objective), 0, 0
        while norm > self.tolerance and iterations < self.max_iterations and stalled < STALLED:
            found = self._step(point, objective, gradient, penalty)
            if found is None:
                if self.bounded and not self.memory.pairs:
                    break  # the floor of the arithmetic: against the bound every step goes down
                self._bound()
                continue
            moved, loss, turned = found
            self.memory.add(moved - point, turned - slope)
            point, slope = moved, turned
            objective, gradient = _with_penalty(point, loss, slope, penalty)
            norm = self._norm(gradient)
            iterations += 1
            if iterations % RENEWED == 0:
                self._refresh(point)
            better = norm < best[0] or objective < best[1] - self.rounding
            best, stalled = (min(norm, best[0]), min(objective, best[1])), 0 if better else stalled + 1
        return Solution(point, loss, objective, norm, iterations)

    def _step(self, point: Tensor, objective: float, gradient: Tensor, penalty: float) -> tuple[Tensor, float, Tensor] | None:
        """Search along L-BFGS's direction: the new point, its data term and gradient; None if none will do."""
        assert self.inverse is not None
        direction = self.memory.direction(gradient, penalty, self.inverse)
        slope = _product(direction, gradient)
        step, shortest, longest = 1.0, 0.0, math.inf
        kept: tuple[Tensor, float, Tensor] | None = None
        for _ in range(MAX_TRIALS):
            trial = point + step * direction
            loss, turned = self._evaluate(trial)
            value, there = _with_penalty(trial, loss, turned, penalty)
            steepness = _product(direction, there)
            # Where J falls by less than its rounding, the slope says what J cannot: it must not have grown on the way.
            flat = value <= objective + self.rounding and steepness <= -STEEP * slope
            if value <= objective + ARMIJO * step * slope or flat:
                kept = trial, loss, turned
                if steepness >= STEEP * slope:
                    break
                shortest = step  # nearly as steep as at the start: it is worth going on
                step = GROWTH * step if longest == math.inf else (step + longest) / 2
            elif shortest > 0:
                longest, step = step, (shortest + step) / 2
            else:
                # J is convex: the zero of the slope lies near where a straight line between both slopes has it.
                longest = step
                step *= min(max(slope / (slope - steepness), LEAST_CUT), MOST_CUT) if steepness > slope else MOST_CUT
        return kept

    def _start(self, strength: float) -> tuple[Tensor, float, Tensor]:
        """A first point for a strength with its data term and gradient: on the line through two neighbours in log strength,
        or the nearest one where that is lower.
        """
        penalty, place = self._penalty(strength), math.log(strength)
        near = sorted(self.solved, key=lambda other: abs(math.log(other) - place))
        if not near:
            point = torch.zeros(len(self.rows.eigenvalues) + 1, len(self.fitted), dtype=self.rows.dtype)
        elif len(near) == 1:
            point = self.solved[near[0]].point
        else:
            one, other = self.solved[near[0]].point, self.solved[near[1]].point
            share = (place - math.log(near[0])) / (math.log(near[1]) - math.log(near[0]))
            point = torch.lerp(one, other, share)
        loss, slope = self._evaluate(point)
        if len(near) > 1:
            nearest = self.solved[near[0]]
            if loss + 0.5 * penalty * _square(point) > nearest.data_loss + 0.5 * penalty * _square(nearest.point):
                point = nearest.point
                loss, slope = self._evaluate(point)
        if abs(place - self.inverse_at) >= REFRESH:
            self._refresh(point)
            self.inverse_at = place
        return point, loss, slope

    def _evaluate(self, point: Tensor) -> tuple[float, Tensor]:
        """The data term and its gradient (R + 1, C)."""
        weight = self.rows.into_chunks(point[:-1])
        gradient = weight.new_zeros(weight.shape[::-1])
        bias_gradient = point.new_zeros(point.shape[1])
        total, size = torch.zeros(2, dtype=torch.float64)
        for part, logits, inputs in self._logits(weight, point[-1]):
            loss, residual, part_size = self.loss.residual(logits, part, self.rows.weights)
            total += loss
            size += part_size
            gradient.addmm_(residual.T, inputs)
            bias_gradient += residual.sum(0)
        self.passes += 1
        self.rounding = 8 * torch.finfo(self.rows.dtype).eps * float(size) / self.rows.count
        gradient = torch.cat([self.rows.out_of_chunks(gradient.T), bias_gradient[None]])
        return float(total) / self.rows.count, gradient.div_(self.rows.count)

    def _refresh(self, point: Tensor) -> None:
        """The preconditioner from the probabilities at `point`."""
        curvature = torch.zeros(point.shape[1], point.shape[1], dtype=point.dtype)
        for part, logits, _ in self._logits(self.rows.into_chunks(point[:-1]), point[-1]):
            curvature += self.loss.class_curvature(logits, part, self.rows.weights)
        self.passes += 1
        self.inverse = Preconditioner(self.rows.eigenvalues.to(point.dtype), curvature / self.rows.count)
        self.bounded = False

    def _bound(self) -> None:
        """Forget what was learnt and go by an upper bound of the curvature, under which a whole step goes down.

        Where the probabilities are nearly 0 and 1 and wrong, the curvature there says nothing of that along the way.
        """
        count = len(self.fitted)
        self.inverse = Preconditioner(self.rows.eigenvalues.to(self.rows.dtype), torch.eye(count) * self.loss.bound)
        self.memory.pairs.clear()
        self.bounded = True

    def _logits(self, weight: Tensor, bias: Tensor):
        """Positions, logits and features, chunk by chunk."""
        if self.fixed is not None:
            weight, bias = weight + self.fixed[0], bias + self.fixed[1]
        for part, inputs in self.rows.chunks():
            logits = torch.addmm(bias, inputs, weight)
            yield part, logits if self.offset is None else logits.add_(self.offset[part]), inputs

    def _fixed(self) -> tuple[Tensor, Tensor] | None:
        """What the prior adds to the weights, as the chunks take them, and to the bias."""
        if self.prior is None:
            return None
        prior = self.prior[self.fitted].T  # (D, C)
        weight = self.rows.axes.T @ prior if self.rows.plan.resident else prior
        return (weight * self.rows.spread).to(self.rows.dtype), (self.rows.mean @ prior).to(self.rows.dtype)

    def _penalty(self, strength: float) -> float:
        """lambda beside features that are divided by their spread."""
        return 1 / (strength * self.total * self.rows.spread**2)

    def _norm(self, gradient: Tensor) -> float:
        return float(gradient.double().norm())

    def _to_original(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (C, D) and biases (C,) for the given features."""
        scaled = point.double()
        weight = torch.zeros(self.num_classes, len(self.rows.mean), dtype=torch.float64) if self.prior is None else self.prior
        bias = self.bias_of_constant.clone()
        own = self.rows.axes @ scaled[:-1] / self.rows.spread  # (D, C)
        shift = scaled[-1] - self.rows.mean @ own
        weight = weight.index_add(0, self.fitted, own.T)
        bias[self.fitted] = shift - shift.mean() if self.softmax else shift
        return weight.to(point.dtype), bias.to(point.dtype)


def _with_penalty(point: Tensor, loss: float, slope: Tensor, penalty: float) -> tuple[float, Tensor]:
    """J and its gradient from those of the data term."""
    gradient = slope.clone()
    gradient[:-1].add_(point[:-1], alpha=penalty)
    return loss + 0.5 * penalty * _square(point), gradient


def _product(left: Tensor, right: Tensor) -> float:
    """The inner product, summed in float64."""
    return float((left * right).sum(dtype=torch.float64))


def _square(point: Tensor) -> float:
    """The squared norm of the weights' rows."""
    return float(point[:-1].double().square().sum())


def _constant_classes(labels: Tensor, num_classes: int, loss: LossName, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Biases (C,) of classes whose optimum lies at infinity, else zero; and the classes that are left to fit."""
    count = torch.ones(len(labels), dtype=torch.float64) if weights is None else weights
    if loss == "softmax":
        positive = torch.zeros(num_classes, dtype=torch.float64).index_add_(0, labels, count)
        negative = torch.ones(num_classes)
    else:
        positive, negative = count @ labels.double(), count @ (1 - labels.double())
    bias = torch.zeros(num_classes, dtype=torch.float64)
    bias[negative == 0], bias[positive == 0] = math.inf, -math.inf
    return bias, (bias == 0).nonzero().squeeze(1)


def _check_strengths(strengths: Sequence[float]) -> None:
    if not strengths or not all(math.isfinite(one) and one > 0 for one in strengths):
        raise DataError(f"strengths are {list(strengths)}", expected="one or more numbers above 0")


def _check(
    features: Tensor | np.ndarray,
    labels: Tensor,
    num_classes: int,
    loss: LossName,
    offset: Tensor | None,
    prior: Tensor | None,
    weights: Tensor | None,
) -> None:
    wanted = (len(features),) if loss == "softmax" else (len(features), num_classes)
    if features.ndim != 2 or tuple(labels.shape) != wanted or not len(features):
        shapes = f"features {tuple(features.shape)} and labels {tuple(labels.shape)}"
        expected = "(N,)" if loss == "softmax" else f"(N, {num_classes})"
        raise DataError(shapes, expected=f"(N, D) and {expected}, N above 0")
    if loss == "softmax" and (labels.min() < 0 or labels.max() >= num_classes):
        raise DataError(f"labels lie in {int(labels.min())}..{int(labels.max())}", expected=f"0..{num_classes - 1}")
    if loss == "sigmoid" and not bool(((labels == 0) | (labels == 1)).all()):
        raise DataError("a label is neither 0 nor 1", expected="zeros and ones")
    for name, value, shape in (
        ("the offset", offset, (len(features), num_classes)), ("the prior", prior, (num_classes, features.shape[1])),
        ("the sample weights", weights, (len(features),)),
    ):  # fmt: skip
        if value is None:
            continue
        if tuple(value.shape) != shape:
            raise DataError(f"{name} has shape {tuple(value.shape)}", expected=str(shape))
        if not value.isfinite().all():
            raise DataError(f"{name} is not finite", expected="finite numbers")
    if weights is not None and (weights.min() < 0 or weights.sum() <= 0):
        raise DataError("the sample weights are negative, or all zero", expected="weights from 0, of sum above 0")
    for start in range(0, len(features), 65536):
        if not as_tensor(features[start : start + 65536]).isfinite().all():
            raise DataError("a feature is not finite", expected="finite features")
