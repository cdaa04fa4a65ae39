"""The search on a known surface, failed trials, numbers of parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from ostension.errors import DivergenceError
from ostension.evals.elevater.heads import HeadConfig
from ostension.evals.elevater.parameters import Parameters, parameter_efficiency
from ostension.evals.elevater.probe import Trial
from ostension.evals.elevater.tuning import DECAYS, RATES, Scored, search


def place_of(trial: Trial) -> int:
    return DECAYS.index(trial.weight_decay)


class Surface:
    """Scores that fall off on both sides of a place on the grid; the calls are kept."""

    def __init__(self, peaks: dict[float, int], top: dict[float, float], failing: tuple[float, ...] = ()):
        self.peaks, self.top, self.failing = peaks, top, failing
        self.calls: list[list[Trial]] = []

    def __call__(self, trials: Sequence[Trial]) -> list[Scored]:
        self.calls.append(list(trials))
        return [self.score(trial) for trial in trials]

    def score(self, trial: Trial) -> Scored:
        rate = trial.learning_rate
        if rate in self.failing:
            return Scored(trial=trial, score=None, error="overflowed in epoch 1")
        away = abs(place_of(trial) - self.peaks.get(rate, 48))
        return Scored(trial=trial, score=self.top.get(rate, 0.5) - 0.001 * away)


def test_the_grid_is_eight_decays_a_decade():
    np.testing.assert_allclose(DECAYS, np.logspace(-6, 6, 97), rtol=1e-12)
    np.testing.assert_allclose(RATES, np.logspace(-6, -1, 6), rtol=1e-12)


@pytest.mark.parametrize("peak", [0, 1, 37, 48, 50, 96])
def test_the_peak_of_a_single_hill_is_found_in_fifteen_trials_a_rate(peak):
    surface = Surface({RATES[2]: peak}, {RATES[2]: 0.9})
    found = search(surface)
    assert place_of(found.best.trial) == peak and found.best.trial.learning_rate == RATES[2]
    assert len(found.tried) <= 90 and len({scored.trial for scored in found.tried}) == len(found.tried)
    assert len(surface.calls) == 5 and len(surface.calls[0]) == 42  # all rates in one call
    assert all(sum(scored.trial.learning_rate == rate for scored in found.tried) <= 15 for rate in RATES)


def test_ties_go_to_what_was_tried_first():
    flat = search(lambda trials: [Scored(trial=trial, score=0.5) for trial in trials])
    assert (flat.best.trial.learning_rate, flat.best.trial.weight_decay) == (RATES[0], DECAYS[0])


def test_failed_trials_are_kept_with_their_reason_and_never_chosen():
    surface = Surface({}, {RATES[-1]: 0.9}, failing=(RATES[-1],))
    found = search(surface)
    assert found.best.trial.learning_rate == RATES[0] and len(found.failed) == 7
    assert "7 failed, the first: rate 0.1, decay 1e-06: overflowed in epoch 1" in found.summary


def test_a_score_below_zero_still_beats_a_failure():
    found = search(lambda trials: [Scored(trial=trial, score=-1.0) for trial in trials], rates=[0.1])
    assert found.best.score == -1.0


def test_when_everything_fails_the_line_says_so():
    with pytest.raises(DivergenceError, match="all 42 trials failed, the first: rate 1e-06"):
        search(Surface({}, {}, failing=RATES))


def test_parameters_of_a_text_head_a_merged_head_and_a_tower():
    model = {"visual": 1000, "backbone": 2500}
    assert Parameters.of_zero_shot(model) == Parameters(trainable=0, total=2500, visual=1000, backbone=2500)
    text = Parameters.of_head(model, HeadConfig(train_scale=True), classes=10, width=20)
    assert text == Parameters(trainable=211, total=2500 + 210 + 1, visual=1000, backbone=2500)
    merged = Parameters.of_head(model, HeadConfig(init="merged"), classes=10, width=30, dropped=600)
    assert merged == Parameters(trainable=310, total=1900 + 310 + 1, visual=400, backbone=1900)
    assert Parameters.of_head(model, HeadConfig(), classes=10, width=20, tower=True).trainable == 1210


def test_parameter_efficiency_is_the_score_when_nothing_is_trained():
    assert parameter_efficiency(0.6, 0) == 0.6
    assert parameter_efficiency(0.6, 9e8) == pytest.approx(0.6 / math.e)
