"""The mixture of losses: known answers, scikit-learn as oracle, and losses that tell nothing."""

from __future__ import annotations

import numpy as np
import pytest

from ostension.errors import DataError
from ostension.runtime import numpy_generator
from ostension.train.mixture import FLOOR, expectation_maximisation, fit_mixture, hard_start


def drawn(share=0.3, low=(0.5, 0.2), high=(3.0, 0.6), count=4000, seed=0):
    generator = numpy_generator(seed, "losses")
    noise = generator.random(count) < share
    return np.where(noise, generator.normal(*high, count), generator.normal(*low, count)), noise


def test_it_finds_the_shares_means_and_spreads_of_a_known_mixture():
    losses, noise = drawn()
    found = fit_mixture(losses)
    assert found.why_not is None
    assert found.shares[1] == pytest.approx(noise.mean(), abs=0.01)
    assert found.means == pytest.approx((0.5, 3.0), abs=0.05)
    assert found.spreads == pytest.approx((0.2, 0.6), abs=0.05)
    called = found.posterior(losses) > 0.5
    assert (called == noise).mean() > 0.99


def test_it_is_where_scikit_learn_ends_from_the_same_start():
    sklearn = pytest.importorskip("sklearn.mixture")
    losses, _ = drawn(share=0.4, low=(1.0, 0.5), high=(2.5, 0.8))
    z = (losses - losses.mean()) / losses.std()
    shares, means, variances = hard_start(z, 0.5)
    oracle = sklearn.GaussianMixture(
        2, reg_covar=FLOOR, tol=1e-9, max_iter=2000, weights_init=shares, means_init=means[:, None],
        precisions_init=(1 / variances)[:, None, None],
    ).fit(z[:, None])  # fmt: skip
    likelihood, shares, means, variances = expectation_maximisation(z, shares, means, variances)
    assert likelihood / len(z) == pytest.approx(oracle.score(z[:, None]), abs=1e-6)
    order = np.argsort(oracle.means_[:, 0])
    np.testing.assert_allclose(means, oracle.means_[order, 0], atol=2e-3)
    np.testing.assert_allclose(variances, oracle.covariances_[order, 0, 0], atol=2e-3)
    np.testing.assert_allclose(shares, oracle.weights_[order], atol=2e-3)


def test_the_posterior_is_bayes_rule_where_it_rises():
    losses, _ = drawn()
    found = fit_mixture(losses)
    x = np.linspace(0.6, 4.0, 50)
    densities = [
        share / spread * np.exp(-0.5 * ((x - mean) / spread) ** 2)
        for share, mean, spread in zip(found.shares, found.means, found.spreads, strict=True)
    ]
    np.testing.assert_allclose(found.posterior(x), densities[1] / (densities[0] + densities[1]), atol=1e-12)


@pytest.mark.parametrize("spreads", [(0.1, 1.0), (1.0, 0.1)])
def test_a_higher_loss_is_never_less_likely_noise(spreads):
    losses, _ = drawn(share=0.5, low=(1.0, spreads[0]), high=(3.0, spreads[1]))
    found = fit_mixture(losses)
    x = np.linspace(-3, 9, 400)
    assert (np.diff(found.log_odds(x)) < 0).any()  # equation (1) by itself turns back
    assert (np.diff(found.posterior(x)) >= -1e-12).all()


def test_it_does_not_depend_on_the_unit_or_on_order():
    losses, _ = drawn()
    plain = fit_mixture(losses).posterior(losses)
    moved = fit_mixture(1000 * losses[::-1] + 7).posterior(1000 * losses + 7)
    np.testing.assert_allclose(plain, moved, atol=1e-6)


def test_one_huge_loss_gets_no_component_of_its_own():
    losses, _ = drawn(count=1000)
    with_outlier = fit_mixture(np.append(losses, 1e6))
    assert with_outlier.means == pytest.approx(fit_mixture(losses).means, abs=0.05)
    assert with_outlier.posterior(np.array([1e6])) > 0.99


@pytest.mark.parametrize(
    ("losses", "why"),
    [
        (np.full(100, 2.5), "equal"),
        (np.arange(5.0), "too few"),
        (np.empty(0), "too few"),
        (numpy_generator(1, "one").normal(size=3000), "one Gaussian"),
    ],
)
def test_where_nothing_tells_two_kinds_apart_no_pair_is_noise(losses, why):
    found = fit_mixture(losses)
    assert why in found.why_not
    assert not found.posterior(losses).any() and not found.posterior(np.array([1e9])).any()


def test_two_points_are_two_components():
    found = fit_mixture(np.repeat([1.0, 2.0], [70, 30]))
    assert found.why_not is None and found.shares == pytest.approx((0.7, 0.3), abs=1e-6)
    np.testing.assert_allclose(found.posterior(np.array([1.0, 2.0])), [0, 1], atol=1e-6)


def test_a_loss_that_is_not_finite_is_refused():
    with pytest.raises(DataError, match="1 of 9"):
        fit_mixture(np.array([*range(8), np.nan], dtype=float))
