"""The logistic-regression solver against scikit-learn's optimum, its own certificate and exact symmetries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from ostension.errors import DataError
from ostension.runtime import torch_generator
from ostension.train import logistic
from ostension.train.logistic import fit_logistic


def planted(n=200, d=8, c=5, seed=0):
    """Features with a decaying spectrum and a mean far from zero, labels drawn from a planted softmax."""
    generator = torch_generator(seed, "planted")
    spread = torch.arange(1, d + 1, dtype=torch.float64) ** -0.7
    centred = torch.randn(n, d, generator=generator, dtype=torch.float64) * spread
    planted_weights = torch.randn(d, c, generator=generator, dtype=torch.float64)
    noise = -torch.empty(n, c, dtype=torch.float64).exponential_(generator=generator).log()
    return centred + 1.0, (centred @ planted_weights * 2 + noise).argmax(1)


def objective_of(features, labels, weight, bias, strength):
    loss = torch.nn.functional.cross_entropy(features @ weight.T + bias, labels)
    return float(loss + weight.square().sum() / (2 * strength * len(labels)))


def test_every_strength_reaches_scikit_learns_optimum():
    features, labels = planted()
    strengths = [1e-2, 1.0, 30.0]
    fit = fit_logistic(features, labels, 5, strengths, tolerance=1e-9)
    assert fit.converged.all() and fit.gradient_norm.max() < 1e-9
    for index, strength in enumerate(strengths):
        oracle = LogisticRegression(C=strength, tol=1e-7, max_iter=10_000).fit(features.numpy(), labels.numpy())
        weight, bias = torch.from_numpy(oracle.coef_), torch.from_numpy(oracle.intercept_)
        assert torch.allclose(fit.weight[index], weight, atol=2e-4, rtol=2e-3)
        assert torch.allclose(fit.bias[index], bias - bias.mean(), atol=2e-3, rtol=2e-3)
        mine = objective_of(features, labels, fit.weight[index], fit.bias[index], strength)
        assert mine == pytest.approx(float(fit.objective[index]), abs=1e-12)
        assert mine <= objective_of(features, labels, weight, bias, strength) + 1e-12


def test_the_certificate_is_the_gradient_of_the_objective_in_the_given_coordinates():
    features, labels = planted()
    fit = fit_logistic(features, labels, 5, [1.0], tolerance=1e-2)
    weight, bias = fit.weight[0].clone().requires_grad_(), fit.bias[0].clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(features @ weight.T + bias, labels) + weight.square().sum() / (2 * len(labels))
    loss.backward()
    norm = torch.cat([weight.grad.flatten(), bias.grad]).norm()
    assert float(norm) == pytest.approx(float(fit.gradient_norm[0]), rel=1e-9)


def test_a_strength_fitted_alone_and_beside_others_is_the_same_optimum():
    features, labels = planted()
    alone = fit_logistic(features, labels, 5, [1.0], tolerance=1e-10)
    beside = fit_logistic(features, labels, 5, [1e-4, 1.0, 1e4], tolerance=1e-10)
    assert torch.allclose(alone.weight[0], beside.weight[1], atol=1e-7)


def test_float32_reaches_the_float64_optimum_within_its_precision():
    features, labels = planted()
    single = fit_logistic(features.float(), labels, 5, [1.0], tolerance=1e-5)
    double = fit_logistic(features, labels, 5, [1.0], tolerance=1e-10)
    assert single.weight.dtype == torch.float32 and single.converged.all()
    assert torch.allclose(single.weight.double(), double.weight, atol=5e-3)


def test_row_chunks_do_not_change_the_result(monkeypatch):
    features, labels = planted(n=61)
    whole = fit_logistic(features, labels, 5, [1.0], tolerance=1e-9)
    monkeypatch.setattr(logistic, "CHUNK_ELEMENTS", 7 * 5)
    assert torch.allclose(whole.weight, fit_logistic(features, labels, 5, [1.0], tolerance=1e-9).weight, atol=1e-8)


def test_relabelled_classes_permute_the_weights():
    features, labels = planted()
    order = torch.tensor([3, 0, 4, 1, 2])
    first, second = (fit_logistic(features, targets, 5, [1.0], tolerance=1e-10) for targets in (labels, order[labels]))
    assert torch.allclose(second.weight[0][order], first.weight[0], atol=1e-8)


def test_separable_classes_with_almost_no_penalty_are_fitted_without_overflow():
    features = torch.tensor(np.repeat([[-1.0], [1.0]], 10, axis=0))
    labels = torch.tensor([0] * 10 + [1] * 10)
    fit = fit_logistic(features, labels, 2, [1e8])
    assert fit.weight.isfinite().all()
    assert (fit.logits(features)[0].argmax(1) == labels).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, y % 4, 5, [1.0]), "class 4 has no sample"),
        (lambda x, y: (x, y - 1, 5, [1.0]), r"labels lie in -1\.\.3"),
        (lambda x, y: (x, y, 4, [1.0]), r"expected 0\.\.3"),
        (lambda x, y: (x * torch.nan, y, 5, [1.0]), "not finite"),
        (lambda x, y: (x, y[1:], 5, [1.0]), "labels"),
        (lambda x, y: (x, y, 5, [0.0]), "above 0"),
    ],
)
def test_data_without_an_optimum_is_refused_with_the_reason(change, message):
    with pytest.raises(DataError, match=message):
        fit_logistic(*change(*planted()))
