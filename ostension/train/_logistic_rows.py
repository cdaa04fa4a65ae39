"""The samples of a logistic regression in the coordinates in which it is solved, and the sums over them.

Features are centred (the shift goes into the bias), turned into their principal axes (which keeps ||W||) and divided by their
spread (which the penalty makes up for). Axes along which
nothing varies are left out, because the optimum is zero there: with fewer samples than features most of them.

Letters: N samples, D features, R axes kept, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 20  # numbers of a chunk's features or logits, whichever are more: 4 MB in float32 stay in the cache
FEWEST_ROWS = 64  # a product of fewer rows at once is slow
RESIDENT_BYTES = 4 << 30  # turned features are kept if they are smaller than this
HISTORY = 30  # pairs kept by L-BFGS; 10 took half as many steps again at weak penalties
# exp(-60) = 9e-27 is nothing beside the largest term 1, and keeps products out of the denormals on every thread; torch's
# exponential of lower numbers is ten times slower besides.
LOG_FLOOR = -60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What a fit holds beside the features that it is given.

    Attributes:
        resident: whether the turned features are kept; otherwise they are read, centred and dropped chunk by chunk in
            every pass, and the weights are turned instead.
        chunk_rows: samples handled at once.
        rows_bytes: the turned features.
        chunk_bytes: features and logits of a chunk.
        history_bytes: the pairs of L-BFGS and a few vectors of the same size.
        path_bytes: the solution of every strength.
    """

    resident: bool
    chunk_rows: int
    rows_bytes: int
    chunk_bytes: int
    history_bytes: int
    path_bytes: int

    @property
    def total_bytes(self) -> int:
        """The sum of the parts."""
        return self.rows_bytes + self.chunk_bytes + self.history_bytes + self.path_bytes


def plan_memory(
    num_samples: int,
    width: int,
    num_classes: int,
    num_strengths: int = 1,
    *,
    itemsize: int = 4,
    resident_bytes: int = RESIDENT_BYTES,
) -> MemoryPlan:
    """The memory of a fit, known before it starts; the solver works by it."""
    rows_bytes = num_samples * width * itemsize
    resident = num_samples <= width or rows_bytes <= resident_bytes
    chunk_rows = max(FEWEST_ROWS, CHUNK_ELEMENTS // max(width, num_classes, 1))
    point = (min(width, num_samples) + 1) * num_classes * itemsize
    return MemoryPlan(
        resident=resident,
        chunk_rows=chunk_rows,
        rows_bytes=rows_bytes if resident else 0,
        # Features once as read and once centred, logits and what is made of them.
        chunk_bytes=2 * chunk_rows * (width + num_classes) * itemsize,
        history_bytes=(2 * HISTORY + 10) * point,
        path_bytes=2 * num_strengths * point,  # as solved, and in the given coordinates
    )


class Rows:
    """Samples in principal axes, divided by their spread, so that numbers are of order one whatever the features' unit.

    Attributes:
        mean: (D,) float64.
        axes: (D, R) float64, orthonormal.
        eigenvalues: (R,) variances along the axes after the division, of sum 1; float64, rising.
        spread: the root of the mean squared distance from the mean; 1 where all samples are the same.
        weights: (N,) of the samples, of mean 1 where they were given, else None.
    """

    def __init__(self, features: Tensor | np.ndarray, weights: Tensor | None, num_classes: int, resident_bytes: int):
        count, width = features.shape
        self.dtype = torch.float64 if _is_double(features) else torch.float32
        self.plan = plan_memory(
            count, width, num_classes, itemsize=8 if self.dtype == torch.float64 else 4, resident_bytes=resident_bytes
        )
        self.count, self.features, self.weights = count, features, weights
        sums = (self._weighted(chunk, part).sum(0) for part, chunk in self._read())
        self.mean = sum(sums, torch.zeros(width).double()) / count
        if count <= width:
            self._of_few()
        else:
            self._of_many()
        self._turn = None if self.plan.resident else self.axes.to(self.dtype)

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """Positions and features, centred and divided by the spread: in principal axes (n, R) if resident, else (n, D)."""
        if self.plan.resident:
            for start in range(0, self.count, self.plan.chunk_rows):
                part = slice(start, start + self.plan.chunk_rows)
                yield part, self.inputs[part]
        else:
            for part, chunk in self._read():
                yield part, ((chunk - self.mean) / self.spread).to(self.dtype)

    def into_chunks(self, weight: Tensor) -> Tensor:
        """A weight (R, C) as the features of `chunks` take it."""
        return weight if self._turn is None else self._turn @ weight

    def out_of_chunks(self, gradient: Tensor) -> Tensor:
        """A gradient over the features of `chunks` as one over the axes (R, C)."""
        return gradient if self._turn is None else self._turn.T @ gradient

    def _read(self) -> Iterator[tuple[slice, Tensor]]:
        """Positions and features as given, in float64."""
        for start in range(0, self.count, self.plan.chunk_rows):
            part = slice(start, start + self.plan.chunk_rows)
            yield part, as_tensor(self.features[part]).double()

    def _weighted(self, chunk: Tensor, part: slice) -> Tensor:
        return chunk if self.weights is None else chunk * self.weights[part, None].double()

    def _of_few(self) -> None:
        """N <= D: the samples span N axes at most, and an orthonormal basis of that span is exact where a product of the
        features with themselves is not.
        """
        centred = torch.cat([chunk for _, chunk in self._read()]) - self.mean
        basis, mixed = torch.linalg.qr(centred.T)  # (D, N), (N, N): the samples in that basis are the columns of the latter
        samples = mixed.T
        self._keep(samples.T @ self._weighted(samples, slice(None)) / self.count, basis)
        self.inputs = (centred @ self.axes / self.spread).to(self.dtype)

    def _of_many(self) -> None:
        width = len(self.mean)
        covariance = torch.zeros(width, width, dtype=torch.float64)
        for part, chunk in self._read():
            centred = chunk - self.mean
            covariance.addmm_(centred.T, self._weighted(centred, part))
        self._keep(covariance / self.count, None)
        if self.plan.resident:
            self.inputs = torch.empty(self.count, self.axes.shape[1], dtype=self.dtype)
            for part, chunk in self._read():
                self.inputs[part] = (chunk - self.mean) @ self.axes / self.spread

    def _keep(self, covariance: Tensor, basis: Tensor | None) -> None:
        """The principal axes along which samples differ by more than rounding."""
        eigenvalues, axes = torch.linalg.eigh(covariance)
        largest = eigenvalues[-1] if len(eigenvalues) else torch.zeros(())
        kept = eigenvalues > largest * len(eigenvalues) * torch.finfo(torch.float64).eps
        trace = float(eigenvalues[kept].sum())
        self.spread = trace**0.5 if trace > 0 else 1.0
        self.eigenvalues, axes = eigenvalues[kept] / self.spread**2, axes[:, kept]
        self.axes = axes if basis is None else basis @ axes


def as_tensor(values: Tensor | np.ndarray) -> Tensor:
    """A tensor on the processor; of memory-mapped features a copy, because torch takes no array that cannot be written to."""
    return values.cpu() if isinstance(values, Tensor) else torch.from_numpy(np.array(values))


def _is_double(features: Tensor | np.ndarray) -> bool:
    return features.dtype in (torch.float64, np.float64)
