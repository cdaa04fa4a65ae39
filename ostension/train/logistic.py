"""Multinomial logistic regression on features: every strength at once, by preconditioned L-BFGS, to a certified optimum.

For features x (N,D), labels y and strengths c it minimises scikit-learn's objective, divided by c N:

    J(W, b) = 1/N sum_i [ logsumexp(W x_i + b) - (W x_i + b)_{y_i} ] + 1/(2 c N) ||W||^2

The bias carries no penalty. What makes it fast, none of which moves the optimum:

- The features are centred (the shift goes into the bias) and rotated into their principal axes (a rotation keeps ||W||).
- Axis i is scaled by 1 / sqrt(eig_i / C + penalty), the curvature bound of Boehning (1992) on a softmax, so that the
  problem is nearly round: tens of steps instead of hundreds.
- All strengths run side by side, so that one matrix product serves them all; those that have arrived drop out.

Letters: N samples, D features, C classes, S strengths.
Source: objective as in scikit-learn's `LogisticRegression`; L-BFGS after Nocedal and Wright, algorithm 7.4.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from ostension.errors import DataError

HISTORY = 10  # pairs kept by L-BFGS; more gained nothing here once preconditioned
ARMIJO = 1e-4
MAX_HALVINGS = 30
# exp(-60) = 9e-27 is nothing beside the largest term 1, and keeps float32 products out of the denormals, which are slow.
LOGIT_FLOOR = -60.0
CHUNK_ELEMENTS = 1 << 24  # logits held at once: 64 MB in float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogisticFit:
    """The optimum for each strength.

    Attributes:
        weight: (S, C, D) in the coordinates of the given features.
        bias: (S, C), of mean zero over classes (a common shift changes nothing).
        objective: (S,) J at the optimum.
        gradient_norm: (S,) Euclidean norm of J's gradient in the given coordinates: the certificate.
        iterations: (S,) steps taken.
        converged: (S,) whether `gradient_norm` came under the tolerance.
    """

    weight: Tensor
    bias: Tensor
    objective: Tensor
    gradient_norm: Tensor
    iterations: Tensor
    converged: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """The logits (S, N, C) of `features` (N, D)."""
        return torch.einsum("nd,scd->snc", features.to(self.weight.dtype), self.weight) + self.bias[:, None, :]


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    strengths: Sequence[float],
    *,
    tolerance: float = 1e-5,
    max_iterations: int = 1000,
) -> LogisticFit:
    """Fit one classifier for each of `strengths` (scikit-learn's `C`, inverse of the penalty).

    Args:
        features: (N, D), float32 or float64; the computation keeps that dtype.
        labels: (N,) integers 0..C-1; each class must occur, for the unpenalised bias of an absent one has no optimum.
        tolerance: stop when the Euclidean norm of J's gradient is below it. J is a mean over samples.

    Raises:
        DataError: for labels out of range, an absent class, features that are not finite, or a strength not above 0.
    """
    _check(features, labels, num_classes, strengths)
    problem = _Problem(features, labels, num_classes, strengths)
    point, gradient, objective, iterations = _minimise(problem, tolerance, max_iterations)
    norm = problem.gradient_norm(gradient, torch.arange(len(strengths)))
    weight, bias = problem.to_original(point)
    return LogisticFit(
        weight=weight, bias=bias, objective=objective, gradient_norm=norm, iterations=iterations, converged=norm <= tolerance
    )


class _Problem:
    """The objective in preconditioned coordinates U (S, D+1, C); row D of U is the bias."""

    def __init__(self, features: Tensor, labels: Tensor, num_classes: int, strengths: Sequence[float]):
        count, width = features.shape
        dtype, device = features.dtype, features.device
        self.labels, self.num_classes = labels, num_classes
        self.penalty = torch.tensor([1 / (c * count) for c in strengths], dtype=dtype, device=device)
        mean = features.double().mean(0)
        centred = features.double() - mean
        eigenvalues, self.axes = torch.linalg.eigh(centred.T @ centred / count)
        rotated = (centred @ self.axes).to(dtype)
        self.inputs = torch.cat([rotated, rotated.new_ones(count, 1)], dim=1)  # (N, D+1)
        self.mean = mean @ self.axes
        curvature = eigenvalues.clamp(min=0) / num_classes
        scale = (curvature[None, :] + self.penalty.double()[:, None]).rsqrt()
        bias_scale = scale.new_full((len(strengths), 1), num_classes**0.5)
        self.scale = torch.cat([scale, bias_scale], dim=1).to(dtype)[:, :, None]  # (S, D+1, 1)
        self.start = features.new_zeros(len(strengths), width + 1, num_classes)

    def __call__(self, point: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """J (A,) and its gradient (A, D+1, C) at `point`, for the problems numbered `which` (A,)."""
        count, rows = len(self.inputs), self.inputs.shape[1]
        scaled = point * self.scale[which]  # the matrices W in rotated coordinates
        flat = scaled.transpose(0, 1).reshape(rows, -1)  # (D+1, A C)
        loss = point.new_zeros(len(which), dtype=torch.float64)
        gradient = torch.zeros_like(flat)
        chunk = max(1, CHUNK_ELEMENTS // flat.shape[1])
        for start in range(0, count, chunk):
            inputs, labels = self.inputs[start : start + chunk], self.labels[start : start + chunk]
            logits = (inputs @ flat).view(len(inputs), len(which), self.num_classes)
            logits -= logits.amax(-1, keepdim=True)
            index = labels[:, None, None].expand(-1, len(which), 1)
            own = logits.gather(-1, index).squeeze(-1)
            total = logits.clamp_(min=LOGIT_FLOOR).exp_().sum(-1, keepdim=True)
            loss += (total.squeeze(-1).log() - own).sum(0, dtype=torch.float64)
            logits /= total
            logits.scatter_add_(-1, index, logits.new_full(index.shape, -1.0))
            gradient.addmm_(inputs.T, logits.view(len(inputs), -1))
        weight = scaled[:, :-1]
        penalty = self.penalty[which]
        objective = loss / count + 0.5 * penalty.double() * weight.double().square().sum((1, 2))
        gradient = (gradient / count).view(rows, len(which), self.num_classes).transpose(0, 1).contiguous()
        gradient[:, :-1] += penalty[:, None, None] * weight
        return objective, gradient * self.scale[which]

    def gradient_norm(self, gradient: Tensor, which: Tensor) -> Tensor:
        """The Euclidean norm (A,) of J's gradient in the coordinates of the given features."""
        unscaled = (gradient / self.scale[which]).double()
        weight, bias = unscaled[:, :-1], unscaled[:, -1:]
        # Uncentring: dJ/dW = rotated part + mean x dJ/db; the rotation back keeps the norm.
        return torch.sqrt((weight + self.mean[:, None] * bias).square().sum((1, 2)) + bias.square().sum((1, 2)))

    def to_original(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (S, C, D) and biases (S, C) for the given features."""
        scaled = (point * self.scale).double()
        weight, bias = scaled[:, :-1], scaled[:, -1]
        bias = bias - torch.einsum("d,sdc->sc", self.mean, weight)
        bias = bias - bias.mean(1, keepdim=True)
        weight = torch.einsum("de,sec->scd", self.axes, weight)
        return weight.to(point.dtype), bias.to(point.dtype)


def _minimise(problem: _Problem, tolerance: float, max_iterations: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points, gradients, objectives and step counts after L-BFGS on every problem."""
    point = problem.start
    everyone = torch.arange(len(point))
    objective, gradient = problem(point, everyone)
    iterations = torch.zeros(len(point), dtype=torch.int64)
    memories = [_Memory() for _ in everyone]
    active = everyone[problem.gradient_norm(gradient, everyone) > tolerance]
    for _ in range(max_iterations):
        if not len(active):
            break
        direction = torch.stack([memories[i].direction(gradient[i]) for i in active.tolist()])
        moved, turned, value, found = _search(problem, point, gradient, objective, direction, active)
        for row, i in enumerate(active.tolist()):
            memories[i].add(moved[row] - point[i], turned[row] - gradient[i])
        point[active], gradient[active], objective[active] = moved, turned, value
        iterations[active] += 1
        # A problem whose line search found nothing has reached the floor of its arithmetic.
        active = active[found & (problem.gradient_norm(turned, active) > tolerance)]
    return point, gradient, objective, iterations


def _search(
    problem: _Problem, point: Tensor, gradient: Tensor, objective: Tensor, direction: Tensor, active: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Backtrack along `direction` until each active problem has decreased enough.

    Gives the new points, gradients and objectives of the active problems and whether each found a step; one that found
    none stays where it was.
    """
    # Rounding in J itself: a smaller decrease than this cannot be told from none.
    slack = 8 * torch.finfo(point.dtype).eps
    slope = (direction * gradient[active]).sum((1, 2)).double()
    step = torch.ones(len(active), dtype=point.dtype)
    found = torch.zeros(len(active), dtype=torch.bool)
    moved, turned, reached = point[active], gradient[active], objective[active]
    for _ in range(MAX_HALVINGS):
        trying = (~found).nonzero().squeeze(1)
        trial = point[active[trying]] + step[trying, None, None] * direction[trying]
        value, slopes = problem(trial, active[trying])
        before = objective[active[trying]]
        good = value <= before + ARMIJO * step[trying].double() * slope[trying] + slack * before.abs()
        rows = trying[good]
        moved[rows], turned[rows], reached[rows], found[rows] = trial[good], slopes[good], value[good], True
        step[trying[~good]] *= 0.5
        if bool(found.all()):
            break
    return moved, turned, reached, found


class _Memory:
    """The last pairs of one problem, and the L-BFGS direction that they give."""

    def __init__(self):
        self.pairs: list[tuple[Tensor, Tensor, float]] = []

    def add(self, moved: Tensor, turned: Tensor) -> None:
        """Remember a step and the change of the gradient over it, if it shows positive curvature."""
        product = float((moved * turned).sum())
        if product > 1e-10 * float(turned.square().sum()):
            self.pairs = [*self.pairs[1 - HISTORY :], (moved, turned, 1 / product)]

    def direction(self, gradient: Tensor) -> Tensor:
        """Minus the inverse-Hessian estimate times `gradient` (the two-loop recursion)."""
        result = gradient.clone()
        factors = []
        for moved, turned, inverse in reversed(self.pairs):
            factor = inverse * (moved * result).sum()
            result -= factor * turned
            factors.append(factor)
        if self.pairs:
            _, turned, inverse = self.pairs[-1]
            result /= inverse * turned.square().sum()
        for (moved, turned, inverse), factor in zip(self.pairs, reversed(factors), strict=True):
            result += (factor - inverse * (turned * result).sum()) * moved
        return -result


def _check(features: Tensor, labels: Tensor, num_classes: int, strengths: Sequence[float]) -> None:
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(features):
        shapes = f"features {tuple(features.shape)} and labels {tuple(labels.shape)}"
        raise DataError(shapes, expected="(N, D) and (N,), N above 0")
    if not features.isfinite().all():
        raise DataError("a feature is not finite", expected="finite features")
    counts = torch.bincount(labels, minlength=num_classes) if labels.min() >= 0 else torch.empty(0)
    if len(counts) != num_classes:
        raise DataError(f"labels lie in {int(labels.min())}..{int(labels.max())}", expected=f"0..{num_classes - 1}")
    if not counts.all():
        raise DataError(f"class {int((counts == 0).nonzero()[0])} has no sample", expected="at least one of each class")
    if not strengths or min(strengths) <= 0:
        raise DataError(f"strengths are {list(strengths)}", expected="one or more numbers above 0")
