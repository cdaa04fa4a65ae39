"""Metrics against scikit-learn, closed forms and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from ostension.errors import DataError
from ostension.evals import metrics
from ostension.runtime import numpy_generator


def random_scores(n=200, c=7, seed=0):
    generator = numpy_generator(seed, "scores")
    return generator.normal(size=(n, c)).astype(np.float32), generator.integers(0, c, n)


def brute_ranks(scores, targets):
    order = [sorted(range(scores.shape[1]), key=lambda c: (-row[c], c)) for row in scores]
    return np.array([places.index(target) for places, target in zip(order, targets, strict=True)])


@pytest.mark.parametrize("k", [1, 2, 5, 7])
def test_top_k_accuracy_equals_scikit_learns(k):
    scores, targets = random_scores()
    expected = 1.0 if k == 7 else top_k_accuracy_score(targets, scores, k=k, labels=range(7))
    assert metrics.top_k_accuracy(scores, targets, k) == pytest.approx(expected, abs=1e-12)


def test_ranks_equal_a_stable_sort_also_with_equal_scores():
    scores, targets = random_scores()
    scores = np.round(scores)
    assert np.array_equal(metrics.ranks(scores, targets), brute_ranks(scores, targets))


def test_a_model_without_an_opinion_is_right_only_by_index():
    scores = np.zeros((6, 3), dtype=np.float32)
    assert metrics.top_k_accuracy(scores, np.array([0, 1, 2, 0, 1, 2])) == pytest.approx(1 / 3)


def test_targets_outside_the_classes_and_nan_scores_are_refused():
    scores, targets = random_scores()
    with pytest.raises(DataError, match=r"0\.\.6"):
        metrics.ranks(scores, targets + 7)
    scores[3, 2] = np.nan
    with pytest.raises(DataError, match="not a number"):
        metrics.ranks(scores, targets)


def test_mean_per_class_accuracy_equals_scikit_learns_balanced_accuracy():
    scores, targets = random_scores()
    targets = np.where(targets == 3, 2, targets)
    predictions = scores.argmax(1)
    keep = predictions != 3  # scikit-learn warns about predictions of a class that never occurs
    assert metrics.mean_per_class_accuracy(predictions[keep], targets[keep]) == pytest.approx(
        balanced_accuracy_score(targets[keep], predictions[keep]), abs=1e-12
    )


def test_retrieval_ranks_equal_brute_force_with_several_positives_at_every_block_size():
    generator = numpy_generator(1, "retrieval")
    queries, gallery = generator.normal(size=(23, 5)), generator.normal(size=(40, 5))
    query_groups, gallery_groups = generator.integers(0, 6, 23), np.arange(40) % 6
    expected = []
    for query, group in zip(queries, query_groups, strict=True):
        order = sorted(range(40), key=lambda g: (-(gallery[g] @ query), g))
        expected.append(min(place for place, g in enumerate(order) if gallery_groups[g] == group))
    for block_rows in (1, 7, 23, 100):
        found = metrics.retrieval_ranks(queries, gallery, query_groups, gallery_groups, block_rows=block_rows)
        assert found.tolist() == expected


def test_a_query_without_a_positive_is_an_error():
    with pytest.raises(DataError, match="query 1 has no positive"):
        metrics.retrieval_ranks(np.eye(2), np.eye(2), np.array([0, 5]), np.array([0, 1]))


def test_chance_recall_equals_a_simulation_and_k_over_g_for_single_positives():
    assert metrics.chance_recall(np.ones(9, dtype=int), 50, 5) == pytest.approx(5 / 50)
    sizes = np.array([5, 5, 1])
    generator = numpy_generator(2, "chance")
    hits = [(generator.permutation(20)[:3] < sizes[trial % 3]).any() for trial in range(30_000)]
    assert metrics.chance_recall(sizes, 20, 3) == pytest.approx(np.mean(hits), abs=0.01)
    assert metrics.chance_recall(sizes, 20, 99) == 1.0


def test_recall_of_no_queries_and_of_k_zero_are_errors():
    with pytest.raises(DataError, match="no samples"):
        metrics.recall_at_k(np.array([], dtype=int), 1)
    with pytest.raises(DataError, match="k is 0"):
        metrics.recall_at_k(np.array([1]), 0)


def test_calibration_error_by_hand():
    confidences, correct = np.array([0.95, 0.95, 0.55, 0.55]), np.array([True, True, True, False])
    assert metrics.expected_calibration_error(confidences, correct, bins=10) == pytest.approx(0.5 * 0.05 + 0.5 * 0.05)
    assert metrics.expected_calibration_error(np.array([0.0, 1.0]), np.array([False, True])) == 0.0


def test_a_perfectly_calibrated_forecaster_has_almost_no_calibration_error():
    generator = numpy_generator(3, "calibration")
    confidences = generator.uniform(size=50_000)
    assert metrics.expected_calibration_error(confidences, generator.uniform(size=50_000) < confidences) < 0.01


def test_confidences_outside_zero_to_one_are_refused():
    with pytest.raises(DataError, match="probabilities"):
        metrics.reliability(np.array([1.2]), np.array([True]))


def test_wilson_interval_equals_the_published_example():
    # Newcombe 1998, table I: 81 of 263 and 1 of 29 at 95 %.
    for successes, trials, low, high in ((81, 263, 0.2553, 0.3662), (1, 29, 0.0061, 0.1718), (0, 20, 0.0, 0.1611)):
        interval = metrics.wilson_interval(successes, trials)
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_of_nothing_is_an_error():
    with pytest.raises(DataError, match="trial"):
        metrics.wilson_interval(0, 0)


def test_bootstrap_interval_is_seeded_and_near_the_normal_one():
    values = numpy_generator(4, "values").normal(size=400)
    first, again = metrics.bootstrap_interval(values, seed=5), metrics.bootstrap_interval(values, seed=5)
    other = metrics.bootstrap_interval(values, seed=6)
    assert first == again != other
    half = 1.96 * values.std() / 20
    assert (first.low, first.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.015)


def test_bootstrap_interval_of_a_constant_is_a_point():
    interval = metrics.bootstrap_interval(np.full(10, 0.25), seed=0)
    assert (interval.low, interval.high) == (0.25, 0.25)


def test_a_paired_difference_by_hand_and_its_coverage():
    ours, theirs = np.arange(58) < 30, (np.arange(58) >= 20) & (np.arange(58) < 40)
    interval = metrics.paired_difference(ours, theirs)  # 20 right in ours only, 10 in theirs only
    half = 1.959964 * np.sqrt(31 - 100 / 60)
    assert (interval.low, interval.high) == pytest.approx(((10 - half) / 60, (10 + half) / 60), abs=1e-6)
    alike = metrics.paired_difference(ours, ours)
    assert -0.035 < alike.low < 0 < alike.high < 0.035
    generator = numpy_generator(6, "pairs")
    covered = []
    for _ in range(1000):
        draw = generator.choice(4, size=50, p=[0.6, 0.25, 0.1, 0.05])  # both, ours, theirs, neither
        found = metrics.paired_difference(draw <= 1, (draw == 0) | (draw == 2))
        covered.append(found.low <= 0.15 <= found.high)
    assert 0.93 < np.mean(covered) < 0.98
