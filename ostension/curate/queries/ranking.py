"""The first of very many by rank, and what makes a pair of words more than two words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

Score = Literal["pmi", "npmi", "likelihood"]
_DIGITS = 9  # beyond, logarithms differ from one processor to another, and ranks must not


def first(batches: Iterable[tuple[Any, np.ndarray, np.ndarray]], k: int | None) -> tuple[Any, np.ndarray, np.ndarray]:
    """Keys (an Arrow array), counts and scores of the first `k` (all for None) by score, then by count, then as they come.

    Memory: what is kept is at most twice `k` and a batch.
    """
    import pyarrow as pa

    kept: list[tuple[Any, np.ndarray, np.ndarray]] = []
    size = 0

    def pruned(found: list[tuple[Any, np.ndarray, np.ndarray]]) -> tuple[Any, np.ndarray, np.ndarray]:
        keys = pa.concat_arrays([keys for keys, _, _ in found])
        counts = np.concatenate([counts for _, counts, _ in found])
        scores = np.concatenate([scores for _, _, scores in found])
        order = np.lexsort((np.arange(len(counts)), -counts, -scores))[:k]
        return keys.take(pa.array(order)), counts[order], scores[order]

    for batch in batches:
        kept.append(batch)
        size += len(batch[1])
        if k is not None and size > 2 * k + (1 << 16):
            kept = [pruned(kept)]
            size = len(kept[0][1])
    if not kept:
        return pa.array([], pa.null()), np.zeros(0, np.int64), np.zeros(0)
    return pruned(kept)


def score(kind: Score, both: np.ndarray, one: np.ndarray, other: np.ndarray, total: int) -> np.ndarray:
    """How much more two words stand together than by chance.

    - "pmi": log2(c12 N / (c1 c2)), in bits; at most log2(N / c12), so rare pairs can have more. The paper's.
    - "npmi": that over its maximum log2(N / c12): 1 where neither word is ever seen without the other, 0 at chance.
    - "likelihood": Dunning's G2 = 2 sum k ln(k / expected k), negative where the pair is rarer than by chance: the evidence
      that it is no chance, which grows with the count.

    Args:
        both: c12, how often the pair was seen.
        one: c1, how often its first word was.
        other: c2, the same of its second word.
        total: N, all words.

    Source: Church and Hanks 1990; Bouma 2009; Dunning 1993.
    """
    c12, c1, c2, n = (np.asarray(values, np.float64) for values in (both, one, other, total))
    pmi = np.log2(c12 / (c1 * c2) * n)
    if kind == "npmi":
        most = np.log2(n / c12)
        pmi = np.divide(pmi, most, out=np.ones_like(pmi), where=most > 0)
    elif kind == "likelihood":
        # The four fields of the table; the margins are counts of words, so the last can come out below 0 in a tiny corpus.
        rest1, rest2 = n - c1, n - c2
        fields = [(c12, c1 * c2), (c1 - c12, c1 * rest2), (c2 - c12, rest1 * c2), (rest1 - c2 + c12, rest1 * rest2)]
        total_g = np.zeros_like(c12)
        for seen, expected in fields:
            there = seen > 0
            total_g[there] += 2 * seen[there] * np.log(seen[there] * n / expected[there])
        pmi = np.where(pmi > 0, total_g, -np.abs(total_g))
    return np.round(pmi, _DIGITS)


def most(kind: Score, min_count: int, total: int) -> float:
    """The highest score that a pair seen at least so often can have; infinite where that has no simple bound."""
    return {"pmi": float(np.log2(total / min_count)), "npmi": 1.0, "likelihood": float("inf")}[kind]
