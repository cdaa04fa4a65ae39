"""The chunked loss takes one exponential for a whole block of logits; where they are too far apart for that, it does not."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from ostension.losses import contrastive_loss
from ostension.losses._chunked import Columns, shift_of
from ostension.runtime import torch_generator


def unit_rows(name, count=24, width=6):
    return F.normalize(torch.randn(count, width, generator=torch_generator("range", name), dtype=torch.float64), dim=1)


def far_apart():
    """One image that is opposite to every text, and one text that is opposite to most images."""
    image, text = unit_rows("image").abs(), unit_rows("text").abs()
    image[5], text[7] = -F.normalize(text.sum(0), dim=0), -F.normalize(image.sum(0), dim=0)
    return image, text


def gradients(image, text, scale, **options):
    image, text, scale = (value.detach().requires_grad_() for value in (image, text, scale))
    found = contrastive_loss(image, text, scale, **options)
    found.loss.backward()
    return [found.loss.detach(), image.grad, text.grad, scale.grad, found.image_accuracy, found.text_accuracy]


@pytest.mark.parametrize("chunk_rows", [1, 5, 24])
@pytest.mark.parametrize("duplicates", ["separate", "ignore", "share"])
@pytest.mark.parametrize("scale", [1.0, 100.0, 3000.0])
def test_logits_of_any_spread_give_the_plain_loss(scale, duplicates, chunk_rows):
    image, text = far_apart()
    groups = torch.arange(24) // 3
    scale = torch.tensor(scale, dtype=torch.float64)
    expected = gradients(image, text, scale, groups=groups, duplicates=duplicates)
    found = gradients(image, text, scale, groups=groups, duplicates=duplicates, chunk_rows=chunk_rows)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    narrow = gradients(image.float(), text.float(), scale.float(), groups=groups, duplicates=duplicates, chunk_rows=chunk_rows)
    assert all(torch.isfinite(value).all() for value in narrow)
    torch.testing.assert_close(narrow[0], expected[0].float(), rtol=1e-5, atol=1e-6)


def test_a_shift_is_taken_only_where_every_row_and_column_comes_near_it():
    near = torch.tensor([3.0, 50.0, 12.0])
    assert shift_of(near, near) == 50.0
    assert shift_of(torch.tensor([3.0, 70.0]), near) is None
    assert shift_of(near, torch.tensor([-20.0, 50.0])) is None
    assert shift_of(near, torch.tensor([-math.inf, 50.0])) == 50.0  # a column that no row of the block may see


def test_the_best_row_of_a_column_is_the_first_of_equals_however_the_rows_are_cut():
    logits = torch.tensor([[1.0, 2.0, 0.0], [1.0, 3.0, 0.0], [0.0, 3.0, 5.0], [1.0, 0.0, 5.0]])
    for cut in (1, 2, 3, 4):
        columns = Columns(3, logits)
        for start in range(0, 4, cut):
            columns.see(logits[start : start + cut], start)
        assert columns.best.tolist() == [0, 1, 2]
