"""What is picked at every alpha between two heads on frozen rows, for the price of the products with both.

    L(alpha) = (1 - alpha) L_0 + alpha L_1          L_i = X_i W_i' + b_i

The plain way takes products in float64, mixes them at each alpha (`line.head_line`) and picks the largest. Here products are
float32, a block of rows at a time, so that both logits stay in the cache while all alphas are looked at: one multiply-add, the
largest and the second largest. A row whose two largest are nearer at some alpha than rounding could part is decided by the
plain way, so the picks are the plain way's. The mean over the classes is taken out of W_i and b_i first: that moves no pick,
and rows of words, which lie close together, lose most of their length and of the bound on rounding.

    |computed - plain| <= (P + D / P + 8) u (|x| max_c |w_c| + max_c |b_c|) + 8 u (the same before the mean is taken out)

where the D terms of a product are added in parts of P, whose sums are added then.

Letters: N rows, D width of a row, C classes, A alphas, u the unit roundoff 2^-24.
Source: sums in any order, Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ostension.errors import DataError
from ostension.model.predictor import Predictor
from ostension.runtime import torch_generator
from ostension.weights.line import head_line

BLOCK = 1 << 18  # logits of an end at a time: 1 MB in float32, of which three lie in a core's own cache
PART = 128  # terms of a product that are added in one go
ASKED = 1 << 10  # rows that are decided the plain way together
PROBES = 8  # random rows on which a head shows that it is one
UNIT = 2.0**-24
Exact = Callable[[np.ndarray], np.ndarray]  # from positions (n,) to logits (n, C) as they are evaluated


@dataclasses.dataclass(frozen=True)
class Head:
    """A linear map of rows.

    Attributes:
        matrix: (D, C) float64.
        bias: (C,) float64; minus infinity for a class that is never given.
    """

    matrix: np.ndarray
    bias: np.ndarray

    def logits(self, rows: np.ndarray) -> np.ndarray:
        """(N, C) in float64."""
        return rows.astype(np.float64) @ self.matrix + self.bias


@dataclasses.dataclass(frozen=True)
class End:
    """One end of the line.

    Attributes:
        head: what it computes.
        rows: (N, D) float32, of what.
        exact: its own logits of some of the rows.
    """

    head: Head
    rows: np.ndarray
    exact: Exact

    def scaled(self, factor: float) -> End:
        """The same with its logits multiplied."""
        if factor == 1:
            return self

        def exact(chosen: np.ndarray) -> np.ndarray:
            found = self.exact(chosen)
            return (factor * found).astype(found.dtype)

        return End(Head(self.head.matrix * factor, self.head.bias * factor), self.rows, exact)


@torch.no_grad()
def head_of(predictor: Predictor) -> Head | None:
    """W and b of a predictor whose logits are x W' + b for rows x of the frozen tower; None for any other.

    They are read off the unit vectors, and seen to be all there is on random rows, whose logits have to be computed in float64.
    """
    if predictor.depends != "nothing":
        return None
    if type(predictor) is Predictor:
        weights = predictor.weights.double().cpu().numpy()
        return Head(predictor.scale * weights.T, np.zeros(len(weights)))
    width, device = predictor.weights.shape[-1], predictor.weights.device
    rows = torch.randn(PROBES, width, generator=torch_generator("is it linear"))
    bias = predictor.logits(torch.zeros(1, width, dtype=torch.float64, device=device))[0].cpu()
    steps = predictor.logits(torch.eye(width, dtype=torch.float64, device=device)).cpu()
    there = bias.isfinite()
    if steps.dtype != torch.float64 or not bool((steps.isfinite() == there).all()):
        return None
    head = Head(torch.where(there, steps - bias, 0.0).numpy(), bias.numpy())
    wanted = torch.from_numpy(head.logits(rows.numpy()))
    found = predictor.logits(rows.double().to(device)).cpu()
    reach = float(wanted[:, there].abs().max()) if bool(there.any()) else 0.0
    if not torch.allclose(found[:, there], wanted[:, there], rtol=0, atol=1e-9 * reach):
        return None
    narrow = predictor.logits(rows.to(device)).cpu()
    # Products in float32 would be rounded in most places, and not within the bound that is counted on here.
    return head if float((narrow == found.float()).double().mean()) > 0.9 else None


def picks_of_heads(start: End, end: End, alphas: Sequence[float]) -> np.ndarray:
    """(A, N) positions of the largest logits at each alpha, the first of equal ones.

    Raises:
        DataError: naming the first row that has no largest logit.
    """
    made = [_Centred.of(one) for one in (start, end)]
    reach = made[0].reach + made[1].reach
    both = np.empty((2, min(_rows_of(start.head), len(start.rows)), len(start.head.bias)), dtype=np.float32)
    spare = np.empty_like(both[0])
    whole = all(bool(np.isfinite(one.bias).all()) for one in made)

    def block(part: slice) -> tuple[np.ndarray, np.ndarray]:
        picks = [one.logits(part, out, spare) for one, out in zip(made, both, strict=True)]
        return _picks(picks[0], picks[1], alphas, (made[0].slack[part], made[1].slack[part]), reach[part], whole)

    return _in_blocks(block, lambda rows: (start.exact(rows), end.exact(rows)), alphas, len(start.rows), len(both[0]))


def picks_of_logits(start: np.ndarray, end: np.ndarray, alphas: Sequence[float]) -> np.ndarray:
    """The same of logits (N, C) in float32 that are there already.

    Raises:
        DataError: naming the first row that has no largest logit.
    """

    def block(part: slice) -> tuple[np.ndarray, np.ndarray]:
        ends = start[part], end[part]
        reach = sum(np.where(np.isfinite(one), np.abs(one), 0).max(axis=1) for one in ends)
        nothing = np.zeros(len(ends[0]), dtype=np.float32)
        return _picks(*ends, alphas, (nothing, nothing), reach)

    return _in_blocks(block, lambda rows: (start[rows], end[rows]), alphas, len(start), max(1, BLOCK // start.shape[1]))


def _rows_of(head: Head) -> int:
    return max(1, BLOCK // len(head.bias))


def _in_blocks(
    block: Callable[[slice], tuple[np.ndarray, np.ndarray]],
    exact: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    alphas: Sequence[float],
    count: int,
    size: int,
) -> np.ndarray:
    """(A, N) picks, those of rows that are too close to call by the plain way."""
    picks, close = np.empty((len(alphas), count), dtype=np.int64), np.empty(count, dtype=bool)
    for begin in range(0, count, size):
        part = slice(begin, min(begin + size, count))
        picks[:, part], close[part] = block(part)
    asked = np.flatnonzero(close)
    for begin in range(0, len(asked), ASKED):
        rows = asked[begin : begin + ASKED]
        picks[:, rows] = _plain(*exact(rows), alphas, rows)
    return picks


@dataclasses.dataclass(frozen=True)
class _Centred:
    """An end in float32 without the mean over its classes.

    Attributes:
        slack: (N,) what rounding of the products moves at most.
        reach: (N,) what no logit exceeds, of these and of the end's own together.
    """

    matrix: np.ndarray
    bias: np.ndarray
    rows: np.ndarray
    slack: np.ndarray
    reach: np.ndarray

    @classmethod
    def of(cls, end: End) -> _Centred:
        matrix, bias = end.head.matrix, end.head.bias
        there = np.isfinite(bias)
        middle = matrix[:, there].mean(axis=1, keepdims=True) if there.any() else 0.0
        level = bias[there].mean() if there.any() else 0.0
        rows = np.ascontiguousarray(end.rows, dtype=np.float32)
        lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float32))
        own = np.where(there, matrix - middle, 0.0)
        offset = bias - level
        spread, least = _bound(lengths, own, offset[there]), _bound(lengths, matrix, bias[there])
        slack = (PART + len(matrix) // PART + 8) * UNIT * spread
        return cls(own.astype(np.float32), offset.astype(np.float32), rows, slack, spread + least)

    def logits(self, part: slice, out: np.ndarray, spare: np.ndarray) -> np.ndarray:
        """(n, C) of some rows, in the memory of `out`."""
        rows = self.rows[part]
        found, more = out[: len(rows)], spare[: len(rows)]
        np.matmul(rows[:, :PART], self.matrix[:PART], out=found)
        for first in range(PART, len(self.matrix), PART):
            np.matmul(rows[:, first : first + PART], self.matrix[first : first + PART], out=more)
            found += more
        if self.bias.any():
            found += self.bias
        return found


def _bound(lengths: np.ndarray, matrix: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """(N,) what no logit exceeds."""
    longest = np.sqrt(np.square(matrix).sum(axis=0).max(initial=0.0))
    return (lengths * longest + np.abs(bias).max(initial=0.0)) * (1 + 1e-3)  # lengths are rounded, too


def _picks(
    start: np.ndarray,
    end: np.ndarray,
    alphas: Sequence[float],
    slack: tuple[np.ndarray, np.ndarray],
    reach: np.ndarray,
    whole: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """(A, n) picks from logits (n, C) in float32, and (n,) which rows are too close to call at some alpha.

    Args:
        whole: no class is minus infinity.
    """
    with np.errstate(invalid="ignore"):
        base, step = start, end - start
    if not whole and (never := ~np.isfinite(step)).any():  # where either end is minus infinity, so is all between
        base, step = np.where(never, -np.inf, start), np.where(never, 0, step)
    tensors = torch.from_numpy(base), torch.from_numpy(step)
    mixed, rows = np.empty_like(start), np.arange(len(start))
    between = torch.from_numpy(mixed)
    picks, close = np.empty((len(alphas), len(start)), dtype=np.int64), np.zeros(len(start), dtype=bool)
    for place, alpha in enumerate(alphas):
        if alpha in (0, 1):
            np.copyto(mixed, end if alpha else start)
        else:
            torch.add(*tensors, alpha=alpha, out=between)
        best = mixed.argmax(axis=1)
        top = mixed[rows, best]
        mixed[rows, best] = -np.inf
        limit = 2 * ((1 - alpha) * slack[0] + alpha * slack[1] + 8 * UNIT * reach)
        with np.errstate(invalid="ignore"):
            close |= ~(top - mixed.max(axis=1) > limit)  # also what is no number
        picks[place] = best
    return picks, close


def _plain(start: np.ndarray, end: np.ndarray, alphas: Sequence[float], rows: np.ndarray) -> np.ndarray:
    """(A, n) picks as they are defined."""
    found = [head_line(start, end, alpha) for alpha in alphas]
    for logits in found:
        highest = logits.max(axis=1)
        if not np.isfinite(highest).all():
            row = int(rows[(~np.isfinite(highest)).argmax()])
            raise DataError(f"row {row} of the logits has no largest number", expected="finite logits")
    return np.stack([logits.argmax(axis=1) for logits in found])
