"""The logistic-regression solver against scikit-learn's optimum, its own certificate and exact symmetries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from ostension.errors import DataError
from ostension.runtime import torch_generator
from ostension.train import _logistic_rows
from ostension.train.denormals import denormals_are_flushed, flushed_denormals
from ostension.train.logistic import LogisticPath, certificate, fit_logistic, plan_memory


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


def test_the_certificate_is_the_gradient_of_the_objective_for_centred_features_of_unit_spread():
    features, labels = planted()
    fit = fit_logistic(features, labels, 5, [1.0], tolerance=1e-2)
    mean = features.mean(0)
    spread = (features - mean).square().sum(1).mean().sqrt()
    weight = (fit.weight[0] * spread).requires_grad_()
    bias = (fit.bias[0] + fit.weight[0] @ mean).requires_grad_()
    loss = torch.nn.functional.cross_entropy((features - mean) / spread @ weight.T + bias, labels)
    (loss + (weight / spread).square().sum() / (2 * len(labels))).backward()
    norm = torch.cat([weight.grad.flatten(), bias.grad]).norm()
    assert float(norm) == pytest.approx(float(fit.gradient_norm[0]), rel=1e-9)
    objective, again = certificate(fit, features, labels)
    assert float(again[0]) == pytest.approx(float(norm), rel=1e-9)
    assert float(objective[0]) == pytest.approx(float(fit.objective[0]), rel=1e-12)


def test_neither_the_place_nor_the_unit_of_the_features_matters():
    features, labels = planted()
    plain = fit_logistic(features, labels, 5, [1.0], tolerance=1e-9)
    moved = fit_logistic(features * 100 + 7, labels, 5, [1e-4], tolerance=1e-9)
    assert torch.equal(plain.iterations, moved.iterations)
    assert torch.allclose(plain.logits(features), moved.logits(features * 100 + 7), atol=1e-6)


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
    monkeypatch.setattr(_logistic_rows, "CHUNK_ELEMENTS", 7 * 8)
    monkeypatch.setattr(_logistic_rows, "FEWEST_ROWS", 1)
    for resident_bytes in (1 << 30, 0):
        fit = fit_logistic(features, labels, 5, [1.0], tolerance=1e-9, resident_bytes=resident_bytes)
        assert torch.allclose(whole.weight, fit.weight, atol=1e-8)


def test_memory_mapped_features_are_never_held_whole(tmp_path):
    features, labels = planted(n=300)
    np.save(tmp_path / "features.npy", features.half().numpy())
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    held, streamed = (fit_logistic(mapped, labels, 5, [1.0, 10.0], resident_bytes=bytes) for bytes in (1 << 30, 0))
    assert held.weight.dtype == torch.float32 and held.converged.all() and streamed.converged.all()
    assert torch.allclose(held.weight, streamed.weight, atol=2e-3)


def test_the_memory_of_a_fit_is_known_before_it_starts():
    imagenet = plan_memory(1_281_167, 1024, 1000, 97)
    assert not imagenet.resident and imagenet.rows_bytes == 0
    assert imagenet.history_bytes == 70 * 1025 * 1000 * 4  # 287 MB
    assert imagenet.chunk_bytes < 20e6 and imagenet.total_bytes < 1.2e9
    small = plan_memory(20_000, 512, 100)
    assert small.resident and small.rows_bytes == 20_000 * 512 * 4


def test_a_prior_is_what_the_weights_are_pulled_to():
    features, labels = planted()
    prior = torch.linspace(-1, 1, 40, dtype=torch.float64).view(5, 8)
    fit = fit_logistic(features, labels, 5, [1e-9, 1.0], prior=prior, tolerance=1e-10)
    assert torch.allclose(fit.weight[0], prior, atol=1e-6)
    # The same problem, told otherwise: the prior's logits as an offset, its weights added afterwards.
    told = fit_logistic(features, labels, 5, [1.0], offset=features @ prior.T, tolerance=1e-10)
    assert torch.allclose(fit.weight[1], told.weight[0] + prior, atol=1e-7)
    assert torch.allclose(fit.bias[1], told.bias[0], atol=1e-7)
    objective, norm = certificate(fit, features, labels, prior=prior)
    assert torch.allclose(objective, fit.objective) and norm.max() <= 1e-9


def test_an_offset_is_part_of_the_logits():
    features, labels = planted()
    offset = features[:, :5] * 3
    fit = fit_logistic(features, labels, 5, [10.0], offset=offset, tolerance=1e-9)
    objective, norm = certificate(fit, features, labels, offset=offset)
    assert float(objective[0]) == pytest.approx(float(fit.objective[0]), rel=1e-10) and norm[0] < 1e-8


def test_a_prior_outside_the_span_of_few_samples_is_kept():
    features, labels = planted(n=12, d=40, c=3)
    prior = torch.linspace(-1, 1, 120, dtype=torch.float64).view(3, 40)
    fit = fit_logistic(features, labels, 3, [1.0], prior=prior, tolerance=1e-10)
    objective, norm = certificate(fit, features, labels, prior=prior)
    assert norm[0] < 1e-9 and float(objective[0]) == pytest.approx(float(fit.objective[0]), rel=1e-10)


def test_large_wrong_offsets_in_float32_take_no_more_passes_than_in_float64():
    generator = torch_generator(0, "wrong")
    features, labels = torch.randn(40, 16, generator=generator), torch.arange(40) % 5
    offset = 20 * torch.randn(40, 5, generator=generator)
    strengths = [10.0 ** (power / 2) for power in range(-12, 13)]
    single, double = (
        LogisticPath(features.to(dtype), labels, 5, offset=offset.to(dtype)) for dtype in (torch.float32, torch.float64)
    )
    fit = single.fit(strengths)
    assert fit.converged.all() and certificate(fit, features, labels, offset=offset)[1].max() < 2e-5
    double.fit(strengths)
    assert single.passes < 2 * double.passes < 40 * len(strengths)


def test_a_sample_of_weight_two_is_the_sample_twice():
    features, labels = planted(n=60)
    weights = torch.ones(60)
    weights[:20], weights[50:] = 2, 0
    rows = torch.cat([torch.arange(50), torch.arange(20)])
    twice = fit_logistic(features[rows], labels[rows], 5, [0.3], tolerance=1e-10)
    weighted = fit_logistic(features, labels, 5, [0.3], sample_weights=weights, tolerance=1e-10)
    assert torch.allclose(twice.weight, weighted.weight, atol=1e-8)
    assert torch.allclose(twice.objective, weighted.objective, atol=1e-12)


def test_sigmoids_are_one_classifier_a_class():
    features, labels = planted()
    targets = torch.stack([labels == 0, labels <= 2, labels >= 1], dim=1).long()
    fit = fit_logistic(features, targets, 3, [0.5], loss="sigmoid", tolerance=1e-10)
    for index in range(3):
        oracle = LogisticRegression(C=0.5, tol=1e-8, max_iter=10_000).fit(features.numpy(), targets[:, index].numpy())
        assert np.allclose(fit.weight[0, index], oracle.coef_[0], atol=1e-4)
        assert np.allclose(fit.bias[0, index], oracle.intercept_[0], atol=1e-4)
    objective, norm = certificate(fit, features, targets, loss="sigmoid")
    assert float(objective[0]) == pytest.approx(float(fit.objective[0]), rel=1e-12) and norm[0] < 1e-9


def test_two_classes_of_a_softmax_at_half_the_strength_are_scikit_learns_one_vector():
    features, labels = planted(c=2)
    fit = fit_logistic(features, labels, 2, [0.35], tolerance=1e-10)
    oracle = LogisticRegression(C=0.7, tol=1e-8, max_iter=10_000).fit(features.numpy(), labels.numpy())
    assert np.allclose(fit.weight[0, 1] - fit.weight[0, 0], oracle.coef_[0], atol=1e-4)


def test_a_class_without_a_sample_is_never_predicted_and_changes_nothing():
    features, labels = planted()
    without = labels != 3
    fit = fit_logistic(features[without], labels[without], 6, [1.0], tolerance=1e-9)
    order = torch.tensor([0, 1, 2, -1, 3])
    alone = fit_logistic(features[without], order[labels[without]], 4, [1.0], tolerance=1e-9)
    assert fit.bias[0, [3, 5]].tolist() == [-torch.inf, -torch.inf] and not fit.weight[0, [3, 5]].any()
    assert torch.allclose(fit.weight[0, [0, 1, 2, 4]], alone.weight[0]) and torch.allclose(fit.objective, alone.objective)
    probabilities = fit.logits_of(0, features).softmax(1)
    assert probabilities.isfinite().all() and not probabilities[:, [3, 5]].any()


def test_a_label_that_is_always_or_never_true_has_its_sigmoid_there():
    features, labels = planted()
    targets = torch.stack([torch.ones_like(labels), labels == 1, torch.zeros_like(labels)], dim=1).long()
    fit = fit_logistic(features, targets, 3, [1.0], loss="sigmoid")
    assert fit.bias[0, 0] == torch.inf and fit.bias[0, 2] == -torch.inf and fit.bias[0, 1].isfinite()


@pytest.mark.parametrize(
    "features",
    [
        torch.zeros(20, 4),  # nothing varies
        torch.arange(20.0)[:, None].expand(20, 4),  # collinear
        torch.ones(20, 4) * 1e4 + torch.eye(20)[:, :4],  # far away and hardly different
        torch.randn(20, 300, generator=torch_generator(0, "wide")),
        torch.randn(20, 4, generator=torch_generator(0, "scaled")) * torch.tensor([1e-6, 1.0, 1e3, 1e6]),
    ],
    ids=["constant", "collinear", "far", "wide", "scaled"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_poor_features_are_fitted_to_their_certificate(features, dtype):
    labels = torch.arange(20) % 3
    fit = fit_logistic(features.to(dtype), labels, 3, [1e-3, 1.0, 1e3], tolerance=1e-4)
    assert fit.weight.isfinite().all() and fit.bias.isfinite().all()
    _, norm = certificate(fit, features.to(dtype), labels)
    # A bias of 1e5 in float32 is rounded by 4e-3.
    assert fit.converged.all() and norm.max() < (4e-3 if dtype == torch.float32 else 1.01e-4)


def test_one_sample_a_class_and_one_class_alone_are_fitted():
    features = torch.eye(4, 10)
    fit = fit_logistic(features, torch.arange(4), 4, [1e-6, 1.0, 1e6])
    assert fit.converged.all() and (fit.logits(features)[2].argmax(1) == torch.arange(4)).all()
    alone = fit_logistic(features, torch.zeros(4, dtype=torch.int64), 1, [1.0])
    assert float(alone.objective[0]) == 0 and alone.converged.all()


def test_a_path_asked_for_here_and_there_is_the_path_in_order():
    features, labels = planted()
    strengths = [10.0**power for power in range(-4, 5)]
    ordered = fit_logistic(features, labels, 5, strengths, tolerance=1e-9)
    path = LogisticPath(features, labels, 5, tolerance=1e-9)
    for strength in (1.0, 1e4, 1e-4, 1e-2, 1e2, 10.0):
        path.solve(strength)
    passes = path.passes
    asked = path.fit(strengths)
    assert torch.allclose(asked.objective, ordered.objective, atol=1e-10) and asked.converged.all()
    assert torch.allclose(asked.weight, ordered.weight, atol=1e-3)
    path.fit(strengths)
    assert path.passes > passes and path.fit(strengths[:1]).iterations[0] == asked.iterations[0]


def test_a_fine_path_takes_few_passes_a_strength():
    features, labels = planted(n=1000, d=16)
    path = LogisticPath(features.float(), labels, 5)
    assert path.fit([10 ** (-6 + step / 8) for step in range(97)]).converged.all()
    assert path.passes < 5 * 97


def test_an_unreachable_tolerance_ends_and_says_so():
    features, labels = planted()
    fit = fit_logistic(features.float(), labels, 5, [1.0], tolerance=1e-14)
    assert not fit.converged[0] and fit.gradient_norm[0] < 1e-5 and fit.iterations[0] < 200


@pytest.mark.parametrize("before", [False, True])
def test_the_processor_treats_denormals_afterwards_as_before(before):
    try:
        torch.set_flush_denormal(before)
        with flushed_denormals():
            assert denormals_are_flushed()
        fit_logistic(*planted(), 5, [1.0])
        with pytest.raises(DataError):
            fit_logistic(*planted(), 5, [-1.0])
        assert denormals_are_flushed() == before
    finally:
        torch.set_flush_denormal(False)


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
        (lambda x, y: (x, y - 1, 5, [1.0]), r"labels lie in -1\.\.3"),
        (lambda x, y: (x, y, 4, [1.0]), r"expected 0\.\.3"),
        (lambda x, y: (x * torch.nan, y, 5, [1.0]), "not finite"),
        (lambda x, y: (x, y[1:], 5, [1.0]), "labels"),
        (lambda x, y: (x, y, 5, [0.0]), "above 0"),
        (lambda x, y: (x, y, 5, [float("nan")]), "above 0"),
        (lambda x, y: (x, y, 5, []), "one or more"),
        (lambda x, y: (x[:0], y[:0], 5, [1.0]), "N above 0"),
    ],
)
def test_data_without_an_optimum_is_refused_with_the_reason(change, message):
    with pytest.raises(DataError, match=message):
        fit_logistic(*change(*planted()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"offset": torch.zeros(200, 4)}, "the offset has shape"),
        ({"offset": torch.full((200, 5), torch.inf)}, "the offset is not finite"),
        ({"prior": torch.zeros(8, 5)}, r"the prior has shape \(8, 5\)"),
        ({"sample_weights": -torch.ones(200)}, "the sample weights are negative"),
        ({"sample_weights": torch.zeros(200)}, "all zero"),
        ({"loss": "sigmoid"}, r"expected \(N, D\) and \(N, 5\)"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused(settings, message):
    with pytest.raises(DataError, match=message):
        fit_logistic(*planted(), 5, [1.0], **settings)


def test_labels_of_sigmoids_are_zeros_and_ones():
    features, labels = planted()
    with pytest.raises(DataError, match="neither 0 nor 1"):
        fit_logistic(features, torch.stack([labels, labels], dim=1), 2, [1.0], loss="sigmoid")
