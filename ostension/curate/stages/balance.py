"""Keep about t pairs a query at most: frequent queries thin out their pairs, rare ones keep theirs.

Columns: "keep", the probability of staying, 1 - prod(1 - min(1, t / c_e)) over a pair's queries e, where c_e counts the pairs
that are still there. So this comes last, after everything else that drops pairs. Pairs without queries, which `match` can be
told to keep, stay. In the stage's folder then lies counts.parquet: each query's pairs before, expected and after.

Draws are functions of the seed and of a pair's place in the source, so nothing depends on workers or on the part size's files.
Memory: three numbers a query; for `pairs`, the queries of up to `sample` pairs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ostension.config import require
from ostension.curate import balancing
from ostension.curate.base import Columns, Part, Stage
from ostension.curate.matching import Matches
from ostension.errors import ConfigError, DataError, require_extra
from ostension.files import atomic_path

OVER = "over the limit"
COUNTS = "counts.parquet"
QUERIES = "match.queries"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """How many pairs a query keeps; one of `limit`, `pairs` and `tail_share` says it.

    Attributes:
        limit: t. The paper's is 20,000 for 400 million pairs; it grows with the set.
        pairs: how many pairs are to stay on average; t is found from it.
        tail_share: of all matches, the share that queries with fewer than t pairs have; t is the count that comes nearest. The
            same share makes sets of different sizes, or of different languages, alike.
        draw: "offline" draws for each query of a pair and keeps it if any succeeds, as published; "online" draws once against
            the probability. Both keep a pair equally often. "later" drops nothing: training draws in each epoch, told
            `batches.keep = "balance.keep"`.
        seed: of the draws.
        sample: pairs from which t is found, for `pairs`; exact where there are no more.
    """

    limit: float | None = None
    pairs: int | None = None
    tail_share: float | None = None
    draw: Literal["offline", "online", "later"] = "offline"
    seed: int = 0
    sample: int = 500_000

    def __post_init__(self):
        given = [name for name in ("limit", "pairs", "tail_share") if getattr(self, name) is not None]
        if len(given) != 1:
            what = " and ".join(given) if given else "none of limit, pairs and tail_share"
            raise ConfigError(f"balance has {what}", expected="one of them")
        for name in ("limit", "pairs"):
            value = getattr(self, name)
            require(value is None or 0 < value < math.inf, name, value, "a positive number")
        require(self.tail_share is None or 0 < self.tail_share < 1, "tail_share", self.tail_share, "between 0 and 1")
        require(self.sample >= 1, "sample", self.sample, "1 or more")


class Balance(Stage):
    """Counts of what is left, t, and for each pair a draw."""

    name, config_type = "balance", Config
    last: ClassVar[bool] = True

    def map(self, part: Part) -> Columns:
        return {}  # what is looked at as a whole are the columns of `match`

    def reduce(self, parts: Iterable[tuple[Part, Any]], folder: Path) -> dict[str, Any]:
        sample = balancing.SampledMatches(self.config.sample, self.config.seed)
        counts, pairs, matched = np.zeros(0, dtype=np.int64), 0, 0
        for part, _ in parts:
            matches = Matches.from_arrow(part.column(QUERIES))
            found = np.bincount(matches.entries, minlength=len(counts))
            found[: len(counts)] += counts
            counts, pairs = found, pairs + len(matches)
            matched += int(np.count_nonzero(np.diff(matches.starts)))
            if self.config.pairs is not None:
                sample.add(matches, part.ids())
        limit = self._limit(counts, matched, pairs - matched, sample)

        after, expected = np.zeros(len(counts)), np.zeros(len(counts))
        expected_pairs, kept_pairs = 0.0, 0
        for part, _ in parts:
            matches = Matches.from_arrow(part.column(QUERIES))
            keep, stays = self._drawn(matches, part.ids(), counts, limit)
            expected += balancing.expected_counts(matches, keep, len(counts))
            # What training will draw is known on average only.
            after += balancing.expected_counts(matches, keep if self.config.draw == "later" else stays, len(counts))
            expected_pairs += float(keep.sum())
            kept_pairs += int(stays.sum())
        _save(folder / COUNTS, {"pairs": counts, "expected": expected, "after": np.rint(after).astype(np.int64)})
        return {
            "limit": limit,
            "draw": self.config.draw,
            "limit_is_exact": self.config.pairs is None or sample.share == 1.0,
            "tail_share": balancing.tail_share(counts, limit),
            "queries_over_limit": int((counts > limit).sum()),
            "pairs": pairs,
            "pairs_without_query": pairs - matched,
            "matches": int(counts.sum()),
            "matches_after": round(float(after.sum())),
            "expected_pairs": expected_pairs,
            "kept_pairs": kept_pairs,
        }

    def decide(self, part: Part, mapped: Any, facts: Mapping[str, Any], folder: Path) -> Columns:
        parquet = require_extra("pyarrow.parquet", "curate")
        counts = parquet.read_table(folder / COUNTS, columns=["pairs"])["pairs"].to_numpy()
        keep, stays = self._drawn(Matches.from_arrow(part.column(QUERIES)), part.ids(), counts, facts["limit"])
        return {"dropped": [None if stay else OVER for stay in stays.tolist()], "keep": keep}

    def figures(self, facts: Mapping[str, Any], folder: Path) -> list[Any]:
        from ostension.curate.balance_figures import balance_figures

        return balance_figures(facts, folder)

    def _limit(self, counts: np.ndarray, matched: int, unmatched: int, sample: balancing.SampledMatches) -> float:
        """The limit that the settings ask for, when `matched` pairs are drawn and `unmatched` stay anyhow."""
        if self.config.limit is not None:
            return self.config.limit
        if self.config.tail_share is not None:
            return balancing.limit_for_tail(counts, self.config.tail_share)
        wanted = (self.config.pairs or 0) - unmatched
        if not 0 < wanted <= matched:
            expected = f"a number above {unmatched:,}, which no query matches, up to {unmatched + matched:,}"
            raise DataError(f"balance.pairs is {self.config.pairs:,}", expected=expected)
        held = sample.matches()
        # Of a sample, the same share is wanted.
        share = np.count_nonzero(np.diff(held.starts)) / matched
        return balancing.limit_for_pairs(held, counts, wanted * share)

    def _drawn(self, matches: Matches, ids: np.ndarray, counts: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
        """(n,) probabilities of staying, and whether each pair stays."""
        probabilities = balancing.query_probabilities(counts, limit)
        keep = balancing.keep_probabilities(matches, probabilities)
        if self.config.draw == "later":
            stays = np.ones(len(matches), dtype=bool)
        elif self.config.draw == "offline":
            stays = balancing.draw_offline(matches, probabilities, ids, seed=self.config.seed)
        else:
            stays = balancing.draw_online(keep, ids, seed=self.config.seed)
        free = np.diff(matches.starts) == 0  # `match` was told to keep them
        return np.where(free, 1.0, keep), stays | free


def _save(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    arrow, parquet = require_extra("pyarrow", "curate"), require_extra("pyarrow.parquet", "curate")
    with atomic_path(path) as temporary:
        parquet.write_table(arrow.table(dict(columns)), temporary, compression="zstd")
