"""An approximate index beside a set, for more rows than exact search is made for: faiss, with its recall measured.

The index proposes rows, whose products are then computed in float64: so scores are those of an exact search, and only which
rows are found is approximate. How often it finds what exact search finds is measured when it is built, on queries of three
sorts: rows of the set, disturbed ones, and directions that have the spread of rows and nothing else of them, since words lie
as far from pictures as these (measured on real ones: benchmarks/search_recall.py). The recall is that of the worst sort, and
the least effort that reaches the wanted one is kept.

A filter that few rows pass is answered exactly, which costs less; for others the effort grows as the share that passes
shrinks. Where an index proposes too few rows all the same, that query is answered exactly, too.

| kind | what it is | memory a row | for |
|---|---|---|---|
| flat | rows in 8 bits each number, no structure | E bytes | a test |
| hnsw | a graph of neighbours over rows in 8 bits | E + 270 bytes | tens of millions, fast |
| ivf | cells, rows in 8 bits | E + 8 bytes | as many |
| ivfpq | cells, rows in E / 4 bytes and fewer | E / 4 + 8 bytes | hundreds of millions |

It lies in `index/` beside the set's files, with the names and hashes of the shards that it was made of. Where these are not
the set's any more it is stale, and refused. Rows that were deleted since are only left out of the answers.

Letters: N rows as stored, E embedding, Q queries, k answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ostension.config import require
from ostension.errors import DataError, require_extra
from ostension.files import atomic_path, folder_lock, read_json, write_json
from ostension.runtime import numpy_generator
from ostension.store.exact import as_queries, search
from ostension.store.rows import BLOCK_ROWS
from ostension.store.sets import EmbeddingSet

Kind = Literal["flat", "hnsw", "ivf", "ivfpq"]
EXTRA, FOLDER, FACTS, FILE = "ann", "index", "index.json", "index.faiss"
FORMAT = "ostension index 1"
SAMPLE = 100  # queries of each sort that recall is measured with
K = 10
TRAIN = 200_000  # rows that cells are made of
MORE = 4  # candidates for each answer, which products in float64 then rank
EFFORTS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
FEW = 100_000  # rows that pass a filter up to which they are all compared: tens of milliseconds


@dataclasses.dataclass(frozen=True)
class Built:
    """What is known of an index: its kind, effort (cells or nodes that a search visits), and recall@10 on the worst sort of
    the queries that it was measured with."""

    kind: Kind
    effort: int
    recall: float
    queries: int
    rows: int


class Index:
    """An index that is open."""

    def __init__(self, opened: EmbeddingSet, built: Built, index: Any):
        self.opened, self.built, self._index = opened, built, index

    @property
    def note(self) -> str:
        """What a user should know of the answers."""
        built = self.built
        return f"approximate: {built.kind} index, measured recall@{K} {built.recall:.3f} on {built.queries} queries"

    @staticmethod
    def open(opened: EmbeddingSet, *, needed: bool = True) -> Index | None:
        """The index beside a set.

        Args:
            needed: whether it is an error that there is none.

        Raises:
            DataError: if it is stale or damaged, or needed and not there.
            MissingExtraError: if faiss is not installed.
        """
        folder = opened.folder / FOLDER
        if not (folder / FACTS).is_file():
            if needed:
                raise DataError("no approximate index here", source=opened.folder, fix="make one: ostension index build STORE")
            return None
        facts = read_json(folder / FACTS)
        try:
            built, shards, wanted = Built(**facts["built"]), facts["shards"], facts["bytes"]
            has = sum(int(shard[1]) for shard in shards)
        except (KeyError, TypeError, ValueError, IndexError):
            facts = None
        if facts is None or facts.get("format") != FORMAT:
            raise DataError("not the facts of an index", source=folder / FACTS, fix="build it again")
        if shards != _shards(opened):
            now = opened.manifest.num_stored
            fix = "bring it up to date: ostension index build STORE"
            raise DataError(f"a stale index, of {has:,} rows", source=folder, expected=f"of the {now:,} rows now", fix=fix)
        size = (folder / FILE).stat().st_size if (folder / FILE).is_file() else 0
        if size != wanted:
            raise DataError(f"has {size:,} bytes", source=folder / FILE, expected=f"{wanted}", fix="build it again")
        faiss = require_extra("faiss", EXTRA)
        try:
            index = faiss.read_index(str(folder / FILE), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError:
            raise DataError("cannot be read as an index", source=folder / FILE, fix="build it again") from None
        if (index.ntotal, index.d) != (opened.manifest.num_stored, opened.width):
            raise DataError(f"an index of {index.ntotal:,} x {index.d}", source=folder / FILE, fix="build it again")
        return Index(opened, built, index)

    @staticmethod
    def build(opened: EmbeddingSet, kind: Kind = "hnsw", *, recall: float = 0.95, seed: int = 0) -> Index:
        """Make an index, measure it, and put it beside the set in place of an older one.

        Args:
            recall: wanted recall@10; the least effort that reaches it is kept, else the greatest.

        Raises:
            DataError: for a set without rows, or a disk that does not take it.
        """
        require(kind in get_args(Kind), "kind", kind, f"one of {', '.join(get_args(Kind))}")
        require(0 < recall <= 1, "recall", recall, "above 0 and up to 1")
        if not len(opened):
            raise DataError("there are no rows to index", source=opened.folder)
        index = _made(opened, kind, seed)
        queries = probes(opened, seed)
        exact = search(opened.rows, queries, K).rows
        effort, reached = 0, 0.0
        for effort in EFFORTS if kind != "flat" else (0,):
            found, _ = Index(opened, Built(kind, effort, 0, 0, 0), index).search(queries, K)
            reached = least_recall(found, exact)
            if reached >= recall:
                break
        built = Built(kind, effort, reached, len(queries), opened.manifest.num_stored)
        _write(opened, built, index)
        return Index(opened, built, index)

    def search(self, vectors: Any, k: int, mask: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(Q, k) row numbers, -1 where fewer were found, and their float64 products.

        Args:
            mask: (rows,) which may be found; the index passes over all others.

        Raises:
            DataError: for queries that do not fit.
        """
        faiss = require_extra("faiss", EXTRA)
        wanted = as_queries(vectors, self.opened.rows)
        available = len(self.opened) if mask is None else int(mask.sum())
        k = min(k, available)
        if not k or not len(wanted):
            return np.zeros((len(wanted), 0), np.int64), np.zeros((len(wanted), 0))
        if mask is not None and available <= min(FEW, len(self.opened) - 1):
            return self._exactly(wanted, k, mask)
        stored = np.flatnonzero(np.ones(len(self.opened), bool) if mask is None else mask)
        stored = self.opened.rows.stored(stored)
        selector = None
        if len(stored) < self.built_rows:
            bits = np.zeros(self.built_rows, bool)
            bits[stored] = True
            packed = np.packbits(bits, bitorder="little")
            selector = faiss.IDSelectorBitmap(packed)
        parameters = self._parameters(faiss, k, selector, len(stored) / self.built_rows)
        _, found = self._index.search(wanted, min(k * MORE, available), params=parameters)
        rows, scores = self._ranked(wanted, found, k)
        short = np.flatnonzero((rows < 0).any(axis=1))
        if len(short):
            rows[short], scores[short] = self._exactly(wanted[short], k, mask)
        return rows, scores

    def _exactly(self, queries: np.ndarray, k: int, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        found = search(self.opened.rows, queries, k, mask=mask)
        return found.rows, found.scores

    @property
    def built_rows(self) -> int:
        return int(self._index.ntotal)

    def _parameters(self, faiss: Any, k: int, selector: Any, share: float) -> Any:
        """What faiss is told; `share` of the rows may be found."""
        effort = self.built.effort
        if self.built.kind == "hnsw":
            return faiss.SearchParametersHNSW(efSearch=min(int(max(effort, k * MORE) / share), self.built_rows), sel=selector)
        if self.built.kind == "flat":
            return faiss.SearchParameters(sel=selector)
        return faiss.SearchParametersIVF(nprobe=min(int(effort / share), self._index.nlist), sel=selector)

    def _ranked(self, queries: np.ndarray, found: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        live = self.opened.rows.live
        rows = np.full(found.shape, -1, np.int64)
        here = found >= 0
        rows[here] = found[here] if live is None else np.searchsorted(live, found[here])
        scores = np.full(found.shape, -np.inf)
        for query in range(len(queries)):
            mine = rows[query][here[query]]
            wide = self.opened.rows[mine].astype(np.float64) * queries[query].astype(np.float64)
            scores[query, here[query]] = wide.sum(axis=1)
        order = np.lexsort((rows, -scores), axis=1)[:, :k]
        return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)


def _made(opened: EmbeddingSet, kind: Kind, seed: int) -> Any:
    faiss = require_extra("faiss", EXTRA)
    width, count = opened.width, opened.manifest.num_stored
    product = faiss.METRIC_INNER_PRODUCT
    cells = max(1, min(65536, int(4 * count**0.5), count // 39))
    if kind == "flat":
        index: Any = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_8bit, product)
    elif kind == "hnsw":
        index = faiss.IndexHNSWSQ(width, faiss.ScalarQuantizer.QT_8bit, 32, product)
        index.hnsw.efConstruction = 80
    elif kind == "ivf":
        coarse = faiss.IndexFlatIP(width)
        index = faiss.IndexIVFScalarQuantizer(coarse, width, cells, faiss.ScalarQuantizer.QT_8bit, product)
        index.own_fields = True
        coarse.this.disown()
    else:
        pieces = next((n for n in range(max(1, width // 4), 0, -1) if width % n == 0), 1)
        require(count >= 256, "rows", count, "256 or more for a kind with codes of parts")
        coarse = faiss.IndexFlatIP(width)
        index = faiss.IndexIVFPQ(coarse, width, cells, pieces, 8, product)
        index.own_fields = True
        coarse.this.disown()
    generator = numpy_generator(seed, "index")
    if not index.is_trained:
        size = min(len(opened), TRAIN)
        chosen = np.sort(generator.choice(len(opened), size, replace=False))
        index.train(opened.rows[chosen].astype(np.float32))
    for part in range(len(opened.manifest.shards)):
        rows = opened.rows.part(part)
        for start in range(0, len(rows), BLOCK_ROWS):
            index.add(np.ascontiguousarray(rows[start : start + BLOCK_ROWS], np.float32))
    return index


def probes(opened: EmbeddingSet, seed: int) -> np.ndarray:
    """Queries to measure with, a third of each sort: rows; rows disturbed by as much as rows differ from their mean; and such
    disturbances alone, which lie as far from all rows as words do from pictures."""
    generator = numpy_generator(seed, "index probes")
    chosen = np.sort(generator.choice(len(opened), min(SAMPLE, len(opened)), replace=False))
    rows = opened.rows[chosen].astype(np.float64)
    near, far = (generator.standard_normal(rows.shape) * rows.std(axis=0) for _ in range(2))
    if len(opened) == 1:
        far = generator.standard_normal(rows.shape)
    asked = np.concatenate([rows, rows + near, far])
    return (asked / np.maximum(np.linalg.norm(asked, axis=1, keepdims=True), 1e-30)).astype(np.float32)


def least_recall(found: Sequence[Any] | np.ndarray, exact: np.ndarray) -> float:
    """The recall on that sort of `probes` on which it is least."""
    each = np.array([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, exact, strict=True)])
    return float(min(sort.mean() for sort in np.split(each, 3)))


def _shards(opened: EmbeddingSet) -> list[list[Any]]:
    return [[shard.name, shard.rows, shard.rows_sha256] for shard in opened.manifest.shards]


def _write(opened: EmbeddingSet, built: Built, index: Any) -> None:
    faiss = require_extra("faiss", EXTRA)
    folder = opened.folder / FOLDER
    try:
        folder.mkdir(exist_ok=True)
        with folder_lock(folder):
            (folder / FACTS).unlink(missing_ok=True)  # a kill from here on leaves no index, rather than a wrong one
            with atomic_path(folder / FILE) as temporary:
                faiss.write_index(index, str(temporary))
            facts = {"format": FORMAT, "built": dataclasses.asdict(built), "shards": _shards(opened)}
            write_json(folder / FACTS, {**facts, "bytes": (folder / FILE).stat().st_size})
    except (OSError, RuntimeError) as error:
        raise DataError(f"cannot be written: {error}", source=folder, fix="make room") from None


def remove(folder: Path) -> bool:
    """Remove the index of a set's folder; gives whether there was one."""
    found = (folder / FOLDER / FACTS).is_file()
    for name in (FACTS, FILE):
        (folder / FOLDER / name).unlink(missing_ok=True)
    return found
