"""Noise-adaptive targets: the equation written out, no noise is the plain loss, chunks, gradients, each pair's own loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ostension.errors import ConfigError
from ostension.losses import LossConfig, batch_loss, contrastive_loss, pair_losses
from ostension.runtime import torch_generator

GROUPS = torch.tensor([3, 1, 3, 2, 1, 3, 8])
DUPLICATES = ("separate", "share", "ignore")


def pairs(batch=7, width=5, seed=0):
    generator = torch_generator(seed, "noisy pairs")
    rows = [F.normalize(torch.randn(batch, width, generator=generator, dtype=torch.float64), dim=1) for _ in range(2)]
    noise = torch.rand(batch, generator=generator, dtype=torch.float64)
    return rows[0].requires_grad_(), rows[1].requires_grad_(), noise


def scalar(value):
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def written_out(image, text, scale, noise, groups, duplicates):
    """Both directions, cell by cell."""
    logits, batch = (scale * image @ text.T).tolist(), len(image)
    groups = list(range(batch)) if duplicates == "separate" else groups.tolist()
    total = 0.0
    for direction in range(2):
        for i in range(batch):
            row = [logits[i][j] if direction == 0 else logits[j][i] for j in range(batch)]
            size, eps = groups.count(groups[i]), noise[i].item()
            targets, kept = [0.0] * batch, [True] * batch
            for j in range(batch):
                if groups[j] != groups[i]:
                    targets[j] = eps / (batch - size)
                elif duplicates == "ignore" and j != i:
                    kept[j] = False
                else:
                    targets[j] = (1 - eps) / (1 if duplicates == "ignore" else size)
            assert sum(targets) == pytest.approx(1.0)
            seen = [value for value, keep in zip(row, kept, strict=True) if keep]
            logs = torch.tensor(seen, dtype=torch.float64).log_softmax(0)
            shares = [value for value, keep in zip(targets, kept, strict=True) if keep]
            total -= sum(share * log.item() for share, log in zip(shares, logs, strict=True))
    return total / (2 * batch)


@pytest.mark.parametrize("duplicates", DUPLICATES)
def test_the_loss_is_the_equation_written_out(duplicates):
    image, text, noise = pairs()
    with torch.no_grad():
        expected = written_out(image, text, scalar(6.0), noise, GROUPS, duplicates)
        found = contrastive_loss(image, text, scalar(6.0), groups=GROUPS, duplicates=duplicates, noise=noise)
    assert found.loss.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("duplicates", DUPLICATES)
@pytest.mark.parametrize("chunk_rows", [None, 3])
def test_without_noise_it_is_the_plain_loss(duplicates, chunk_rows):
    found = []
    for noise in (None, torch.zeros(7, dtype=torch.float64)):
        (image, text, _), scale = pairs(), scalar(9.0)
        output = contrastive_loss(image, text, scale, groups=GROUPS, duplicates=duplicates, chunk_rows=chunk_rows, noise=noise)
        output.loss.backward()
        found.append((output.loss, output.image_accuracy, image.grad, text.grad, scale.grad))
    for plain, noisy in zip(*found, strict=True):
        torch.testing.assert_close(plain, noisy, rtol=0, atol=1e-12)


@pytest.mark.parametrize("duplicates", DUPLICATES)
@pytest.mark.parametrize("chunk_rows", [1, 3, 7])
def test_chunks_change_nothing(duplicates, chunk_rows):
    found = []
    for chunk in (None, chunk_rows):
        (image, text, noise), log_scale = pairs(), scalar(3.0)
        config = LossConfig(duplicates=duplicates, chunk_rows=chunk)
        output = batch_loss(image, text, log_scale.exp(), config=config, groups=GROUPS, noise=noise)
        (2 * output.loss).backward()
        found.append((output.loss, image.grad, text.grad, log_scale.grad))
    for plain, chunked in zip(*found, strict=True):
        torch.testing.assert_close(plain, chunked, rtol=0, atol=1e-12)


@pytest.mark.parametrize("duplicates", DUPLICATES)
@pytest.mark.parametrize("chunk_rows", [None, 2])
def test_gradients_are_the_finite_differences(duplicates, chunk_rows):
    image, text, noise = pairs(5, 3)
    config = LossConfig(duplicates=duplicates, chunk_rows=chunk_rows)

    def loss(image, text, log_scale):
        groups = torch.tensor([0, 1, 1, 2, 3])
        return batch_loss(image, text, log_scale.exp(), config=config, groups=groups, noise=noise).loss

    assert torch.autograd.gradcheck(loss, (image, text, scalar(1.3)))


def test_a_pair_that_is_surely_noise_is_pushed_apart():
    image, text, _ = pairs(4)
    noise = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    contrastive_loss(image, text, scalar(5.0), noise=noise).loss.backward()
    nearer = image.detach() - 1e-3 * image.grad
    before, after = (rows @ text.detach().T for rows in (image.detach(), nearer))
    assert after[0, 0] < before[0, 0] and after[1, 1] > before[1, 1]


def test_nobody_to_give_to_keeps_the_plain_targets():
    image, text, noise = pairs(1)
    assert contrastive_loss(image, text, scalar(5.0), noise=noise).loss.item() == 0.0
    image, text, noise = pairs(3)
    settings = {"groups": torch.zeros(3, dtype=torch.long), "duplicates": "share"}
    plain, noisy = (contrastive_loss(image, text, scalar(5.0), noise=value, **settings).loss for value in (None, noise))
    torch.testing.assert_close(plain, noisy, rtol=0, atol=1e-14)


@pytest.mark.parametrize("duplicates", DUPLICATES)
def test_the_mean_of_the_pairs_losses_is_the_loss(duplicates):
    image, text, _ = pairs()
    each = pair_losses(image, text, scalar(7.0), groups=GROUPS, duplicates=duplicates)
    whole = contrastive_loss(image, text, scalar(7.0), groups=GROUPS, duplicates=duplicates)
    torch.testing.assert_close(each.mean(), whole.loss, rtol=0, atol=1e-12)
    if duplicates == "separate":
        logits, own = 7.0 * image @ text.T, torch.arange(7)
        rows, columns = (F.cross_entropy(side, own, reduction="none") for side in (logits, logits.T))
        torch.testing.assert_close(each, (rows + columns) / 2, rtol=0, atol=1e-12)


def test_the_sigmoid_loss_is_not_told_of_noise():
    image, text, noise = pairs()
    with pytest.raises(ConfigError, match="know of noise"):
        batch_loss(image, text, scalar(1.0), config=LossConfig(kind="sigmoid"), bias=scalar(-1.0), noise=noise)
