"""Intervals and tests against scipy and against cases that can be counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostension.errors import DataError
from ostension.evals import statistics

scipy_stats = pytest.importorskip("scipy.stats")


@settings(max_examples=80, deadline=None)
@given(st.floats(0.5, 1e5), st.floats(0.5, 1e5), st.floats(0, 1))
def test_the_incomplete_beta_is_scipys(a, b, x):
    expected = float(scipy_stats.beta.cdf(x, a, b))
    assert statistics.incomplete_beta(a, b, x) == pytest.approx(expected, rel=1e-8, abs=1e-10)


@pytest.mark.parametrize(
    ("successes", "trials"), [(0, 1), (1, 1), (0, 10), (10, 10), (3, 10), (49_000, 50_000), (3_431, 3_669)]
)
def test_clopper_pearson_is_scipys(successes, trials):
    found = statistics.clopper_pearson(successes, trials)
    exact = scipy_stats.binomtest(successes, trials).proportion_ci(0.995, method="exact")
    assert found.low == pytest.approx(exact.low, abs=1e-10)
    assert found.high == pytest.approx(exact.high, abs=1e-10)
    assert found.low <= successes / trials <= found.high


def test_the_binomial_tail_counts_coins():
    assert statistics.binomial_tail(2, 3, 0.5) == pytest.approx(4 / 8)
    assert statistics.binomial_tail(0, 3, 0.5) == 1.0
    assert statistics.binomial_tail(3, 3, 0.5) == pytest.approx(1 / 8)
    with pytest.raises(DataError, match="4 successes in 3 trials"):
        statistics.binomial_tail(4, 3, 0.5)


def test_corrections_for_several_tests():
    assert statistics.bonferroni(0.01, 35) == pytest.approx(0.35)
    assert statistics.bonferroni(0.5, 35) == 1.0
    assert statistics.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])


def test_chi_square_is_scipys():
    table = np.array([[10, 20, 30], [6, 9, 17]])
    found = statistics.chi_square(table)
    expected = scipy_stats.chi2_contingency(table, correction=False)
    assert (found.statistic, found.freedom) == (pytest.approx(expected.statistic), expected.dof)
    assert found.p == pytest.approx(expected.pvalue)


def test_a_table_that_separates_perfectly_has_effect_one():
    found = statistics.chi_square(np.array([[10, 0, 0], [0, 10, 0]]))
    assert found.cramers_v == pytest.approx(1.0)
    assert statistics.chi_square(np.array([[10, 5]])).p == 1.0
    with pytest.raises(DataError, match="a table of 0 counts"):
        statistics.chi_square(np.zeros((2, 2), dtype=np.int64))


def test_mcnemar_is_the_exact_sign_test():
    assert statistics.mcnemar(0, 0) == 1.0
    assert statistics.mcnemar(5, 5) == 1.0
    assert statistics.mcnemar(8, 1) == pytest.approx(scipy_stats.binomtest(8, 9).pvalue)


def test_correlation_and_line_are_scipys():
    generator = np.random.default_rng(0)
    x = generator.normal(size=27)
    y = 1.3 * x + generator.normal(size=27)
    r, p = statistics.pearson(x, y)
    line = statistics.least_squares(x, y)
    expected = scipy_stats.linregress(x, y)
    assert (r, p) == (pytest.approx(expected.rvalue), pytest.approx(expected.pvalue, rel=1e-6))
    assert (line.slope, line.intercept) == (pytest.approx(expected.slope), pytest.approx(expected.intercept))
    assert line.r_squared == pytest.approx(expected.rvalue**2)
    assert line(2.0) == pytest.approx(line.intercept + 2 * line.slope)
    with pytest.raises(DataError, match="all x are equal"):
        statistics.least_squares(np.ones(4), y[:4])
    with pytest.raises(DataError, match="three or more"):
        statistics.pearson(x[:2], y[:2])


def test_the_bootstrap_of_a_mean_has_the_width_of_its_standard_error():
    values = np.random.default_rng(1).normal(size=400)
    found = statistics.bootstrap(lambda rows: float(rows.mean()), values, seed=0)
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(400), rel=0.15)
    assert found == statistics.bootstrap(lambda rows: float(rows.mean()), values, seed=0)
