"""The scaling law's fit repeats the published study and recovers laws that we made."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ostension.errors import DataError
from ostension.evals.scaling_law import bootstrap_lines, fit_scaling_law, prediction_band
from ostension.runtime import numpy_generator

POINTS = json.loads((Path(__file__).parent / "scaling_points.json").read_text(encoding="utf-8"))["points"]


def runs(target: str, *, openai: bool):
    chosen = [each for each in POINTS if (each["data"] == "CLIP-WIT") == openai and target in each["errors"]]
    return np.array([each["gmacs_total"] for each in chosen]), np.array([each["errors"][target] for each in chosen])


# Coefficients refitted from the study's own table with the rules of its notebook.
@pytest.mark.parametrize(
    ("target", "openclip", "openai"),
    [
        ("imagenet1k", (5.858, -0.1114), (23.18, -0.1638)),
        ("imagenet_robustness", (11.61, -0.1255), (211.7, -0.2378)),
        ("mscoco_captions", (2.750, -0.0794), (1.589, -0.0508)),
        ("flickr30k", (15.51, -0.1892), (2.208, -0.1028)),
        ("vtab+", (1.562, -0.0436), (5.557, -0.0908)),
    ],
)
def test_both_rules_repeat_the_published_coefficients(target, openclip, openai):
    for (coefficient, slope), rule, is_openai in ((openclip, "frontier", False), (openai, "least-squares", True)):
        law = fit_scaling_law(*runs(target, openai=is_openai), rule)
        assert law.num_points == (3 if is_openai else 29)
        assert law.slope == pytest.approx(slope, abs=6e-5)
        assert law.coefficient == pytest.approx(coefficient, rel=5e-4)


def test_the_published_predictions_come_out():
    law = fit_scaling_law(*runs("imagenet1k", openai=False))
    samples_34b = 407_332_084 * 84
    accuracy = 1 - law.predict(np.array([190.97 * samples_34b]))  # H/14
    assert accuracy[0] == pytest.approx(0.781, abs=6e-4)


def test_a_law_without_noise_is_recovered_by_both_rules():
    compute = np.logspace(3, 9, 6)[:-1]
    for rule in ("frontier", "least-squares"):
        law = fit_scaling_law(compute, 3.0 * compute**-0.2, "least-squares")
        assert (law.coefficient, law.slope) == (pytest.approx(3.0), pytest.approx(-0.2)), rule


def test_the_frontier_ignores_runs_above_the_best_of_their_bin():
    compute, error = np.logspace(3, 9, 25), 3.0 * np.logspace(3, 9, 25) ** -0.2
    plain = fit_scaling_law(compute, error)
    worse = fit_scaling_law(np.append(compute, compute[3:8]), np.append(error, np.minimum(1.0, 1.5 * error[3:8])))
    assert worse.slope == pytest.approx(plain.slope)


def test_the_band_holds_the_law_and_repeats_itself():
    generator = np.random.default_rng(0)
    compute = np.logspace(3, 9, 40)
    error = 3.0 * compute**-0.2 * np.exp(0.05 * generator.standard_normal(40))
    at = np.array([1e4, 1e8, 1e10])
    bands = [prediction_band(compute, error, at, rule="least-squares", resamples=300) for _ in range(2)]
    truth = 3.0 * at**-0.2
    assert np.array_equal(bands[0].low, bands[1].low)
    assert (bands[0].low < truth).all()
    assert (truth < bands[0].high).all()
    assert bands[0].high[2] / bands[0].low[2] > bands[0].high[1] / bands[0].low[1]


@pytest.mark.parametrize(
    ("compute", "error", "message"),
    [
        ([1.0, 2.0], [0.5], "computes"),
        ([0.0, 2.0], [0.5, 0.4], "positive"),
        ([1.0, 2.0], [0.5, 0.0], r"\(0, 1\]"),
        ([5.0], [0.5], "2 or more"),
    ],
)
def test_runs_that_cannot_be_fitted_are_refused(compute, error, message):
    with pytest.raises(DataError, match=message):
        fit_scaling_law(np.array(compute), np.array(error))


@pytest.mark.parametrize("rule", ["frontier", "least-squares"])
def test_the_bootstrap_at_once_is_the_fit_of_each_draw(rule):
    generator = np.random.default_rng(1)
    compute = np.logspace(3, 9, 17) * np.exp(generator.standard_normal(17))
    error = np.minimum(1.0, 3.0 * compute**-0.2 * np.exp(0.1 * generator.standard_normal(17)))
    lines = bootstrap_lines(compute, error, rule, resamples=40, seed=5)
    draws = numpy_generator(5, "scaling band").integers(17, size=(40, 17))
    for line, chosen in zip(lines, draws, strict=True):
        law = fit_scaling_law(compute[chosen], error[chosen], rule)
        assert line == pytest.approx([law.slope, law.intercept])


def test_draws_of_one_compute_are_drawn_again():
    lines = bootstrap_lines(np.array([10.0, 10.0, 1e6]), np.array([0.5, 0.4, 0.1]), "least-squares", resamples=200)
    assert lines.shape == (200, 2)
    assert np.isfinite(lines).all()
    assert (lines[:, 0] < 0).all()
