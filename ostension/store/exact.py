"""Exact search: the k rows with the greatest dot product with each query, or all pairs of rows with at least a given one,
from rows that may be larger than memory.

Rows come in blocks. A block's products are computed roughly, in whole numbers of 8 bits (`codes`), float32 or bfloat16; rows
whose rough product could, by the bound on its error, belong to the best k are computed again in float64, where products of
float32 numbers are exact, and ranked. So the answer is the one that float64 gives for all rows, whatever the size of the
blocks and the precision of the first pass (`first_pass`):

    |rough(q, x) - q x| <= err |q| |x|,    err = 1.01 (E + 2) 2^-24 in float32, 4 * 2^-8 + that in bfloat16

(E for the sum, 2 for rounding q and x; 2^-8 is bfloat16's rounding: of q, of x, of the result, and as much again for
second-order terms. Where torch is allowed to multiply float32 in a shorter type, the second bound is used.) Equal products
are ranked by the row number, which is the order in which rows were added. Approximate search is not done here.

Letters: N rows, E embedding, Q queries, k answers, B rows of a block.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ostension.errors import ConfigError, DataError
from ostension.store.codes import U32, Codes, products_are_right
from ostension.store.first_pass import EXACT, U16, Asked, Precision, by_blocks, by_codes, by_pairs, usable
from ostension.store.rows import BLOCK_ROWS, Rows

QUERIES = 1024  # queries at a time


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
    codes: Codes | None = None,
    longest: dict[int, float] | None = None,
) -> Found:
    """The `k` rows with the greatest dot products with each query.

    Args:
        rows: (N, E), of a set or any array.
        queries: (Q, E), rounded to float32.
        mask: (N,) which rows may be chosen; all by default.
        precision: of the first pass; the answer does not depend on it.
        block_rows: rows that are read at a time.
        codes: of the same rows, for a first pass that is faster than `precision`'s.
        longest: keeps the greatest length in each block for the next search in the same rows with the same block size.

    Raises:
        DataError: for queries of another width or that are not finite, a mask of another length, or rows that are not finite.
        ConfigError: for a k below 0 or an unknown precision.
    """
    if k < 0 or block_rows < 1 or precision not in ("float32", "bfloat16"):
        what = f"k = {k}, precision = {precision!r}, block_rows = {block_rows}"
        raise ConfigError(what, expected="k of 0 or more, 'float32' or 'bfloat16', blocks of 1 or more")
    wanted = as_queries(queries, rows)
    if mask is not None and (np.asarray(mask).dtype != bool or np.shape(mask) != (len(rows),)):
        raise DataError(f"a mask of shape {np.shape(mask)}", expected=f"({len(rows)},) of True and False")
    available = len(rows) if mask is None else int(np.asarray(mask).sum())
    count = min(k, available)
    if not count:
        return Found(np.zeros((len(wanted), 0), np.int64), np.zeros((len(wanted), 0)))
    if codes is not None and len(codes) != len(rows):
        raise DataError(f"codes of {len(codes):,} rows", expected=f"of {len(rows):,}; make them again")
    mask = None if mask is None or available == len(rows) else np.asarray(mask)
    if codes is not None and not (codes.bounded and products_are_right(rows.shape[1])):
        codes = None
    parts = []
    for start in range(0, len(wanted), QUERIES):
        asked = Asked(wanted[start : start + QUERIES], rows, count)
        if not usable(asked.lengths):
            by_pairs(asked, rows, mask, block_rows)
        elif codes is not None:
            by_codes(asked, codes, mask)
        else:
            by_blocks(asked, rows, mask, precision, block_rows, {} if longest is None else longest)
        parts.append(Found(*asked.candidates.best()))
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
            scores = _pair_products(block, places, own, mine)
            passed = scores >= least
            if passed.any():
                yield RowPairs(start + mine[passed], first + places[passed], scores[passed])


def _pair_products(block: np.ndarray, places: np.ndarray, own: np.ndarray, mine: np.ndarray) -> np.ndarray:
    """Dot products of pairs of rows in float64."""
    scores = np.empty(len(places))
    for start in range(0, len(places), EXACT):
        part = slice(start, start + EXACT)
        scores[part] = (block[places[part]].astype(np.float64) * own[mine[part]]).sum(axis=1)
    return scores


def as_queries(queries: Any, rows: Rows | np.ndarray) -> np.ndarray:
    """(Q, E) float32, checked.

    Raises:
        DataError: for another width or type, or numbers that are not finite.
    """
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
    return found if found.flags.writeable else found.copy()  # torch warns of what it may not write to
