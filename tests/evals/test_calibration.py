"""Calibration against closed forms, written-out definitions and a planted temperature."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss

from ostension.errors import DataError
from ostension.evals import metrics
from ostension.evals.calibration import calibration, fit_temperature, reliability_adaptive
from ostension.evals.scores import softmax
from ostension.runtime import numpy_generator


def honest(n=20_000, c=5, scale=3.0, seed=0):
    """Logits, and targets that are drawn from their own probabilities."""
    generator = numpy_generator(seed, "honest")
    logits = scale * generator.normal(size=(n, c))
    draws = generator.random(n)[:, None] < np.cumsum(softmax(logits), axis=1)
    return logits, draws.argmax(axis=1)


def test_measures_equal_scikit_learns_and_the_definitions_written_out():
    logits, targets = honest(n=500)
    found, p = calibration(logits, targets, temperature=0.5), softmax(logits / 0.5)
    hits = np.eye(5)[targets]
    assert found.nll == pytest.approx(log_loss(targets, p), abs=1e-9)
    assert found.brier == pytest.approx(((p - hits) ** 2).sum(1).mean(), abs=1e-12)
    confidences, correct = p.max(1), p.argmax(1) == targets
    assert found.ece == pytest.approx(metrics.expected_calibration_error(confidences, correct), abs=1e-12)
    each = [metrics.expected_calibration_error(p[:, c], hits[:, c] > 0) for c in range(5)]
    assert found.ece_classwise == pytest.approx(np.mean(each), abs=1e-12)
    two = calibration(logits[:, :2], targets % 2)
    assert two.brier == pytest.approx(2 * brier_score_loss(targets % 2, softmax(logits[:, :2])[:, 1]), abs=1e-12)


def test_bins_of_equal_counts_by_hand():
    confidences, correct = np.array([0.9, 0.5, 0.6, 0.8]), np.array([True, False, True, True])
    table = reliability_adaptive(confidences, correct, bins=2)
    assert [(row["count"], row["low"], row["high"]) for row in table] == [(2, 0.5, 0.6), (2, 0.8, 0.9)]
    assert [(row["confidence"], row["accuracy"]) for row in table] == [(0.55, 0.5), (pytest.approx(0.85), 1.0)]
    assert len(reliability_adaptive(confidences, correct, bins=15)) == 4


def test_an_honest_classifier_has_temperature_one_and_almost_no_error():
    logits, targets = honest()
    found, measured = fit_temperature(logits, targets), calibration(logits, targets)
    assert found.low < 1 < found.high and found.high - found.low < 0.1
    assert found.verdict.startswith("neither")
    assert max(measured.ece, measured.ece_adaptive, measured.ece_classwise) < 0.012


@pytest.mark.parametrize("planted, verdict", [(0.25, "under-confident"), (4.0, "over-confident")])
def test_a_planted_temperature_is_found_and_takes_the_error_away(planted, verdict):
    logits, targets = honest()
    own = fit_temperature(logits, targets).value
    found = fit_temperature(planted * logits, targets)
    assert found.value == pytest.approx(planted * own, rel=1e-9)  # the optimum moves with the logits, exactly
    assert found.verdict == verdict
    before, after = (calibration(planted * logits, targets, temperature=t) for t in (1.0, found.value))
    assert before.ece > 0.1 > 0.012 > after.ece
    assert (before.accuracy, before.nll, after.nll) == (
        after.accuracy,
        pytest.approx(found.nll_before),
        pytest.approx(found.nll_after),
    )


def test_the_fit_is_the_optimum_of_a_case_in_closed_form():
    # One logit difference d, right in a share q of samples: the best p is q, so T = d / ln(q / (1 - q)).
    logits = np.tile([7.0, 0.0], (10, 1))
    found = fit_temperature(logits, np.array([0] * 8 + [1] * 2))
    assert found.value == pytest.approx(7 / math.log(4), rel=1e-11)
    assert found.nll_after == pytest.approx(-0.8 * math.log(0.8) - 0.2 * math.log(0.2), abs=1e-12)


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1e3, 1e6])
def test_the_fit_finds_optima_that_are_far_away(factor):
    logits, targets = honest(n=300)
    assert fit_temperature(factor * logits, targets).value == pytest.approx(
        factor * fit_temperature(logits, targets).value, rel=1e-8
    )


def test_the_interval_covers_the_truth_as_often_as_it_says():
    covered = [(lambda t: t.low <= 1 <= t.high)(fit_temperature(*honest(n=400, seed=seed))) for seed in range(200)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.04)


def test_where_no_temperature_is_best_the_message_says_why():
    right = np.eye(3)[[0, 1, 2]] * 2
    with pytest.raises(DataError, match="wrong answer"):
        fit_temperature(right, np.array([0, 1, 2]))
    with pytest.raises(DataError, match="guess"):
        fit_temperature(right, np.array([1, 2, 0]))
    with pytest.raises(DataError, match="guess"):
        fit_temperature(np.zeros((4, 3)), np.array([0, 1, 2, 0]))


def test_classes_at_minus_infinity_cost_nothing_unless_a_sample_is_of_one():
    logits, targets = honest(n=400)
    wide = np.column_stack([logits, np.full(400, -np.inf)])
    assert fit_temperature(wide, targets).value == pytest.approx(fit_temperature(logits, targets).value, rel=1e-12)
    assert calibration(wide, targets).nll == pytest.approx(calibration(logits, targets).nll, rel=1e-12)
    for measure in (fit_temperature, calibration):
        with pytest.raises(DataError, match="probability 0"):
            measure(wide, np.where(np.arange(400) == 3, 5, targets))


def test_blocks_and_a_permutation_of_the_classes_change_nothing(monkeypatch):
    logits, targets = honest(n=1000)
    whole, order = calibration(logits, targets), np.array([2, 0, 4, 1, 3])
    moved = calibration(logits[:, order], np.argsort(order)[targets])
    monkeypatch.setattr("ostension.evals.calibration.ROWS", 77)
    cut = calibration(logits, targets)
    for name in ("nll", "brier", "ece", "ece_adaptive", "ece_classwise"):
        assert getattr(moved, name) == pytest.approx(getattr(whole, name), abs=1e-12)
        assert getattr(cut, name) == pytest.approx(getattr(whole, name), abs=1e-12)
