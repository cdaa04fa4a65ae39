"""Exact search: the k rows with the greatest dot product with each query, or all pairs of rows with at least a given one,
from rows that may be larger than memory.

Rows come in blocks. A block's products are computed roughly, in float32 or bfloat16; rows whose rough product could, by the
bound on its error, belong to the best k are computed again in float64, where products of float32 numbers are exact, and
ranked. So the answer is the one that float64 gives for all rows, whatever the block size and the precision of the first pass:

    |rough(q, x) - q x| <= err |q| |x|,    err = 1.01 (E + 2) 2^-24 in float32, 4 * 2^-8 + that in bfloat16

(E for the sum, 2 for rounding q and x; 2^-8 is bfloat16's rounding: of q, of x, of the result, and as much again for
second-order terms. Where torch is allowed to multiply float32 in a shorter type, the second bound is used.) Equal products
are ranked by the row number, which is the order in which rows were added. Approximate search is not done here.

Letters: N rows, E embedding, Q queries, k answers, B rows of a block.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch

from ostension.errors import ConfigError, DataError
from ostension.store.rows import BLOCK_ROWS, Rows

QUERIES = 1024  # queries at a time: with 8,192 rows a block, 32 MB of products
EXACT = 4096  # candidates that are computed in float64 at a time
U32, U16 = 2.0**-24, 2.0**-8
Precision = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class Found:
    """The best rows of each query.

    Attributes:
        rows: (Q, k') numbers of rows, best first; k' is k, or the number of rows that could be chosen if that is less.
        scores: (Q, k') float64 dot products.
    """

    rows: np.ndarray
    scores: np.ndarray


def search(
    rows: Rows | np.ndarray,
    queries: Any,
    k: int = 10,
    *,
    mask: np.ndarray | None = None,
    precision: Precision = "float32",
    block_rows: int = BLOCK_ROWS,
) -> Found:
    """The `k` rows with the greatest dot products with each query.

    Args:
        rows: (N, E), of a set or any array.
        queries: (Q, E), rounded to float32.
        mask: (N,) which rows may be chosen; all by default.
        precision: of the first pass; the answer does not depend on it.
        block_rows: rows that are read at a time.

    Raises:
        DataError: for queries of another width or that are not finite, or a mask of another length.
        ConfigError: for a k below 0 or an unknown precision.
    """
    if k < 0 or block_rows < 1 or precision not in ("float32", "bfloat16"):
        what = f"k = {k}, precision = {precision!r}, block_rows = {block_rows}"
        raise ConfigError(what, expected="k of 0 or more, 'float32' or 'bfloat16', blocks of 1 or more")
    wanted = _queries(queries, rows)
    if mask is not None and (np.asarray(mask).dtype != bool or np.shape(mask) != (len(rows),)):
        raise DataError(f"a mask of shape {np.shape(mask)}", expected=f"({len(rows)},) of True and False")
    available = len(rows) if mask is None else int(np.asarray(mask).sum())
    count = min(k, available)
    if not count:
        return Found(np.zeros((len(wanted), 0), np.int64), np.zeros((len(wanted), 0)))
    parts = [
        _search(rows, wanted[start : start + QUERIES], count, mask, precision, block_rows)
        for start in range(0, len(wanted), QUERIES)
    ]
    if not parts:
        return Found(np.zeros((0, count), np.int64), np.zeros((0, count)))
    return Found(np.concatenate([part.rows for part in parts]), np.concatenate([part.scores for part in parts]))


@dataclasses.dataclass(frozen=True)
class RowPairs:
    """Pairs of rows a < b.

    Attributes:
        a, b: (P,) numbers of rows.
        scores: (P,) float64 dot products.
    """

    a: np.ndarray
    b: np.ndarray
    scores: np.ndarray


def pairs_above(
    rows: Rows | np.ndarray, least: float, *, own_rows: int = QUERIES, block_rows: int = BLOCK_ROWS
) -> Iterator[RowPairs]:
    """All pairs of rows whose dot product is at least `least`, each once, in batches: every row with every later one.

    As with `search`, what the first pass says decides nothing: pairs that could pass by the bound on its error are computed in
    float64. Time grows with N^2 E; memory holds two blocks of rows and their products.

    Args:
        rows: (N, E), of a set or any array.
        own_rows, block_rows: rows of the two blocks that are compared at a time; the pairs do not depend on them.

    Raises:
        DataError: for rows that are not finite.
    """
    if own_rows < 1 or block_rows < 1:
        raise ConfigError(f"blocks of {own_rows} and {block_rows} rows", expected="1 or more")
    short = 4 * U16 if torch.get_float32_matmul_precision() != "highest" else 0.0
    err = 1.01 * (rows.shape[1] + 2) * U32 + short
    for start in range(0, len(rows), own_rows):
        own = np.array(rows[start : start + own_rows], dtype=np.float32)
        if not np.isfinite(own).all():
            raise DataError(f"rows {start:,} to {start + len(own):,} have numbers that are not finite", expected="finite rows")
        across, lengths = torch.from_numpy(own).T, np.linalg.norm(own.astype(np.float64), axis=1)
        for first in range(start, len(rows), block_rows):
            block = np.array(rows[first : first + block_rows], dtype=np.float32)
            longest = np.linalg.norm(block.astype(np.float64), axis=1).max()
            floor = torch.from_numpy(least - err * lengths * longest)
            places, mine = ((torch.from_numpy(block) @ across).double() >= floor).nonzero().numpy().T
            later = first + places > start + mine
            places, mine = places[later], mine[later]
            scores = _products(block, places, own, mine)
            passed = scores >= least
            if passed.any():
                yield RowPairs(start + mine[passed], first + places[passed], scores[passed])


def _products(block: np.ndarray, places: np.ndarray, own: np.ndarray, mine: np.ndarray) -> np.ndarray:
    """Dot products of pairs of rows in float64."""
    scores = np.empty(len(places))
    for start in range(0, len(places), EXACT):
        part = slice(start, start + EXACT)
        scores[part] = (block[places[part]].astype(np.float64) * own[mine[part]]).sum(axis=1)
    return scores


def _queries(queries: Any, rows: Rows | np.ndarray) -> np.ndarray:
    if isinstance(queries, torch.Tensor):
        queries = queries.detach().cpu().float().numpy()
    found = np.asarray(queries)
    if found.ndim != 2 or (len(rows) and found.shape[1] != rows.shape[1]):
        raise DataError(f"queries of shape {found.shape}", expected=f"(Q, {rows.shape[1]})")
    if found.dtype.kind != "f":
        raise DataError(f"queries of type {found.dtype}", expected="floating point")
    found = np.ascontiguousarray(found, dtype=np.float32)
    if not np.isfinite(found).all():
        raise DataError("queries with numbers that are not finite", expected="finite float32")
    return found


def _search(
    rows: Rows | np.ndarray, queries: np.ndarray, k: int, mask: np.ndarray | None, precision: Precision, block_rows: int
) -> Found:
    width = queries.shape[1]
    lengths = np.sqrt((queries.astype(np.float64) ** 2).sum(axis=1))
    short = precision == "bfloat16" or torch.get_float32_matmul_precision() != "highest"
    err = 1.01 * (width + 2) * U32 + (4 * U16 if short else 0.0)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    across = torch.from_numpy(queries).to(dtype).T
    best_rows = [np.zeros(0, np.int64)] * len(queries)
    best_scores = [np.zeros(0)] * len(queries)
    for numbers, block in _blocks(rows, mask, block_rows):
        rough_rows = torch.from_numpy(np.array(block, dtype=np.float32))
        longest = float(torch.linalg.vector_norm(rough_rows, dim=1).max()) * 1.01
        slack = err * lengths * longest  # (Q,)
        rough = (rough_rows.to(dtype) @ across).float()  # (B, Q)
        least = torch.full((len(queries),), -torch.inf, dtype=torch.float64)
        if len(block) > k:
            least = rough.topk(k, dim=0).values[-1].double() - 2 * torch.from_numpy(slack)
        kth = [scores[-1] if len(scores) == k else -np.inf for scores in best_scores]
        floor = torch.maximum(least, torch.from_numpy(np.array(kth) - slack))
        found = (rough.double() >= floor).T.contiguous().numpy()  # (Q, B)
        for query in np.flatnonzero(found.any(axis=1)):
            places = np.flatnonzero(found[query])
            scores = _exact(block, places, queries[query])
            # Rows found earlier stand first, so that a stable sort ranks equals by their numbers.
            scores = np.concatenate([best_scores[query], scores])
            chosen = np.concatenate([best_rows[query], numbers[places]])
            order = np.argsort(-scores, kind="stable")[:k]
            best_scores[query], best_rows[query] = scores[order], chosen[order]
    return Found(np.stack(best_rows), np.stack(best_scores))


def _blocks(rows: Rows | np.ndarray, mask: np.ndarray | None, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of the rows that may be chosen, with their numbers."""
    for start in range(0, len(rows), size):
        stop = min(start + size, len(rows))
        numbers = np.arange(start, stop)
        if mask is None:
            yield numbers, rows[start:stop]
        elif (chosen := mask[start:stop]).any():
            yield numbers[chosen], rows[start:stop][chosen]


def _exact(block: np.ndarray, places: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Dot products in float64; a row's sum has the same order wherever it stands, so equal rows have equal products."""
    wide = query.astype(np.float64)
    parts = [
        (block[places[start : start + EXACT]].astype(np.float64) * wide).sum(axis=1) for start in range(0, len(places), EXACT)
    ]
    return np.concatenate(parts)
