"""At most about t pairs a query: probabilities of keeping pairs, draws, the tail's share, and how t is chosen.

With c_e pairs that match query e,

    p_e = min(1, t / c_e)                        so that e alone would keep t of its pairs
    P(keep) = 1 - prod over the pair's queries of (1 - p_e)

Offline, as published: a draw for each query of each pair, and a pair stays if any succeeds. Online: one draw against P(keep),
with the counts known before. The two have the same distribution. Every draw is a function of the seed and of the pair's number
(and the query's), so it does not matter who draws, in which order, or how often.

A query keeps more than t pairs where its pairs match rarer queries too; `expected_counts` says how many.

Letters: n pairs, E queries.

Source: MetaCLIP (Xu et al. 2024), Algorithms 1 and 2; the tail's share of its worldwide release.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from ostension.config import require
from ostension.curate.matching import Matches
from ostension.errors import DataError
from ostension.runtime import seed_for

T = TypeVar("T")
STEPS = 60  # halvings: more than the digits of a limit
_GOLDEN, _FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def query_counts(matches: Matches, num_queries: int) -> np.ndarray:
    """(E,) int64 pairs that match each query."""
    return np.bincount(matches.entries, minlength=num_queries)


def query_probabilities(counts: np.ndarray, limit: float) -> np.ndarray:
    """(E,) p_e; 1 for a query that nothing matches."""
    return np.minimum(1.0, limit / np.maximum(counts, 1))


def keep_probabilities(matches: Matches, probabilities: np.ndarray) -> np.ndarray:
    """(n,) P(keep); 0 for a pair without queries. In logarithms, so that many small p_e lose no digits."""
    with np.errstate(divide="ignore"):  # p = 1: the logarithm of 0, and P = 1
        logs = np.log1p(-probabilities[matches.entries])
    return -np.expm1(_sums(matches, logs))


def uniforms(key: int, ids: np.ndarray, queries: np.ndarray | None = None) -> np.ndarray:
    """Draws from [0, 1), each a function of the key, the pair's number and perhaps the query's alone.

    Steps of SplitMix64 (Steele et al. 2014) as a hash of the numbers.
    """
    numbers = _mixed(np.asarray(ids).astype(np.uint64) * _GOLDEN + np.uint64(key))
    if queries is not None:
        numbers = _mixed((np.asarray(queries).astype(np.uint64) + np.uint64(1)) * _GOLDEN + numbers)
    return (numbers >> np.uint64(11)) * 2.0**-53


def draw_offline(matches: Matches, probabilities: np.ndarray, ids: np.ndarray, *, seed: int = 0, epoch: int = 0) -> np.ndarray:
    """(n,) whether each pair stays, by a draw for each of its queries."""
    each = np.repeat(np.asarray(ids), np.diff(matches.starts))
    success = uniforms(seed_for(seed, "balance", "offline", epoch), each, matches.entries) < probabilities[matches.entries]
    return _sums(matches, success.astype(np.int64)) > 0


def draw_online(keep: np.ndarray, ids: np.ndarray, *, seed: int = 0, epoch: int = 0) -> np.ndarray:
    """(n,) whether each pair stays, by one draw against P(keep)."""
    return uniforms(seed_for(seed, "balance", "online", epoch), ids) < keep


def expected_counts(matches: Matches, keep: np.ndarray, num_queries: int) -> np.ndarray:
    """(E,) pairs of each query that stay on average (with a draw as `keep`: that did stay)."""
    return np.bincount(matches.entries, weights=np.repeat(keep, np.diff(matches.starts)), minlength=num_queries)


def tail_share(counts: np.ndarray, limit: float) -> float:
    """The share of all matches that queries with fewer than `limit` have: sum of c_e < t / sum of c_e."""
    total = int(counts.sum())
    return float(counts[counts < limit].sum() / total) if total else 0.0


def limit_for_tail(counts: np.ndarray, share: float) -> int:
    """The count t whose tail has the share nearest to this one: how another language's t is chosen from English's share.

    Raises:
        ConfigError: if the share is not between 0 and 1.
        DataError: if nothing matches.
    """
    require(0 < share < 1, "tail_share", share, "a number between 0 and 1")
    values, how_many = np.unique(counts[counts > 0], return_counts=True)
    if not len(values):
        raise DataError("no pair matches any query", fix="look at the queries and at the captions' language")
    below = np.append(0, np.cumsum(values * how_many))  # matches of queries below each value, and below infinity
    limits = np.append(values, values[-1] + 1)
    return int(limits[np.argmin(np.abs(below / below[-1] - share))])


def limit_for_pairs(matches: Matches, counts: np.ndarray, wanted: float) -> float:
    """The limit t at which `wanted` pairs stay on average: the sum of P(keep) grows with t, and is met by halving.

    Args:
        matches: of all pairs, or of a sample of them with `wanted` made smaller by the same factor.
        counts: of all pairs.

    Raises:
        DataError: if fewer pairs match any query.
    """
    most = int(np.count_nonzero(np.diff(matches.starts)))
    if not 0 < wanted <= most:
        raise DataError(f"{wanted:.0f} pairs are wanted, and {most} match a query", expected=f"a number from 1 to {most}")
    low, high = 0.0, float(max(counts.max(), 1))
    if wanted == most:
        return high
    for _ in range(STEPS):
        middle = (low + high) / 2
        expected = math.fsum(keep_probabilities(matches, query_probabilities(counts, middle)))
        low, high = (middle, high) if expected < wanted else (low, middle)
    return high


@dataclasses.dataclass(frozen=True)
class OnlineBalance:
    """Balancing while pairs stream by, from counts that are known (of the same data, or of a large sample times a factor).

    Attributes:
        counts: (E,) pairs of each query.
        limit: t.
        seed: of the draws.
    """

    counts: np.ndarray
    limit: float
    seed: int = 0

    def __post_init__(self):
        require(self.limit > 0, "limit", self.limit, "a positive number")

    def probabilities(self, matches: Matches) -> np.ndarray:
        """(n,) P(keep)."""
        return keep_probabilities(matches, query_probabilities(self.counts, self.limit))

    def kept(self, matches: Matches, ids: np.ndarray, *, epoch: int = 0) -> np.ndarray:
        """(n,) whether each pair stays; in another `epoch` by other draws."""
        return draw_online(self.probabilities(matches), ids, seed=self.seed, epoch=epoch)

    def stream(self, items: Iterable[tuple[int, Sequence[int], T]], *, epoch: int = 0, at_once: int = 1024) -> Iterator[T]:
        """Of (the pair's number, its queries, anything) that which stays, in order."""
        batch: list[tuple[int, Sequence[int], T]] = []
        for item in items:
            batch.append(item)
            if len(batch) == at_once:
                yield from self._chosen(batch, epoch)
                batch = []
        yield from self._chosen(batch, epoch)

    def _chosen(self, batch: Sequence[tuple[int, Sequence[int], T]], epoch: int) -> Iterator[T]:
        if batch:
            matches = Matches.of([queries for _, queries, _ in batch])
            kept = self.kept(matches, np.array([number for number, _, _ in batch]), epoch=epoch)
            yield from (item for (_, _, item), stays in zip(batch, kept.tolist(), strict=True) if stays)


class SampledMatches:
    """The queries of up to `size` pairs of a stream, drawn by their numbers: the same ones in whatever order pairs come.

    Of 2^k-th shares of all pairs, it holds the largest that is not larger than `size`; all pairs if they are no more than that.
    """

    def __init__(self, size: int, seed: int = 0):
        self.size, self.share, self._held = size, 1.0, 0
        self._key = seed_for(seed, "balance", "sample")
        self._parts: list[tuple[np.ndarray, Matches]] = []

    def add(self, matches: Matches, ids: np.ndarray) -> None:
        """Take in further pairs."""
        self._take_in(uniforms(self._key, ids), matches)
        while self._held > self.size:
            self.share /= 2
            places, held = np.concatenate([places for places, _ in self._parts]), self.matches()
            self._parts, self._held = [], 0
            self._take_in(places, held)

    def matches(self) -> Matches:
        """Those of the sample; `share` of all."""
        return Matches.joined([matches for _, matches in self._parts])

    def _take_in(self, places: np.ndarray, matches: Matches) -> None:
        kept = places < self.share
        self._parts.append((places[kept], matches.take(kept)))
        self._held += int(kept.sum())


def _sums(matches: Matches, values: np.ndarray) -> np.ndarray:
    """(n,) sums of the values of each pair's queries."""
    sums = np.zeros(len(matches), dtype=values.dtype)
    some = np.flatnonzero(np.diff(matches.starts))
    if len(some):
        sums[some] = np.add.reduceat(values, matches.starts[some])
    return sums


def _mixed(numbers: np.ndarray) -> np.ndarray:
    numbers = (numbers ^ (numbers >> np.uint64(30))) * _FIRST
    numbers = (numbers ^ (numbers >> np.uint64(27))) * _SECOND
    return numbers ^ (numbers >> np.uint64(31))
