"""The losses against equations worked out by hand, finite differences, and their plain forms."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from ostension.errors import ConfigError
from ostension.losses import LossConfig, batch_loss, contrastive_loss, neutral_sigmoid_bias, sigmoid_loss
from ostension.runtime import torch_generator


def pairs(batch=7, width=5, *, dtype=torch.float64, seed=0):
    generator = torch_generator(seed, "pairs")
    image, text = (F.normalize(torch.randn(batch, width, generator=generator, dtype=dtype), dim=1) for _ in range(2))
    return image.requires_grad_(), text.requires_grad_()


def scalar(value, dtype=torch.float64):
    return torch.tensor(value, dtype=dtype, requires_grad=True)


def value(output):
    return output.loss.item()


def test_two_pairs_give_the_loss_worked_out_by_hand():
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    text = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    logits = [[2.0, 1.2], [0.0, 1.6]]
    rows = [math.log(math.exp(a) + math.exp(b)) for a, b in logits]
    columns = [math.log(math.exp(logits[0][j]) + math.exp(logits[1][j])) for j in range(2)]
    expected = (rows[0] - 2.0 + rows[1] - 1.6 + columns[0] - 2.0 + columns[1] - 1.6) / 4
    output = contrastive_loss(image, text, scalar(2.0))
    assert value(output) == pytest.approx(expected, abs=1e-15)
    assert (output.image_accuracy, output.text_accuracy) == (1.0, 1.0)


def test_sigmoid_loss_of_two_pairs_is_the_one_worked_out_by_hand():
    image = torch.eye(2, dtype=torch.float64)
    text = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    cells = [(1, 2.0 - 1), (-1, 1.2 - 1), (-1, 0.0 - 1), (1, 1.6 - 1)]
    expected = sum(math.log(1 + math.exp(-sign * logit)) for sign, logit in cells) / 2
    assert value(sigmoid_loss(image, text, scalar(2.0), scalar(-1.0))) == pytest.approx(expected, abs=1e-15)


def test_the_contrastive_loss_is_the_mean_of_two_cross_entropies():
    image, text = pairs(11)
    logits = 9.0 * image @ text.T
    labels = torch.arange(11)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    assert value(contrastive_loss(image, text, scalar(9.0))) == pytest.approx(expected.item(), abs=1e-14)


@pytest.mark.parametrize("chunk_rows", [None, 3])
def test_equal_logits_give_the_logarithm_of_the_batch(chunk_rows):
    for batch in (1, 2, 8):
        same = F.normalize(torch.ones(batch, 4, dtype=torch.float64), dim=1)
        output = contrastive_loss(same, same, scalar(100.0), chunk_rows=chunk_rows)
        assert value(output) == pytest.approx(math.log(batch), abs=1e-12)


@pytest.mark.parametrize("chunk_rows", [None, 1])
def test_a_batch_of_one_has_no_loss_and_no_gradient(chunk_rows):
    image, text = pairs(1)
    scale = scalar(10.0)
    output = contrastive_loss(image, text, scale, chunk_rows=chunk_rows)
    output.loss.backward()
    assert value(output) == 0.0
    assert image.grad.abs().max() == text.grad.abs().max() == scale.grad == 0.0


def test_identical_images_leave_ln_b_in_the_text_direction():
    image, text = pairs(6)
    image = image[:1].expand(6, -1)
    logits = 20.0 * image @ text.T
    rows = F.cross_entropy(logits, torch.arange(6))
    output = contrastive_loss(image, text, scalar(20.0))
    assert value(output) == pytest.approx((rows.item() + math.log(6)) / 2, abs=1e-12)


def test_duplicate_captions_bound_the_loss_unless_they_are_ignored():
    # Two pairs of one caption and one drawing, far from the third pair.
    vectors = torch.tensor([[1.0, 0], [1.0, 0], [0, 1.0]], dtype=torch.float64)
    groups = torch.tensor([5, 5, 9])
    sharp, bound = scalar(200.0), pytest.approx(2 * math.log(2) / 3, abs=1e-12)
    assert value(contrastive_loss(vectors, vectors, sharp)) == bound
    assert value(contrastive_loss(vectors, vectors, sharp, groups=groups, duplicates="share")) == bound
    ignored = contrastive_loss(vectors, vectors, sharp, groups=groups, duplicates="ignore")
    assert value(ignored) == pytest.approx(0.0, abs=1e-12)


def test_sharing_is_cross_entropy_against_the_normalised_group_matrix():
    image, text = pairs(6)
    groups = torch.tensor([0, 1, 0, 2, 1, 0])
    logits = 7.0 * image @ text.T
    targets = (groups[:, None] == groups).double()
    targets /= targets.sum(1, keepdim=True)
    expected = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
    output = contrastive_loss(image, text, scalar(7.0), groups=groups, duplicates="share")
    assert value(output) == pytest.approx(expected.item(), abs=1e-14)


def test_ignoring_drops_the_other_cells_of_the_group_from_the_sums():
    image, text = pairs(4)
    groups = torch.tensor([0, 1, 0, 2])
    logits = 7.0 * image @ text.T
    logits[0, 2] = logits[2, 0] = -math.inf
    labels = torch.arange(4)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    output = contrastive_loss(image, text, scalar(7.0), groups=groups, duplicates="ignore")
    assert value(output) == pytest.approx(expected.item(), abs=1e-14)


def test_accuracy_counts_any_member_of_the_group():
    image = torch.eye(3, dtype=torch.float64)
    text = torch.eye(3, dtype=torch.float64)[[1, 0, 2]]
    assert contrastive_loss(image, text, scalar(5.0)).image_accuracy == pytest.approx(1 / 3)
    shared = contrastive_loss(image, text, scalar(5.0), groups=torch.tensor([4, 4, 7]), duplicates="share")
    assert (shared.image_accuracy, shared.text_accuracy) == (1.0, 1.0)


@pytest.mark.parametrize("chunk_rows", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("duplicates", ["separate", "share", "ignore"])
@pytest.mark.parametrize("kind", ["contrastive", "sigmoid"])
def test_the_chunked_form_equals_the_plain_form_with_gradients(kind, duplicates, chunk_rows):
    groups = torch.tensor([3, 1, 3, 2, 1, 3, 8])
    found = []
    for chunk in (None, chunk_rows):
        (image, text), log_scale, bias = pairs(), scalar(math.log(30.0)), scalar(-2.0)
        config = LossConfig(kind=kind, duplicates=duplicates, chunk_rows=chunk)
        output = batch_loss(image, text, log_scale.exp(), config=config, bias=bias, groups=groups)
        (3 * output.loss).backward()
        gradients = [image.grad, text.grad, log_scale.grad] + ([bias.grad] if kind == "sigmoid" else [])
        found.append((output, gradients))
    (plain, plain_gradients), (chunked, chunked_gradients) = found
    for one, other in zip(plain, chunked, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    for one, other in zip(plain_gradients, chunked_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["contrastive", "sigmoid"])
@pytest.mark.parametrize("chunk_rows", [None, 2])
def test_gradients_of_towers_and_scale_are_the_finite_differences(kind, chunk_rows):
    image, text = pairs(5, 3)
    groups = torch.tensor([0, 1, 1, 2, 3])
    config = LossConfig(kind=kind, duplicates="share", chunk_rows=chunk_rows)

    def loss(image, text, log_scale, bias):
        return batch_loss(image, text, log_scale.exp(), config=config, bias=bias, groups=groups).loss

    assert torch.autograd.gradcheck(loss, (image, text, scalar(1.3), scalar(-0.5)))


def test_the_gradient_of_the_log_scale_is_exact_for_orthogonal_pairs():
    # B pairs, logits s on the diagonal and 0 off it: L = ln(e^s + B - 1) - s, so dL/d ln s = s (e^s / (e^s + B - 1) - 1).
    eye, log_scale = torch.eye(4, dtype=torch.float64), scalar(math.log(1 / 0.07))
    contrastive_loss(eye, eye, log_scale.exp()).loss.backward()
    scale = 1 / 0.07
    assert log_scale.grad.item() == pytest.approx(scale * (math.exp(scale) / (math.exp(scale) + 3) - 1), rel=1e-9)


def test_half_precision_embeddings_are_compared_in_float32():
    image, text = pairs(8, 16, dtype=torch.float32)
    output = contrastive_loss(image.bfloat16(), text.bfloat16(), scalar(50.0, torch.float32))
    exact = contrastive_loss(image.bfloat16().double(), text.bfloat16().double(), scalar(50.0))
    assert output.loss.dtype == torch.float32
    assert value(output) == pytest.approx(value(exact), rel=1e-5)


def test_the_neutral_bias_expects_one_yes_a_row():
    bias = neutral_sigmoid_bias(64)
    assert torch.sigmoid(torch.tensor(bias, dtype=torch.float64)).item() == pytest.approx(1 / 64)
    zeros, learned = torch.zeros(64, 4, dtype=torch.float64), scalar(bias)
    sigmoid_loss(zeros, zeros, scalar(10.0), learned).loss.backward()
    assert learned.grad.item() == pytest.approx(0.0, abs=1e-12)
    assert neutral_sigmoid_bias(22_027) == pytest.approx(-10.0, abs=1e-4)
    with pytest.raises(ConfigError, match="2 or more"):
        neutral_sigmoid_bias(1)


def test_settings_that_cannot_act_are_refused():
    image, text = pairs(3)
    with pytest.raises(ConfigError, match="bring no groups"):
        batch_loss(image, text, scalar(1.0), config=LossConfig(duplicates="share"))
    with pytest.raises(ConfigError, match="logit bias"):
        batch_loss(image, text, scalar(1.0), config=LossConfig(kind="sigmoid"))
    with pytest.raises(ConfigError, match="chunk_rows"):
        LossConfig(chunk_rows=0)


@pytest.mark.parametrize("chunk_rows", [None, 2])
def test_a_non_finite_embedding_makes_the_loss_non_finite(chunk_rows):
    image, text = pairs(5)
    broken = image.detach().clone()
    broken[3, 0] = math.nan
    assert not math.isfinite(value(contrastive_loss(broken, text, scalar(1.0), chunk_rows=chunk_rows)))
