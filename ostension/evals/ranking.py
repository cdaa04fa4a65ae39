"""Metrics of rankings: average precision, VOC's 11-point average precision, ROC AUC, and their bootstrap.

Each takes the scores of N samples for one label and says how well the samples that have it are ranked. Samples may have
weights, whole numbers of times that they count; with many rows of weights at once that is the bootstrap, sorted once.

Letters: N samples, R rows of weights, C labels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ostension.errors import DataError
from ostension.runtime import numpy_generator
from ostension.shapes import Bool, Float, Int

RESAMPLES = 1_000
COUNTS = 2**22  # weights held at a time: 16 MB, and as much for each of a few sums of them

# One value for each row of weights; not a number where a row leaves no positive or, for the AUC, no negative.
Ranking = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def average_precision(scores: Float[np.ndarray, " N"], positive: Bool[np.ndarray, " N"]) -> float:
    """AP = sum over thresholds of (R_i - R_{i-1}) P_i, precision P and recall R without interpolation.

    Equal scores are one threshold, so their order does not matter.

    Raises:
        DataError: without a positive sample, or for a score that is not a number.
    """
    return _one(average_precision_of, scores, positive)


def eleven_point_precision(scores: Float[np.ndarray, " N"], positive: Bool[np.ndarray, " N"]) -> float:
    """AP = 1/11 sum over t = 0, 0.1, ..., 1 of the largest precision at a recall of t or more (VOC 2007).

    Equal scores are ranked by index, as the development kit's stable sort does. Recalls are compared with t exactly (in
    whole numbers), where the kit's floating-point steps may miss one that is equal.

    Raises:
        DataError: without a positive sample, or for a score that is not a number.

    Source: Everingham et al. 2010, section 4.2; VOCevalcls.m of the 2007 development kit.
    """
    return _one(eleven_point_of, scores, positive)


def roc_auc(scores: Float[np.ndarray, " N"], positive: Bool[np.ndarray, " N"]) -> float:
    """The chance that a positive sample is scored above a negative one; equal scores count one half.

    Raises:
        DataError: without a positive or without a negative sample, or for a score that is not a number.
    """
    return _one(roc_auc_of, scores, positive)


def mean_over_labels(
    ranking: Ranking, scores: Float[np.ndarray, "N C"], positive: Bool[np.ndarray, "N C"]
) -> tuple[float, dict[int, float]]:
    """The mean of a ranking metric over labels, and its value for each label.

    A label that no sample has (or, for the AUC, that all have) has no value and is left out of the mean.

    Raises:
        DataError: if no label has a value, or for a score that is not a number.
    """
    if np.isnan(scores).any():
        raise DataError("a score is not a number", expected="finite scores")
    every = np.ones((1, len(scores)), dtype=np.int32)
    values = {label: float(ranking(scores[:, label], positive[:, label], every)[0]) for label in range(scores.shape[1])}
    values = {label: value for label, value in values.items() if not np.isnan(value)}
    if not values:
        raise DataError("no label has both samples with it and without it", expected="one such label at least")
    return float(np.mean(list(values.values()))), values


def resampled_means(
    ranking: Ranking,
    scores: Float[np.ndarray, "N C"],
    positive: Bool[np.ndarray, "N C"],
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> Float[np.ndarray, " R"]:
    """`mean_over_labels` on bootstrap resamples, for `metrics.percentile_interval`.

    Samples are drawn, so that all labels of a picture come and go together, and the draws depend on the seed and N only: the
    difference of two such rows is the paired bootstrap of two systems.
    """
    drawn = []
    for weights in _resamples(len(scores), resamples, seed):
        columns = np.stack([ranking(scores[:, label], positive[:, label], weights) for label in range(scores.shape[1])])
        known = ~np.isnan(columns)
        total = np.where(known, columns, 0).sum(axis=0)
        drawn.append(np.divide(total, known.sum(axis=0), out=np.full(len(weights), np.nan), where=known.any(axis=0)))
    return np.concatenate(drawn)


def average_precision_of(
    scores: Float[np.ndarray, " N"], positive: Bool[np.ndarray, " N"], weights: Int[np.ndarray, "R N"]
) -> Float[np.ndarray, " R"]:
    """`average_precision` for each row of weights."""
    order, starts = _thresholds(scores)
    ends = np.append(starts[1:], len(scores)) - 1
    weights = np.take(weights, order, axis=1)
    taken = np.cumsum(weights, axis=1, dtype=np.int64)[:, ends]
    right = np.cumsum(weights * positive[order], axis=1, dtype=np.int64)[:, ends]
    gained = np.diff(right, axis=1, prepend=0)
    precision = np.divide(right, taken, out=np.zeros(taken.shape), where=taken > 0)
    return _share((gained * precision).sum(axis=1), right[:, -1])


def eleven_point_of(
    scores: Float[np.ndarray, " N"], positive: Bool[np.ndarray, " N"], weights: Int[np.ndarray, "R N"]
) -> Float[np.ndarray, " R"]:
    """`eleven_point_precision` for each row of weights."""
    order = np.argsort(-scores, kind="stable")
    places = np.flatnonzero(positive[order])  # precision is largest right at a positive
    if len(places) == 0:
        return np.full(len(weights), np.nan)
    taken = np.cumsum(np.take(weights, order, axis=1), axis=1, dtype=np.int32)[:, places]
    right = np.cumsum(np.take(weights, order[places], axis=1), axis=1, dtype=np.int32)
    precision = np.divide(right, taken, out=np.zeros(taken.shape), where=taken > 0)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    total = right[:, -1]
    rows = np.arange(len(weights))
    found = np.zeros(len(weights))
    tenfold = 10 * right
    for tenth in range(11):
        # The first place whose recall is tenth/10 or more; the last place has recall 1.
        found += best[rows, (tenfold < tenth * total[:, None]).sum(axis=1)]
    return np.where(total > 0, found / 11, np.nan)


def roc_auc_of(
    scores: Float[np.ndarray, " N"], positive: Bool[np.ndarray, " N"], weights: Int[np.ndarray, "R N"]
) -> Float[np.ndarray, " R"]:
    """`roc_auc` for each row of weights."""
    order, starts = _thresholds(scores)
    weights = np.take(weights, order, axis=1)
    if len(starts) == len(scores):  # no ties: each sample is a threshold
        right, wrong = weights * positive[order], weights * ~positive[order]
    else:
        right = np.add.reduceat(weights * positive[order], starts, axis=1)
        wrong = np.add.reduceat(weights * ~positive[order], starts, axis=1)
    right, wrong = right.astype(np.int64), wrong.astype(np.int64)
    below = wrong.sum(axis=1, keepdims=True) - np.cumsum(wrong, axis=1)
    return _share((right * (below + wrong / 2)).sum(axis=1), right.sum(axis=1) * wrong.sum(axis=1))


def _one(ranking: Ranking, scores: np.ndarray, positive: np.ndarray) -> float:
    return mean_over_labels(ranking, scores[:, None], positive[:, None])[0]


def _thresholds(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The order of falling scores, and where each run of equal ones starts."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    return order, np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


def _resamples(count: int, resamples: int, seed: int):
    """Rows of weights, some at a time: how often each of `count` samples comes in as many draws."""
    generator = numpy_generator(seed, "bootstrap")
    rows = max(1, COUNTS // count)
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        draws = generator.integers(0, count, size=(size, count)) + np.arange(size)[:, None] * count
        yield np.bincount(draws.ravel(), minlength=size * count).reshape(size, count).astype(np.int32)
