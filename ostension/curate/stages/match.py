"""Find each query's pairs by sub-string matching; drop pairs that match none.

Columns: "queries", the ascending numbers of a pair's queries, each once for all its captions. In the stage's folder then lies
queries.parquet: every query with the number of pairs that match it (before anything is dropped afterwards).

Memory: the table of the queries in each process (about 100 bytes a query), and one count a query.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from ostension.curate.base import Columns, Part, Stage
from ostension.curate.matching import Matcher, Matches, Rules
from ostension.errors import require_extra
from ostension.files import atomic_path

if TYPE_CHECKING:
    from ostension.curate.queries import Queries

NO_QUERY = "no query"
COUNTED = "queries.parquet"
HEAD = 20  # queries that a report names
MOST = 50  # matches of a pair that are counted apart; more are counted as this many


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """How captions are matched.

    Attributes:
        queries: the list: .parquet of `ostension curate queries`, .txt with one a line, .json, .csv or .tsv.
        case: "kept" tells capitals apart, as published; "folded" does not.
        spaces: "kept" leaves several spaces several, as published; "joined" makes them one before captions are searched.
        unmatched: what becomes of pairs that no query matches: "drop" or "keep".
    """

    queries: Path
    case: Literal["kept", "folded"] = "kept"
    spaces: Literal["kept", "joined"] = "kept"
    unmatched: Literal["drop", "keep"] = "drop"


class Match(Stage):
    """All queries in all captions, in one pass."""

    name, config_type = "match", Config
    numbers: ClassVar[Mapping[str, tuple[str, str]]] = {"queries": (COUNTED, "query")}

    def check(self) -> None:
        _ = self._queries

    def inputs(self) -> dict[str, Any]:
        return {"queries": self._queries.fingerprint()}

    def map(self, part: Part) -> Columns:
        matches = self._matcher.match(part.texts)
        some = np.diff(matches.starts) > 0
        reason = NO_QUERY if self.config.unmatched == "drop" else None
        return {"dropped": [None if found else reason for found in some.tolist()], "queries": matches.to_arrow()}

    def reduce(self, parts: Iterable[tuple[Part, Any]], folder: Path) -> dict[str, Any]:
        texts = self._queries.texts
        counts, per_pair = np.zeros(len(texts), dtype=np.int64), np.zeros(MOST + 1, dtype=np.int64)
        for _, table in parts:
            matches = Matches.from_arrow(table["queries"].combine_chunks())
            counts += np.bincount(matches.entries, minlength=len(texts))
            per_pair += np.bincount(np.minimum(np.diff(matches.starts), MOST), minlength=MOST + 1)
        same_as = self._matcher.same_as
        arrow, parquet = require_extra("pyarrow", "curate"), require_extra("pyarrow.parquet", "curate")
        columns = {"query": texts, "origin": self._queries.origins, "pairs": counts, "same_as": same_as}
        with atomic_path(folder / COUNTED) as temporary:
            parquet.write_table(arrow.table(columns), temporary, compression="zstd")
        head = np.argsort(-counts, kind="stable")[:HEAD]
        return {
            "queries": len(texts),
            "same_as_another": int((same_as != np.arange(len(texts))).sum()),
            "matched_queries": int((counts > 0).sum()),
            "matches": int(counts.sum()),
            "pairs": int(per_pair.sum()),
            "matched_pairs": int(per_pair[1:].sum()),
            "pairs_by_matches": np.trim_zeros(per_pair, "b").tolist(),
            "head": [[texts[number], int(counts[number])] for number in head if counts[number]],
        }

    def figures(self, facts: Mapping[str, Any], folder: Path) -> list[Any]:
        from ostension.curate.balance_figures import match_figures

        return match_figures(facts, folder)

    @functools.cached_property
    def _queries(self) -> Queries:
        return _read(self.config.queries, _changed(self.config.queries))

    @functools.cached_property
    def _matcher(self) -> Matcher:
        rules = Rules(case=self.config.case, spaces=self.config.spaces)
        return _made(self.config.queries, _changed(self.config.queries), rules)


def _changed(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0  # a missing file is told by who reads it


# One list and one table a process, whoever asks for them.
@functools.lru_cache(maxsize=1)
def _read(path: Path, changed: int) -> Queries:
    from ostension.curate.queries import read_queries

    return read_queries(path)


@functools.lru_cache(maxsize=1)
def _made(path: Path, changed: int, rules: Rules) -> Matcher:
    return Matcher(_read(path, changed).texts, rules)
