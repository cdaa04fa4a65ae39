"""Search in a set of embeddings: rows by vectors, with filters, and what is known of each.

Letters: N rows, E embedding, Q queries.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ostension.errors import ConfigError
from ostension.store.codes import Codes
from ostension.store.exact import search
from ostension.store.facts import Facts
from ostension.store.index import Index
from ostension.store.key import ModelKey
from ostension.store.sets import EmbeddingSet
from ostension.store.where import Where

if TYPE_CHECKING:
    from ostension.model.clip import CLIP

EXACT_TO = 10_000_000  # rows up to which a search is exact by itself
Which = Literal["auto", "exact", "approximate"]


@dataclasses.dataclass(frozen=True)
class Hit:
    """A row that was found.

    Attributes:
        id: what the set calls it.
        score: its dot product with the query; of unit rows and a unit query, the cosine.
        row: its number in the set that was searched.
        fields: what else is known of it: columns (`labels` and `texts` as lists) and the source's own fields.
    """

    id: str
    score: float
    row: int
    fields: dict[str, Any]


class Searcher:
    """Finds rows of a set. Threads may share one.

    The answers are those of float64 products over all rows. What is open stays as it was; `fresh` says whether the set has
    changed since, and `reopened` gives a searcher of what it is now.

    Codes (`codes`) make the first pass faster: those that lie beside the set are used, and `prepare` makes some in memory,
    which pays from the second search on. The answers are the same.

    An approximate index (`index`) is another matter: it is used where it is asked for, or past ten million rows if there is
    one, and `note` says so with its measured recall.

    Args:
        opened: the set, of a store or a collection.
        index: "exact", "approximate" (there must be one that is not stale), or "auto".

    Raises:
        DataError: for an index that is asked for and not there, or stale.
    """

    def __init__(self, opened: EmbeddingSet, *, index: Which = "auto"):
        self.opened = opened
        self.index: Index | None = None
        if index == "approximate" or (index == "auto" and len(opened) > EXACT_TO):
            self.index = Index.open(opened, needed=index == "approximate")
        self.facts = Facts(opened)
        self.codes = Codes.of_set(opened)
        self._longest: dict[int, float] = {}
        self._numbers: dict[str, int] | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.opened)

    def prepare(self) -> None:
        """Make codes in memory, E bytes a row, if there are none on the disk; for a process that answers many queries."""
        with self._lock:
            if self.codes is None:
                self.codes = Codes.of(self.opened.rows)

    def check(self, model: CLIP | ModelKey) -> None:
        """Refuse a model that did not make the rows.

        Raises:
            DataError: with both hashes.
        """
        made = model if isinstance(model, ModelKey) else ModelKey.of(model)
        made.check(self.opened.key, self.opened.folder)

    def find(self, vectors: Any, k: int = 10, where: Where | None = None) -> list[list[Hit]]:
        """The `k` best rows for each query, best first, equals in the order of the set; fewer where fewer pass the filter.

        Args:
            vectors: (Q, E), finite; scores are dot products, so give unit vectors for cosines.
            where: which rows may be found.

        Raises:
            DataError: for queries of another width or that are not finite.
            ConfigError: for a k below 0, or a field that the set does not have.
        """
        mask = None if where is None else where.mask(self.facts)
        if self.index is not None:
            return self.hits(*self.index.search(vectors, k, mask))
        found = search(self.opened.rows, vectors, k, mask=mask, codes=self.codes, longest=self._longest)
        return self.hits(found.rows, found.scores)

    def check_fields(self, where: Where) -> None:
        """Refuse a filter that asks for a field which the set does not have.

        Raises:
            ConfigError: with the nearest fields.
        """
        where.mask(self.facts)

    @property
    def note(self) -> str:
        """What should be said with the answers; empty for exact ones."""
        return "" if self.index is None else self.index.note

    def hits(self, rows: np.ndarray, scores: np.ndarray) -> list[list[Hit]]:
        """Rows (Q, k) with their scores as hits, each row looked up once; -1 is no row."""
        wanted = np.unique(rows[rows >= 0]) if rows.size else np.zeros(0, np.int64)
        names = self._names(wanted)
        known = dict(zip(wanted.tolist(), zip(names, self.facts.of(wanted), strict=True), strict=True))
        return [
            [Hit(known[row][0], score, row, known[row][1]) for row, score in zip(some, values, strict=True) if row >= 0]
            for some, values in zip(rows.tolist(), scores.tolist(), strict=True)
        ]

    def numbers(self, ids: Sequence[str]) -> np.ndarray:
        """The rows of ids.

        Raises:
            ConfigError: for an id that the set does not have.
        """
        with self._lock:
            if self._numbers is None:
                self._numbers = {}
                for row, name in enumerate(self.opened.ids if "id" in self.opened.columns else []):
                    self._numbers.setdefault(name, row)
        for name in ids:
            if name not in self._numbers:
                raise ConfigError(f"no row has the id {name!r}", source=self.opened.folder)
        return np.array([self._numbers[name] for name in ids], dtype=np.int64)

    def vectors(self, ids: Sequence[str]) -> np.ndarray:
        """(n, E) float32 rows of ids, to search for what is like them."""
        return self.opened.rows[self.numbers(ids)].astype(np.float32)

    @property
    def fresh(self) -> bool:
        """Whether the set is still as it was opened."""
        from ostension.store.manifest import read_manifest

        now, then = read_manifest(self.opened.folder), self.opened.manifest
        return (now.serial, now.shards, now.deleted) == (then.serial, then.shards, then.deleted)

    def reopened(self) -> Searcher:
        """A searcher of the set as it is now."""
        return Searcher(self.opened.reopen(), index="auto" if self.index is None else "approximate")

    def _names(self, rows: np.ndarray) -> list[str]:
        if "id" not in self.opened.columns:
            return [str(row) for row in rows.tolist()]
        return self.opened.column("id", rows)  # type: ignore[return-value]
