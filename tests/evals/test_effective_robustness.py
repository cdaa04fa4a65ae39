"""Effective robustness: the published test bed's lines, the paper's factor of five, synthetic lines, tables of one's own."""

from __future__ import annotations

import numpy as np
import pytest

from ostension.errors import ConfigError, DataError
from ostension.evals.effective_robustness import (
    baseline_of,
    error_ratio,
    fit_baseline,
    logit,
    relative_robustness,
    sigmoid,
)
from ostension.evals.testbed import SEVEN, SEVEN_SHIFTS, read_testbed

RN50, B32 = "resnet50_clip_zeroshot", "vit_b_32_clip_zeroshot"
# n, slope, intercept, r2, then effective robustness of both CLIP models in points: fitted from the published table apart
# from this code, with numpy.polyfit.
LINES = [
    ("imagenet_v2", 85, 0.9114, -0.4813, 0.996, 5.6, 5.8),
    ("imagenet_v2_format_val", 85, 0.9232, -0.4977, 0.996, 5.8, 5.6),
    ("imagenet_sketch", 85, 1.0709, -2.3701, 0.869, 22.9, 28.0),
    ("imagenet_r", 80, 0.6368, -2.1077, 0.889, 32.9, 39.0),
    ("objectnet", 85, 0.9809, -1.9283, 0.953, 17.8, 18.1),
    ("imagenet_vid_robust pm-0", 85, 0.5336, -1.4617, 0.949, 14.9, 19.2),
    ("ytbb_robust pm-0", 84, 0.3388, -1.1119, 0.830, 7.1, 9.9),
    (SEVEN, 80, 0.8597, -2.0771, 0.962, 19.5, 23.3),
]


@pytest.mark.parametrize(("shift", "n", "slope", "intercept", "r2", "rn50", "b32"), LINES)
def test_the_published_table_gives_the_known_lines(shift, n, slope, intercept, r2, rn50, b32):
    bed = read_testbed()
    line = baseline_of(bed, shift)
    (fit,) = line.tree()["lines"]
    assert fit["n"] == n == len(line.models)
    assert fit["slope"] == pytest.approx(slope, abs=6e-5) and fit["intercept"] == pytest.approx(intercept, abs=6e-5)
    assert fit["r2"] == pytest.approx(r2, abs=6e-4)
    x, y = bed.accuracies(shift)
    for model, points in ((RN50, rn50), (B32, b32)):
        place = bed.place(model)
        assert 100 * line.effective(float(x[place]), float(y[place])) == pytest.approx(points, abs=0.06)


def test_imagenet_a_has_two_lines_that_meet_at_the_resnet_it_was_made_against():
    bed = read_testbed()
    line = baseline_of(bed, "imagenet_a")
    low, high = line.tree()["lines"]
    assert (low["n"], high["n"]) == (33, 51)
    assert low["slope"] == pytest.approx(0.6894, abs=1e-4) and low["intercept"] == pytest.approx(-5.14, abs=6e-3)
    assert high["slope"] == pytest.approx(2.956, abs=6e-4) and high["intercept"] == pytest.approx(-10.28, abs=6e-3)
    assert low["r2"] == pytest.approx(0.41, abs=6e-3) and high["r2"] == pytest.approx(0.91, abs=6e-3)
    x, y = bed.accuracies("imagenet_a")
    for model, points in ((RN50, 20.9), (B32, 29.2)):
        place = bed.place(model)
        assert 100 * line.effective(float(x[place]), float(y[place])) == pytest.approx(points, abs=0.06)
    resnet = bed.place("resnet50")
    assert y[resnet] == 0 and x[resnet] == pytest.approx(line.pivot) and "resnet50" not in line.models


def test_a_resnet_101_makes_five_times_as_many_errors_on_the_shifts():
    # CLIP, section 3.3: "a ResNet-101 makes five times as many mistakes".
    bed = read_testbed()
    x, y = (float(values[bed.place("resnet101")]) for values in bed.accuracies(SEVEN))
    assert 100 * x == pytest.approx(88.33, abs=5e-3) and 100 * y == pytest.approx(41.52, abs=5e-3)
    assert error_ratio(x, y) == pytest.approx(5.01, abs=5e-3)


def test_the_table_holds_all_models_and_their_families():
    bed = read_testbed()
    assert len(bed.models) == 338 and len(SEVEN_SHIFTS) == 7
    assert {family: bed.families.count(family) for family in set(bed.families)} == {
        "low-accuracy-cnn": 118, "standard": 87, "robustness-intervention": 70, "more-data": 43, "lp-adversarial": 16,
        "random-features": 1, "linear-pixels": 1, "random-forests": 1, "nearest-neighbours": 1,
    }  # fmt: skip


def on_a_line(slope, intercept, noise=0.0):
    over = np.linspace(-1, 2, 40)
    up = intercept + slope * over + noise * np.random.default_rng(0).standard_normal(40)
    return 1 / (1 + np.exp(-over)), 1 / (1 + np.exp(-up))


def test_models_on_a_line_give_it_back_and_have_no_effective_robustness():
    x, y = on_a_line(0.8, -1.5)
    line = fit_baseline(x, y)
    assert line.lines[0].slope == pytest.approx(0.8) and line.lines[0].intercept == pytest.approx(-1.5)
    assert line.effective(float(x[7]), float(y[7])) == pytest.approx(0, abs=1e-12)
    assert line.effective(float(x[7]), float(y[7]) + 0.1) == pytest.approx(0.1)
    assert relative_robustness(0.4, 0.3) == pytest.approx(-0.1)
    assert line(0.0) == 0.0 and line(1.0) == 1.0
    assert (line.band(1.0, seed=0).low, line.band(0.0, seed=0).high) == (1.0, 0.0)


def test_the_band_has_no_width_without_noise_and_holds_the_true_line_with_it():
    x, y = on_a_line(0.8, -1.5)
    exact = fit_baseline(x, y).band(0.6, seed=0)
    assert exact.high - exact.low < 1e-12
    band = fit_baseline(*on_a_line(0.8, -1.5, noise=0.2)).band(0.6, seed=0)
    assert band.low < sigmoid(-1.5 + 0.8 * float(logit(np.array(0.6)))) < band.high
    assert band.high - band.low < 0.1
    assert band == fit_baseline(*on_a_line(0.8, -1.5, noise=0.2)).band(0.6, seed=0)


def test_on_each_side_of_a_pivot_its_own_models_count():
    x = np.array([0.2, 0.3, 0.4, 0.6, 0.7, 0.8])
    y = np.where(x < 0.5, x, 1 - x)
    line = fit_baseline(x, y, pivot=0.5)
    assert [part.slope for part in line.lines] == pytest.approx([1.0, -1.0])
    assert line(0.35) == pytest.approx(0.35) and line(0.75) == pytest.approx(0.25) and line(0.5) == pytest.approx(0.5)


def test_a_table_of_ones_own_is_read_and_takes_known_families(tmp_path):
    table = tmp_path / "own.csv"
    rows = [f"m{i},standard,{40 + 5 * i},{20 + 5 * i}" for i in range(5)]
    table.write_text("\n".join(["model,family,val,imagenet-sketch", *rows, "mine,ours,70,", "resnet50,,76.13,24.09"]))
    bed = read_testbed(table)
    assert bed.families[-2:] == ("ours", "standard") and np.isnan(bed.column("imagenet-sketch")[-2])
    # Two of the five lie below the shift's minimum of 55 %.
    assert baseline_of(bed, "imagenet_sketch").models == ("m3", "m4", "resnet50")
    with pytest.raises(DataError, match="unknown column 'val-on-imagenet-r-classes'"):
        baseline_of(bed, "imagenet_r")
    with pytest.raises(DataError, match="unknown model 'resnet51'"):
        bed.place("resnet51")
    with pytest.raises(ConfigError, match="shift of the test bed"):
        baseline_of(bed, "imagenet_sketches")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,val\na,1\n", "a column 'model'"),
        ("model,val\n", "0 rows"),
        ("model,val\na,70\na,71\n", "'a' comes twice"),
        ("model,val\na,170\n", "'170' in line 2, column 'val'"),
        ("model,val\na,high\n", "'high' in line 2"),
        ("model,val\na,nan\n", "'nan' in line 2"),
        ("\x00\xff", "own.csv"),
    ],
)
def test_a_table_that_is_none_is_one_clean_line(tmp_path, text, message):
    table = tmp_path / "own.csv"
    table.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        read_testbed(table)
    with pytest.raises(DataError, match="no such file"):
        read_testbed(tmp_path / "none.csv")


def test_too_few_standard_models_have_no_line(tmp_path):
    table = tmp_path / "own.csv"
    table.write_text("model,val,imagenet-sketch\na,60,30\nb,70,40\nc,80,50\n")
    with pytest.raises(DataError, match="0 standard models were measured on imagenet_sketch.*column 'family'"):
        baseline_of(read_testbed(table), "imagenet_sketch")
    with pytest.raises(DataError, match="no errors"):
        error_ratio(1.0, 0.5)
    with pytest.raises(DataError, match="no logit"):
        fit_baseline(np.array([0.5, 0.6, 1.0]), np.array([0.5, 0.6, 0.7]))
