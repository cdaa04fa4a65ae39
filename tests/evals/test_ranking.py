"""Rankings against scikit-learn, the VOC 2007 rule written out, and bootstraps by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from ostension.errors import DataError
from ostension.evals import ranking
from ostension.evals.metrics import percentile_interval
from ostension.runtime import numpy_generator


def drawn(seed, n=300, share=0.2, decimals=2):
    """Scores with many ties, and positives that are scored higher on the whole."""
    generator = numpy_generator(seed, "ranking")
    positive = generator.random(n) < share
    return np.round(generator.normal(size=n) + positive, decimals), positive


def devkit(scores, positive):
    """VOCevalcls.m, line by line, with the steps of recall in whole tenths."""
    order = np.argsort(-scores, kind="stable")
    right, wrong = np.cumsum(positive[order]), np.cumsum(~positive[order])
    total, found = positive.sum(), 0.0
    for tenth in range(11):
        enough = 10 * right >= tenth * total
        found += (right / (right + wrong))[enough].max(initial=0.0) / 11
    return found


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_and_auc_equal_scikit_learns_also_with_ties(seed):
    scores, positive = drawn(seed, decimals=1)
    assert ranking.average_precision(scores, positive) == pytest.approx(average_precision_score(positive, scores), abs=1e-12)
    assert ranking.roc_auc(scores, positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)


@pytest.mark.parametrize("share", [0.003, 0.05, 0.3, 1.0])
def test_eleven_point_precision_follows_the_rule_of_the_development_kit(share):
    for seed in range(5):
        scores, positive = drawn(seed, share=share)
        positive[7] = True
        assert ranking.eleven_point_precision(scores, positive) == pytest.approx(devkit(scores, positive), abs=1e-12)


def test_eleven_point_precision_by_hand():
    # Right, wrong, right: precision 1 up to a recall of one half (six of the steps), then 2/3 (five).
    scores, positive = np.array([3.0, 2.0, 1.0]), np.array([True, False, True])
    assert ranking.eleven_point_precision(scores, positive) == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    # A recall of three tenths is reached exactly by three positives of ten.
    order, positive = -np.arange(20.0), np.array([True] * 3 + [False] * 10 + [True] * 7)
    assert ranking.eleven_point_precision(order, positive) == pytest.approx((4 * 1 + 7 * 10 / 20) / 11)


def test_rows_of_weights_count_a_sample_as_often_as_they_say():
    scores, positive = drawn(9, n=40)
    weights = numpy_generator(0, "weights").integers(0, 3, size=(5, 40)).astype(np.int32)
    for of in (ranking.average_precision_of, ranking.eleven_point_of, ranking.roc_auc_of):
        every = np.ones((1, 40), dtype=np.int32)
        expected = [of(np.repeat(scores, row), np.repeat(positive, row), np.ones((1, row.sum()), np.int32)) for row in weights]
        assert of(scores, positive, weights) == pytest.approx(np.concatenate(expected), abs=1e-12)
        assert of(scores, positive, every).shape == (1,)


def test_labels_that_nobody_has_are_left_out_of_the_mean():
    scores = numpy_generator(1, "labels").normal(size=(50, 3))
    positive = scores > 0
    positive[:, 1] = False
    value, of_labels = ranking.mean_over_labels(ranking.eleven_point_of, scores, positive)
    assert (value, set(of_labels)) == (1.0, {0, 2})


def test_a_label_without_samples_of_both_kinds_has_no_auc():
    with pytest.raises(DataError, match="no label"):
        ranking.roc_auc(np.array([0.1, 0.2]), np.array([True, True]))
    with pytest.raises(DataError, match="not a number"):
        ranking.roc_auc(np.array([0.1, np.nan]), np.array([True, False]))


def test_the_bootstrap_is_seeded_near_hanley_and_mcneils_error_and_the_same_in_blocks(monkeypatch):
    scores, positive = drawn(3, n=400, share=0.4)
    columns = scores[:, None], positive[:, None]
    resampled = ranking.resampled_means(ranking.roc_auc_of, *columns, seed=1)
    value, interval = ranking.roc_auc(scores, positive), percentile_interval(resampled)
    m, n = positive.sum(), (~positive).sum()
    q1, q2 = value / (2 - value), 2 * value**2 / (1 + value)
    error = np.sqrt((value * (1 - value) + (m - 1) * (q1 - value**2) + (n - 1) * (q2 - value**2)) / (m * n))
    assert (interval.low, interval.high) == pytest.approx((value - 1.96 * error, value + 1.96 * error), abs=0.015)
    monkeypatch.setattr(ranking, "COUNTS", 4_000)
    assert np.array_equal(ranking.resampled_means(ranking.roc_auc_of, *columns, seed=1), resampled)
