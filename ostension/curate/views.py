"""What a set of embeddings looks like: near-duplicates, rows far from all others, clusters with words that tell them apart.

Letters: N rows, E embedding, K neighbours, C clusters, M words.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ostension.config import require
from ostension.curate.clusters import Sample, k_means, nearest
from ostension.curate.duplicates_groups import Forest, components
from ostension.curate.duplicates_hashes import MOST_BITS, distinct, near_pairs
from ostension.errors import DataError
from ostension.store.codes import Codes
from ostension.store.exact import pairs_above, search
from ostension.store.rows import BLOCK_ROWS

if TYPE_CHECKING:
    from ostension.store.sets import EmbeddingSet

COSINE = 0.97  # of near-duplicates; what it is for a model shows in its own pictures
BITS = 4  # of 64, in which perceptual hashes of copies may differ
HASH_COSINE = 0.6  # pictures without detail have one hash whatever they show: embeddings must not speak against it
NEIGHBOURS = 10
CODED = 50_000  # rows from which making codes pays for looking up each of them
SAMPLE = 100_000  # rows that clusters are made of
TRIES = 3  # beginnings of a clustering, of which the best is kept
RELEVANCE = 0.6  # weight of a word's own probability against its lift


@dataclasses.dataclass(frozen=True)
class Group:
    """Rows that are near-duplicates, directly or through others.

    Attributes:
        rows: ascending: the first is the one to keep where one is kept.
        why: the rules that join them: bytes, hash, embedding.
        least: the least cosine of a row with the first.
    """

    rows: tuple[int, ...]
    why: tuple[str, ...]
    least: float


def duplicates(opened: EmbeddingSet, *, cosine: float | None = COSINE, bits: int | None = BITS) -> list[Group]:
    """Groups of near-duplicates, the largest first.

    Two rows are a pair if their files are the same (64 bits of a hash), if their perceptual hashes differ in at most `bits`
    and their cosine is at least 0.6, or if their cosine is at least `cosine`: all pairs, exact. Columns that the set does not
    have are not compared. Embeddings of all pairs take time with N^2.

    Args:
        cosine, bits: None to leave that rule out.

    Raises:
        ConfigError: for a threshold that cannot be meant.
    """
    require(cosine is None or -1 <= cosine <= 1.001, "cosine", cosine, "-1 to 1")
    require(bits is None or 0 <= bits <= MOST_BITS, "bits", bits, f"0 to {MOST_BITS}")
    forests: dict[str, Forest] = {}
    if "digest" in opened.columns and len(opened):
        _, first = distinct(np.asarray(opened.column("digest"), np.uint64))
        others = np.flatnonzero(first != np.arange(len(first)))
        forests["bytes"] = Forest()
        forests["bytes"].add(first[others], others, 0.0)
    if bits is not None and "perceptual" in opened.columns and len(opened):
        forests["hash"] = _by_hash(opened, bits)
    if cosine is not None and len(opened):
        forests["embedding"] = Forest()
        for pairs in pairs_above(opened.rows, cosine):
            forests["embedding"].add(pairs.a, pairs.b, 1 - pairs.scores)
    edges = {rule: forest.edges() for rule, forest in forests.items()}
    nodes, labels = components([(some.a, some.b) for some in edges.values()])
    why: dict[int, set[str]] = {}
    for rule, some in edges.items():
        for label in np.unique(labels[np.searchsorted(nodes, some.a)]).tolist():
            why.setdefault(label, set()).add(rule)
    members: dict[int, list[int]] = {}
    for node, label in zip(nodes.tolist(), labels.tolist(), strict=True):
        members.setdefault(label, []).append(node)
    groups = []
    for label, rows in members.items():
        wide = opened.rows[np.array(rows)].astype(np.float64)
        least = float((wide @ wide[0]).min())
        groups.append(Group(tuple(rows), tuple(rule for rule in forests if rule in why[label]), least))
    return sorted(groups, key=lambda group: (-len(group.rows), group.rows))


def _by_hash(opened: EmbeddingSet, bits: int) -> Forest:
    forest = Forest()
    hashes = np.asarray(opened.column("perceptual"), np.uint64)
    heads, first = distinct(hashes)
    others = np.flatnonzero(first != np.arange(len(first)))

    def add(a: np.ndarray, b: np.ndarray, distance: np.ndarray) -> None:
        for start in range(0, len(a), BLOCK_ROWS):
            part = slice(start, start + BLOCK_ROWS)
            cosines = (opened.rows[a[part]].astype(np.float32) * opened.rows[b[part]].astype(np.float32)).sum(axis=1)
            near = cosines >= HASH_COSINE
            forest.add(a[part][near], b[part][near], distance[part][near])

    add(first[others], others, np.zeros(len(others)))
    for pairs in near_pairs(hashes[heads], bits):
        add(heads[pairs.a], heads[pairs.b], pairs.distance.astype(np.float64))
    return forest


@dataclasses.dataclass(frozen=True)
class Outliers:
    """Rows by how far they are from what is nearest to them.

    Attributes:
        rows: (n,) the farthest first.
        distances: (n,) the mean of 1 - cosine to the K nearest others.
        nearest: (n,) the nearest other row.
        nearest_distance: (n,) 1 - cosine to it.
        median: the middle of that mean over all rows.
        neighbours: K.
    """

    rows: np.ndarray
    distances: np.ndarray
    nearest: np.ndarray
    nearest_distance: np.ndarray
    median: float
    neighbours: int


def outliers(opened: EmbeddingSet, count: int = 50, *, neighbours: int = NEIGHBOURS) -> Outliers:
    """The `count` rows that are farthest from their `neighbours` nearest others.

    Raises:
        DataError: for fewer than two rows.
    """
    require(neighbours >= 1, "neighbours", neighbours, "1 or more")
    require(count >= 0, "count", count, "0 or more")
    total = len(opened)
    if total < 2:
        raise DataError(f"{total} rows", source=opened.folder, expected="two or more, to compare them")
    neighbours = min(neighbours, total - 1)
    codes = Codes.of_set(opened) or (Codes.of(opened.rows) if total >= CODED else None)
    mean, closest, nearest_row = np.zeros(total), np.zeros(total), np.zeros(total, np.int64)
    longest: dict[int, float] = {}
    for start in range(0, total, 1024):
        own = np.arange(start, min(start + 1024, total))
        asked = opened.rows[start : start + len(own)].astype(np.float32)
        found = search(opened.rows, asked, neighbours + 1, codes=codes, longest=longest)
        other = found.rows != own[:, None]
        other[other.all(axis=1), -1] = False  # of many that are equal, the row itself need not be among the first
        scores = found.scores[other].reshape(len(own), neighbours)
        mean[own], closest[own] = 1 - scores.mean(axis=1), 1 - scores[:, 0]
        nearest_row[own] = found.rows[other].reshape(len(own), neighbours)[:, 0]
    order = np.argsort(-mean, kind="stable")[:count]
    return Outliers(order, mean[order], nearest_row[order], closest[order], float(np.median(mean)), neighbours)


@dataclasses.dataclass(frozen=True)
class Clusters:
    """Clusters of rows, the largest first.

    Attributes:
        of: (N,) the number of each row's cluster.
        cosines: (N,) to the cluster's centre.
        centres: (C, E) float32 unit rows.
        silhouette: how much nearer rows are to their own centre than to the next, from 0 to 1.
    """

    of: np.ndarray
    cosines: np.ndarray
    centres: np.ndarray
    silhouette: float

    def members(self, cluster: int) -> np.ndarray:
        """The rows of a cluster, the most typical first."""
        rows = np.flatnonzero(self.of == cluster)
        return rows[np.argsort(-self.cosines[rows], kind="stable")]


def clusters(opened: EmbeddingSet, count: int | None = None, *, seed: int = 0) -> Clusters:
    """Rows in clusters by spherical k-means, the same ones for the same seed.

    Args:
        count: how many; by default the number, of 4, 6, 8, 12, 16 and so on up to a tenth of the rows and 128, with the
            greatest silhouette (of centres: 1 - d / d2, with the distances to a row's own and to the next centre).

    Raises:
        DataError: for fewer than two rows.
    """
    if len(opened) < 2:
        raise DataError(f"{len(opened)} rows", source=opened.folder, expected="two or more, to make clusters of them")
    require(count is None or 1 <= count <= len(opened), "count", count, f"1 to {len(opened):,}, the number of rows")
    rows = _sample(opened, seed)
    known = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
    choices = [count] if count is not None else [n for n in known if n <= len(rows) // 10] or [2]
    best: tuple[float, np.ndarray] | None = None
    for number in choices:
        centres = max((k_means(rows, number, seed + 1000 * number + n) for n in range(TRIES)), key=lambda c: _fit(rows, c))
        quality = _silhouette(rows, centres)
        if best is None or quality > best[0]:
            best = quality, centres
    assert best is not None
    quality, centres = best
    of, cosines = np.zeros(len(opened), np.int64), np.zeros(len(opened), np.float32)
    for start, block in opened.rows.blocks():
        part = slice(start, start + len(block))
        of[part], cosines[part] = nearest(block.astype(np.float32), centres)
    sizes = np.bincount(of, minlength=len(centres))
    order = np.argsort(-sizes, kind="stable")
    order = order[sizes[order] > 0]
    rank = np.full(len(centres), -1)
    rank[order] = np.arange(len(order))
    return Clusters(rank[of], cosines, centres[order], quality)


def _sample(opened: EmbeddingSet, seed: int) -> np.ndarray:
    if len(opened) <= SAMPLE:
        return opened.rows[:].astype(np.float32)
    sample = Sample(SAMPLE, seed)
    for start, block in opened.rows.blocks():
        sample.add(np.arange(start, start + len(block)), np.asarray(block))
    return sample.rows()


def _fit(rows: np.ndarray, centres: np.ndarray) -> float:
    return float(nearest(rows, centres)[1].astype(np.float64).mean())


def _silhouette(rows: np.ndarray, centres: np.ndarray) -> float:
    if len(centres) < 2:
        return 0.0
    products = np.partition(rows @ centres.T, len(centres) - 2, axis=1)[:, -2:].astype(np.float64)
    own, other = 1 - products[:, 1], 1 - products[:, 0]
    return float(np.mean(1 - own / np.maximum(other, 1e-12)))


def words_for(
    centres: np.ndarray, vocabulary: Sequence[str], embedded: np.ndarray, scale: float, *, count: int = 3,
    sizes: np.ndarray | None = None,
) -> list[list[tuple[str, float]]]:  # fmt: skip
    """For each cluster the words that tell it from the others, the best first, with their relevance.

        relevance(w, c) = L log p(w|c) + (1 - L) log p(w|c) / p(w),   p(w|c) = softmax over words of scale * c w,   L = 0.6

    So a word that fits every cluster is not the name of any.

    Args:
        centres: (C, E) unit rows.
        embedded: (M, E) unit rows of the words.
        scale: the model's, which makes probabilities of cosines.
        sizes: (C,) rows of each cluster, for p(w); by default all count the same.

    Source: the relevance of a term to a topic, Sievert and Shirley 2014, LDAvis, section 3.1.
    """
    logits = scale * (centres.astype(np.float64) @ embedded.astype(np.float64).T)
    logits -= logits.max(axis=1, keepdims=True)
    own = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))  # log p(w|c)
    weight = np.ones(len(centres)) if sizes is None else np.asarray(sizes, np.float64)
    over = np.log(np.maximum((np.exp(own) * (weight / weight.sum())[:, None]).sum(axis=0), 1e-300))
    relevance = RELEVANCE * own + (1 - RELEVANCE) * (own - over)
    order = np.argsort(-relevance, axis=1, kind="stable")[:, :count]
    return [[(vocabulary[word], float(relevance[c, word])) for word in row] for c, row in enumerate(order.tolist())]


def default_words() -> list[str]:
    """The class names of ImageNet, CIFAR-100, SUN397 and the like that come with the package, each once."""
    from ostension.text.prompts import class_names, prompt_set_names

    wanted = ("imagenet", "cifar100", "sun397", "places365", "food101", "caltech101", "dtd", "ucf101")
    return list(dict.fromkeys(name for chosen in wanted if chosen in prompt_set_names() for name in class_names(chosen)))


def embed_words(model: Any, words: Sequence[str], template: str) -> np.ndarray:
    """(M, E) unit rows of words in a template.

    Raises:
        DataError: for no words.
    """
    from ostension.text.prompts import fill

    if not words:
        raise DataError("an empty list of words", expected="one word or name a line")
    return model.embed_texts([fill(template, word) for word in words]).detach().cpu().float().numpy()
