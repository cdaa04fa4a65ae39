"""Metrics as pure functions of arrays: accuracy, retrieval, calibration, and the intervals that go with them.

Letters: N samples, C classes, Q queries, G gallery, E embedding, K k values. A *rank* is the number of candidates placed
before the right one, 0 for a hit at the top. Equal scores are ordered by index: a model that gives every candidate the
same score is right only where the first one is.
"""

from __future__ import annotations

import dataclasses
import math
import statistics

import numpy as np

from ostension.errors import DataError
from ostension.runtime import numpy_generator
from ostension.shapes import Bool, Float, Int

CALIBRATION_BINS = 15  # Guo et al. 2017, the habit of the field
BOOTSTRAP_RESAMPLES = 2_000
BOOTSTRAP_COUNTS = 2**23  # counts held at a time: 64 MB
Z_95 = statistics.NormalDist().inv_cdf(0.975)
BLOCK_ROWS = 1_024  # queries scored at once, at most
BLOCK_SCORES = 2**24  # scores held at a time: 64 MB in float32


@dataclasses.dataclass(frozen=True)
class Interval:
    """A confidence interval `[low, high]` at `confidence`, with the method's name."""

    low: float
    high: float
    confidence: float
    method: str


def ranks(scores: Float[np.ndarray, "N C"], targets: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """The rank of each row's target among its scores, highest first.

    Raises:
        DataError: for a target outside 0..C-1, or a score that is not a number.
    """
    _check_scores(scores)
    if len(targets) and (targets.min() < 0 or targets.max() >= scores.shape[1]):
        raise DataError(f"targets lie in {targets.min()}..{targets.max()}", expected=f"0..{scores.shape[1] - 1}")
    own = np.take_along_axis(scores, targets[:, None], axis=1)
    before = np.arange(scores.shape[1])[None, :] < targets[:, None]
    return ((scores > own) | ((scores == own) & before)).sum(axis=1)


def top_k_accuracy(scores: Float[np.ndarray, "N C"], targets: Int[np.ndarray, " N"], k: int = 1) -> float:
    """The share of rows whose target is among the `k` highest scores."""
    return recall_at_k(ranks(scores, targets), k)


def mean_per_class_accuracy(predictions: Int[np.ndarray, " N"], targets: Int[np.ndarray, " N"]) -> float:
    """The mean over the classes present in `targets` of the share of that class predicted right (balanced accuracy)."""
    _check_some(targets)
    _, members = np.unique(targets, return_inverse=True)
    counts = np.bincount(members)
    return float(np.mean(np.bincount(members, weights=predictions == targets) / counts))


def paired_difference(ours: Bool[np.ndarray, " N"], theirs: Bool[np.ndarray, " N"], confidence: float = 0.95) -> Interval:
    """The interval of the share of `ours` minus that of `theirs` on the same samples, which is not certain where both agree.

    With b and c samples right in one only and half a sample added to each of the four cells:
    ((b - c) +- z sqrt((b + c + 1) - (b - c)^2 / (N + 2))) / (N + 2).

    Source: Agresti and Min 2005, Simple improved confidence intervals for comparing matched proportions.
    """
    _check_some(ours)
    z = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
    b, c, count = int((ours & ~theirs).sum()), int((theirs & ~ours).sum()), len(ours) + 2
    half = z * math.sqrt(b + c + 1 - (b - c) ** 2 / count)
    return Interval(max(-1.0, (b - c - half) / count), min(1.0, (b - c + half) / count), confidence, "agresti-min")


def class_mean_error(values: np.ndarray, targets: Int[np.ndarray, " N"]) -> float:
    """The standard error of the mean over classes of the mean of per-sample `values` (N,).

    sqrt(sum_c s_c^2 / n_c) / C with the variance s_c^2 within class c. A class of one sample, which tells nothing of it, gets
    that of all samples; and the error is never below that of a plain mean of all samples, because a few samples a class that
    happen to be alike are not certain either.
    """
    _check_some(values)
    numbers = np.asarray(values, dtype=np.float64)
    _, members, sizes = np.unique(targets, return_inverse=True, return_counts=True)
    means = np.bincount(members, weights=numbers) / sizes
    squares = np.bincount(members, weights=(numbers - means[members]) ** 2)
    among_all = float(numbers.var())
    variances = np.where(sizes > 1, squares / np.maximum(sizes - 1, 1), among_all)
    return float(np.sqrt(max((variances / sizes).sum() / len(sizes) ** 2, among_all / len(numbers))))


def macro_f1_present(predictions: Int[np.ndarray, " N"], targets: Int[np.ndarray, " N"]) -> float:
    """The mean over the classes present in `targets` of F1 = 2 TP / (2 TP + FP + FN), as WILDS scores iWildCam."""
    _check_some(targets)
    classes = int(max(targets.max(), predictions.max())) + 1
    right = np.bincount(targets[predictions == targets], minlength=classes)
    both = np.bincount(targets, minlength=classes) + np.bincount(predictions, minlength=classes)
    present = np.unique(targets)
    return float(np.mean(2 * right[present] / both[present]))


def confusion(predictions: Int[np.ndarray, " N"], targets: Int[np.ndarray, " N"]) -> Int[np.ndarray, "K 3"]:
    """Rows (true class, predicted class, count) of all pairs that occur, in the order of the classes."""
    pairs, counts = np.unique(np.stack([targets, predictions], axis=1), axis=0, return_counts=True)
    return np.column_stack([pairs, counts])


def retrieval_ranks(
    queries: Float[np.ndarray, "Q E"],
    gallery: Float[np.ndarray, "G E"],
    query_groups: Int[np.ndarray, " Q"],
    gallery_groups: Int[np.ndarray, " G"],
    *,
    block_rows: int | None = None,
) -> Int[np.ndarray, " Q"]:
    """The rank of the best positive of each query, where positives are the gallery rows of the query's group.

    Five captions of one image share its group: an image is found if *any* of them is (the Karpathy protocol). Scores are
    inner products, computed some queries at a time (`block_rows`, or as many as make 64 MB of scores), so that memory does not
    grow with Q x G.

    Raises:
        DataError: if a query has no positive in the gallery, or a score is not a number.
    """
    order = np.argsort(gallery_groups, kind="stable")
    ordered = gallery_groups[order]
    first, end = (np.searchsorted(ordered, query_groups, side=side) for side in ("left", "right"))
    if (lonely := first == end).any():
        raise DataError(f"query {int(lonely.argmax())} has no positive in the gallery")
    found = np.empty(len(queries), dtype=np.int64)
    step = block_rows or max(1, min(BLOCK_ROWS, BLOCK_SCORES // len(gallery)))
    for start in range(0, len(queries), step):
        rows = slice(start, start + step)
        scores = queries[rows] @ gallery.T
        _check_scores(scores)
        index = np.arange(len(scores))
        best = order[first[rows]]
        own = scores[index, best]
        for further in range(1, int((end[rows] - first[rows]).max())):
            has = first[rows] + further < end[rows]
            column = np.where(has, order[np.minimum(first[rows] + further, len(order) - 1)], best)
            higher = scores[index, column] > own
            best, own = np.where(higher, column, best), np.where(higher, scores[index, column], own)
        found[rows] = (scores > own[:, None]).sum(axis=1)
        equal = scores == own[:, None]
        for row in np.flatnonzero(equal.sum(axis=1) > 1):
            found[start + row] += int(equal[row, : best[row]].sum())
    return found


def recall_at_k(found: Int[np.ndarray, " N"], k: int) -> float:
    """The share of ranks below `k`."""
    _check_some(found)
    if k < 1:
        raise DataError(f"k is {k}", expected="1 or more")
    return float(np.mean(found < k))


def chance_recall(group_sizes: Int[np.ndarray, " Q"], gallery_size: int, k: int) -> float:
    """Recall@k of a random order: the mean over queries with p positives of 1 - C(G - p, k) / C(G, k)."""
    _check_some(group_sizes)
    k = min(k, gallery_size)
    misses = [math.comb(gallery_size - int(size), k) / math.comb(gallery_size, k) for size in np.unique(group_sizes)]
    share = np.unique(group_sizes, return_counts=True)[1] / len(group_sizes)
    return float(1 - np.dot(share, misses))


def reliability(
    confidences: Float[np.ndarray, " N"], correct: Bool[np.ndarray, " N"], bins: int = CALIBRATION_BINS
) -> list[dict[str, float]]:
    """A reliability table: for each non-empty equal-width bin of confidence (low, high], its mean, accuracy and count."""
    _check_some(confidences)
    if confidences.min() < 0 or confidences.max() > 1:
        raise DataError(f"confidences lie in {confidences.min()}..{confidences.max()}", expected="probabilities, 0..1")
    edges = np.linspace(0, 1, bins + 1)
    members = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, bins - 1)
    table = []
    for index in np.unique(members):
        chosen = members == index
        table.append({
            "low": float(edges[index]), "high": float(edges[index + 1]), "count": int(chosen.sum()),
            "confidence": float(confidences[chosen].mean()), "accuracy": float(correct[chosen].mean()),
        })  # fmt: skip
    return table


def expected_calibration_error(
    confidences: Float[np.ndarray, " N"], correct: Bool[np.ndarray, " N"], bins: int = CALIBRATION_BINS
) -> float:
    """ECE = sum over bins b of (n_b / N) |accuracy_b - confidence_b|, equal-width bins (Guo et al. 2017, equation 3)."""
    table = reliability(confidences, correct, bins)
    return sum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in table) / len(confidences)


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion: (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)."""
    if not 0 <= successes <= trials or trials == 0:
        raise DataError(f"{successes} successes in {trials} trials", expected="0 <= successes <= trials, at least one trial")
    return wilson_of(successes / trials, float(trials), confidence)


def wilson_of(share: float, trials: float, confidence: float = 0.95) -> Interval:
    """Wilson's interval around a share that is as sure as one of `trials` samples, perhaps no whole number of them."""
    z = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
    z2n = z * z / trials
    centre = (share + z2n / 2) / (1 + z2n)
    half = math.sqrt(share * (1 - share) * z2n + z2n * z2n / 4) / (1 + z2n)
    # At 0 and 1 the exact ends are 0 and 1; rounding must not move them past the estimate.
    low = 0.0 if share == 0 else max(0.0, centre - half)
    high = 1.0 if share == 1 else min(1.0, centre + half)
    return Interval(low, high, confidence, "wilson")


def bootstrap_interval(
    values: Float[np.ndarray, " N"], *, seed: int, confidence: float = 0.95, resamples: int = BOOTSTRAP_RESAMPLES
) -> Interval:
    """A percentile bootstrap interval of the mean of per-sample `values`.

    For the difference of two systems on the same samples pass the differences: that is the paired bootstrap.
    """
    _check_some(values)
    generator = numpy_generator(seed, "bootstrap")
    # N draws of N samples are a multinomial draw of counts; equal values (right and wrong, say) share one count.
    distinct, counts = np.unique(values.astype(np.float64), return_counts=True)
    shares = counts / len(values)
    rows = max(1, BOOTSTRAP_COUNTS // len(distinct))
    means = [
        generator.multinomial(len(values), shares, size=min(rows, resamples - start)) @ distinct / len(values)
        for start in range(0, resamples, rows)
    ]
    return percentile_interval(np.concatenate(means), confidence)


def cluster_interval(
    hits: Bool[np.ndarray, " N"], clusters: Int[np.ndarray, " N"], *, seed: int, confidence: float = 0.95
) -> Interval:
    """A bootstrap interval of the share of true values, drawing whole clusters: the captions of one image, say."""
    _check_some(hits)
    _, members = np.unique(clusters, return_inverse=True)
    pairs = np.stack([np.bincount(members, weights=hits), np.bincount(members)], axis=1)
    distinct, counts = np.unique(pairs, axis=0, return_counts=True)
    generator = numpy_generator(seed, "bootstrap")
    drawn = generator.multinomial(len(pairs), counts / len(pairs), size=BOOTSTRAP_RESAMPLES) @ distinct
    return percentile_interval(drawn[:, 0] / drawn[:, 1], confidence)


def percentile_interval(resampled: Float[np.ndarray, " R"], confidence: float = 0.95) -> Interval:
    """The middle `confidence` of a statistic's values on bootstrap resamples; values that are not a number are left out.

    Raises:
        DataError: if no value is a number, as of very few samples.
    """
    tail, known = (1 - confidence) / 2, resampled[~np.isnan(resampled)]
    if len(known) == 0:
        raise DataError("no resample has a value", expected="more samples")
    low, high = np.quantile(known, [tail, 1 - tail])
    return Interval(float(low), float(high), confidence, "bootstrap")


def _check_scores(scores: np.ndarray) -> None:
    if np.isnan(scores).any():
        raise DataError("a score is not a number", expected="finite scores")


def _check_some(values: np.ndarray) -> None:
    if len(values) == 0:
        raise DataError("there are no samples to measure", expected="at least one")
