"""A map of an embedding space: exact t-SNE from a PCA start, then every item in a cell of its own.

Source: van der Maaten and Hinton 2008 (the method), Belkina et al. 2019 (learning rate N / 12), with the usual early
exaggeration. Exact, not Barnes-Hut: some 2,000 items are a few seconds of matrix products.

Letters: N items, E embedding.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ostension.errors import DataError
from ostension.shapes import Float, Int

EXAGGERATION, EXAGGERATED_STEPS = 12.0, 100
MIN_RATE = 50.0  # N / 12 is too slow for a few hundred items
MAX_ITEMS = 5_000  # N x N float32 matrices: 100 MB each


def pca(rows: Float[np.ndarray, "N E"], dimensions: int = 2) -> Float[np.ndarray, "N 2"]:
    """The rows in their first two principal axes; signs are fixed, so that equal data give equal pictures."""
    centred = rows.astype(np.float64) - rows.mean(0, dtype=np.float64)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:dimensions]
    axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
    return centred @ axes.T


def tsne(rows: Float[np.ndarray, "N E"], *, perplexity: float = 20.0, steps: int = 400) -> Float[np.ndarray, "N 2"]:
    """Positions in the plane that keep neighbours together. No random numbers: the start is PCA.

    Raises:
        DataError: for fewer items than three times the perplexity, or more than `MAX_ITEMS`.
    """
    count = len(rows)
    if not 3 * perplexity <= count <= MAX_ITEMS:
        raise DataError(f"there are {count} items", expected=f"{3 * perplexity:g} to {MAX_ITEMS} for perplexity {perplexity:g}")
    affinity = _affinities(torch.from_numpy(rows.astype(np.float32)), perplexity)
    start = pca(rows)
    place = torch.from_numpy((start / start[:, 0].std() * 1e-4).astype(np.float32))
    velocity, gain = torch.zeros_like(place), torch.ones_like(place)
    rate = max(count / EXAGGERATION, MIN_RATE)
    for step in range(steps):
        early = step < EXAGGERATED_STEPS
        gradient = _gradient(affinity, place, EXAGGERATION if early else 1.0)
        # Jacobs' gains, as in the reference implementation: faster along a steady direction, slower where it turns.
        gain = torch.where(gradient * velocity < 0, gain + 0.2, gain * 0.8).clamp_(min=0.01)
        velocity = (0.5 if early else 0.8) * velocity - rate * gain * gradient
        place = place + velocity
        place = place - place.mean(0)
    return place.double().numpy()


def in_cells(places: Float[np.ndarray, "N 2"], *, columns: int, rows: int) -> Int[np.ndarray, "N 2"]:
    """A free cell (column, row) of a grid for each place, near it; the ones in the middle choose first.

    Raises:
        DataError: if there are more places than cells.
    """
    if len(places) > columns * rows:
        raise DataError(f"{len(places)} items for {columns} x {rows} cells", expected="at least one cell each")
    # Robust limits: a few outliers must not squeeze the rest into the middle.
    low, high = np.quantile(places, [0.005, 0.995], axis=0)
    size = np.array([columns - 1, rows - 1])
    wanted = np.clip((places - low) / np.maximum(high - low, 1e-12), 0, 1) * size
    grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows), indexing="ij"), axis=-1).reshape(-1, 2)
    free = np.ones(len(grid), dtype=bool)
    cells = np.empty((len(places), 2), dtype=np.int64)
    for item in np.argsort(np.abs(wanted - size / 2).max(axis=1), kind="stable"):
        distance = ((grid - wanted[item]) ** 2).sum(axis=1)
        best = int(np.where(free, distance, np.inf).argmin())
        free[best] = False
        cells[item] = grid[best]
    return cells


def _affinities(rows: Tensor, perplexity: float) -> Tensor:
    """Symmetric P (N, N): Gaussian neighbours whose width gives each row the wanted perplexity, found by bisection."""
    squares = torch.cdist(rows, rows).square()
    squares.fill_diagonal_(math.inf)
    low, high = torch.zeros(len(rows), 1), torch.full((len(rows), 1), math.inf)
    precision = torch.ones(len(rows), 1) / squares.topk(int(perplexity), largest=False).values[:, -1:].clamp(min=1e-12)
    nearest = squares.amin(1, keepdim=True)
    for _ in range(40):
        weights = torch.exp(-(squares - nearest) * precision)
        p = weights / weights.sum(1, keepdim=True)
        entropy = -(p * torch.log(p.clamp(min=1e-30))).sum(1, keepdim=True)
        too_wide = entropy > math.log(perplexity)
        low, high = torch.where(too_wide, precision, low), torch.where(too_wide, high, precision)
        precision = torch.where(high.isinf(), precision * 2, (low + high) / 2)
    return ((p + p.T) / (2 * len(rows))).clamp_(min=1e-12)


def _gradient(affinity: Tensor, place: Tensor, exaggeration: float) -> Tensor:
    """4 sum_j (p_ij - q_ij) (1 + |y_i - y_j|^2)^-1 (y_i - y_j)."""
    kernel = 1 / (1 + torch.cdist(place, place).square())
    kernel.fill_diagonal_(0)
    force = (exaggeration * affinity - kernel / kernel.sum()) * kernel
    return 4 * (force.sum(1, keepdim=True) * place - force @ place)
