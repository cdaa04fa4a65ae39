"""Position embeddings for other sizes."""

from __future__ import annotations

import pytest
import torch

from ostension.errors import ConfigError
from ostension.model.positions import resize_image_positions, resize_text_positions


def plane(grid, class_row):
    """A table whose rows are linear in the two coordinates, measured from the middle of the image."""
    at = (torch.arange(grid) + 0.5) / grid - 0.5
    rows = torch.stack(torch.meshgrid(at, at, indexing="ij"), dim=-1).view(-1, 2)
    return torch.cat([torch.full((int(class_row), 2), 9.0), rows])


@pytest.mark.parametrize("class_row", [True, False])
def test_enlarging_a_linear_table_keeps_it_linear_inside_and_the_class_row(class_row):
    larger = resize_image_positions(plane(8, class_row), 16, class_row=class_row)
    inside = (slice(4, 12), slice(4, 12))
    grids = [table[int(class_row) :].view(16, 16, 2)[inside] for table in (larger, plane(16, class_row))]
    assert torch.allclose(*grids, atol=1e-4)
    if class_row:
        assert bool((larger[0] == 9).all())


def test_shrinking_averages_over_more_than_two_rows():
    """With antialias a checkerboard becomes flat; without, it would keep some of its contrast."""
    board = ((torch.arange(16)[:, None] + torch.arange(16)) % 2).float().view(-1, 1)
    assert float((resize_image_positions(board, 4, class_row=False) - 0.5).abs().max()) < 0.05


def test_the_same_size_is_the_same_table():
    table = torch.randn(17, 4)
    assert resize_image_positions(table, 4, class_row=True) is table
    assert resize_text_positions(table, 17) is table


def test_text_positions_are_interpolated_linearly():
    table = torch.arange(4.0)[:, None]
    assert resize_text_positions(table, 8)[:, 0].tolist() == pytest.approx([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-siglip", "tiny-resnet"])
def test_a_resized_model_takes_the_new_sizes_and_leaves_the_old_one_alone(tiny, tokens, name):
    model = tiny(name)
    size = model.config.vision.image_size
    before = {key: value.clone() for key, value in model.state_dict().items()}
    resized = model.resized(image_size=2 * size, context_length=30)
    assert resized.encode_image(torch.randn(2, 3, 2 * size, 2 * size)).shape == (2, model.config.embed_dim)
    assert resized.encode_text(torch.ones(2, 30, dtype=torch.int64)).shape == (2, model.config.embed_dim)
    assert resized.config.preprocess.image_size == 2 * size and resized.tokenizer("a cat").shape == (1, 30)
    assert resized.provenance["resized_from"] == {"image_size": size, "context_length": 24}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    same = model.resized()
    assert all(torch.equal(value, before[key]) for key, value in same.state_dict().items())


def test_a_size_that_the_tower_cannot_take_is_refused(tiny):
    with pytest.raises(ConfigError, match="vision.image_size is 100; expected a multiple of 32"):
        tiny("tiny-resnet").resized(image_size=100)
