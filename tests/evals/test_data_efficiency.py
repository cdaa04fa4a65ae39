"""Curves of accuracy over images, read sideways."""

from __future__ import annotations

import math

import pytest

from ostension.errors import ConfigError
from ostension.evals.data_efficiency import Needed, images_for, ratio

CURVE = [(100.0, 0.1), (1000.0, 0.3), (10000.0, 0.2), (100000.0, 0.5)]


def test_an_accuracy_between_two_points_lies_on_their_line_in_log_images():
    assert images_for(CURVE, 0.2).images == pytest.approx(math.sqrt(100 * 1000))
    assert images_for(CURVE, 0.3).images == pytest.approx(1000.0) and images_for(CURVE, 0.3).how == "interpolated"


def test_a_drop_counts_as_noise():
    # The best up to 10,000 images is 0.3, so 0.4 lies half way from there to 0.5 at 100,000.
    assert images_for(CURVE, 0.4).images == pytest.approx(math.sqrt(10000 * 100000))


def test_before_the_first_point_there_is_a_bound_and_after_the_last_the_last_rise_is_drawn_on():
    assert images_for(CURVE, 0.05) == Needed(100.0, "at most")
    assert images_for(CURVE, 0.7).how == "extrapolated" and images_for(CURVE, 0.7).images == pytest.approx(1e6)
    assert images_for([(1.0, 0.5), (2.0, 0.4)], 0.6) == Needed(math.inf, "never")
    assert images_for([(1.0, 0.5)], 0.5) == Needed(1.0, "interpolated")


def test_the_ratio_says_the_weaker_of_both_readings():
    fast = [(images / 4, accuracy) for images, accuracy in CURVE]
    assert ratio(CURVE, fast, 0.45) == (pytest.approx(4.0), "interpolated")
    assert ratio(CURVE, fast, 0.6) == (pytest.approx(4.0), "extrapolated")
    assert ratio(CURVE, [(50.0, 0.4), (60.0, 0.6)], 0.3) == (pytest.approx(20.0), "at most")
    assert ratio([(1.0, 0.1), (2.0, 0.1)], fast, 0.3) == (math.inf, "never")


def test_a_curve_rises_in_images():
    with pytest.raises(ConfigError, match="rising images"):
        images_for([(2.0, 0.1), (1.0, 0.2)], 0.1)
