"""Random views: crops against Pillow, the fused recolouring against its steps, draws from the generator and nowhere else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_samples import encode, photo
from PIL import Image

from ostension.errors import ConfigError, DataError
from ostension.image.augment import (
    AugmentConfig,
    CropConfig,
    RandomView,
    Recolouring,
    augment,
    premultiplied,
    random_affine,
    random_box,
    random_recolouring,
    recolour,
    warp,
)
from ostension.image.transforms import PreprocessConfig, Transform
from ostension.runtime import numpy_generator, torch_generator

PREPROCESS = PreprocessConfig(image_size=32)


def drawings(count: int = 5, side: int = 24, *, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, side, side, 4), dtype=torch.uint8, generator=torch_generator(seed, "drawings"))


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (64, 64)])
def test_a_random_square_is_a_square_of_the_resized_picture(size):
    image = photo(*size)
    view = RandomView(PREPROCESS, CropConfig())
    across, down = numpy_generator(3, "view").random(2)
    resized = image.resize((48, 32) if size[0] > size[1] else (32, 48) if size[0] < size[1] else (32, 32))
    left, top = int(across * (resized.width - 31)), int(down * (resized.height - 31))
    expected = Transform(PREPROCESS)(resized.crop((left, top, left + 32, top + 32)))
    assert torch.equal(view(image, numpy_generator(3, "view")), expected)


def test_every_offset_of_a_random_square_is_drawn():
    image = Image.fromarray(np.tile(np.arange(36, dtype=np.uint8)[None, :, None], (32, 1, 3)))
    view, generator = RandomView(PREPROCESS, CropConfig()), numpy_generator(0, "offsets")
    std, mean = PREPROCESS.std[0], PREPROCESS.mean[0]
    firsts = {round((view(image, generator)[0, 0, 0].item() * std + mean) * 255) for _ in range(200)}
    assert firsts == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("kind", ["square", "resized"])
def test_a_mirrored_view_is_the_same_part_turned_left_to_right_every_second_time(kind):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 70, 3), dtype=np.uint8))
    plain, mirrored = (RandomView(PREPROCESS, CropConfig(kind=kind, mirror=mirror)) for mirror in (False, True))
    turned = 0
    for seed in range(60):
        straight, found = (view(picture, numpy_generator(seed, "views")) for view in (plain, mirrored))
        assert torch.equal(found, straight) != torch.equal(found, straight.flip(-1))
        turned += torch.equal(found, straight.flip(-1))
    assert 18 <= turned <= 42


@settings(max_examples=100, deadline=None)
@given(width=st.integers(1, 400), height=st.integers(1, 400), seed=st.integers(0, 1000))
def test_a_random_box_lies_in_the_picture_and_has_an_allowed_shape(width, height, seed):
    config = CropConfig(kind="resized", scale=(0.3, 0.8))
    left, top, right, bottom = random_box((width, height), config, numpy_generator(seed, "box"))
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    wide, high = right - left, bottom - top
    # Sides are rounded to whole pixels, so the shape is allowed up to half a pixel.
    assert (wide + 0.5) / max(high - 0.5, 0.5) >= config.ratio[0]
    assert max(wide - 0.5, 0.5) / (high + 0.5) <= config.ratio[1]


def test_the_area_and_the_shape_of_random_boxes_are_spread_as_configured():
    config, generator = CropConfig(kind="resized", scale=(0.25, 0.75)), numpy_generator(1, "boxes")
    boxes = np.array([random_box((1000, 1000), config, generator) for _ in range(2000)])
    wide, high = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert abs((wide * high / 1e6).mean() - 0.5) < 0.01
    assert abs(np.log(wide / high).mean()) < 0.01 and abs(np.log(wide / high).std() - np.log(4 / 3) / 3**0.5) < 0.01


def test_a_picture_with_no_allowed_part_gives_the_largest_one_in_its_middle():
    config = CropConfig(kind="resized")
    assert random_box((1000, 10), config, numpy_generator(0, "none")) == (493, 0, 506, 10)
    assert random_box((10, 1000), config, numpy_generator(0, "none")) == (0, 493, 10, 506)


def test_a_random_part_is_cut_out_and_squashed():
    image = photo(90, 60)
    config = CropConfig(kind="resized", scale=(0.3, 0.5))
    box = random_box(image.size, config, numpy_generator(7, "part"))
    part = image.crop(box).resize((32, 32), Image.Resampling.BICUBIC)
    expected = Transform(PREPROCESS)(part)
    assert torch.equal(RandomView(PREPROCESS, config)(encode(image, "PNG"), numpy_generator(7, "part")), expected)


def test_a_random_view_names_a_bad_picture():
    for kind in ("square", "resized"):
        with pytest.raises(DataError, match="^shard 2: not a picture"):
            RandomView(PREPROCESS, CropConfig(kind=kind))(b"nonsense", numpy_generator(0, "view"), name="shard 2")


def test_premultiplying_takes_colour_times_alpha():
    one = torch.tensor([[[[255, 128, 0, 255], [200, 100, 50, 51]]]], dtype=torch.uint8)
    expected = torch.tensor([[1, 0.2 * 200 / 255], [128 / 255, 0.2 * 100 / 255], [0, 0.2 * 50 / 255], [1, 0.2]])
    assert torch.allclose(premultiplied(one)[0, :, 0], expected)


def test_the_identity_leaves_drawings_where_they_are():
    x = premultiplied(drawings())
    identity = torch.eye(2, 3).expand(len(x), 2, 3)
    assert torch.allclose(warp(x, identity, 24), x, atol=1e-5)


def test_a_quarter_turn_and_a_shift_land_on_the_right_pixels():
    x = premultiplied(drawings(side=8)).double()
    turn = torch.tensor([[0.0, -1, 0], [1, 0, 0]]).expand(len(x), 2, 3)
    assert torch.allclose(warp(x, turn, 8), torch.rot90(x, 1, (2, 3)))
    shift = torch.tensor([[1.0, 0, 2 * 3 / 8], [0, 1, 0]]).expand(len(x), 2, 3)  # look three pixels to the right
    moved = warp(x, shift, 8)
    assert torch.allclose(moved[..., :5], x[..., 3:]) and not moved[..., 5:].any()  # outside is transparent


def test_the_warp_samples_where_affine_grid_says():
    x = premultiplied(drawings(side=20)).double()
    matrices = random_affine(len(x), AugmentConfig(), torch_generator(0, "matrices")).double()
    grid = torch.nn.functional.affine_grid(matrices, [len(x), 4, 16, 16], align_corners=False)
    expected = torch.nn.functional.grid_sample(x, grid, align_corners=False)
    assert torch.allclose(warp(x, matrices, 16), expected, atol=1e-12)


def test_the_fused_recolouring_equals_its_steps():
    x = premultiplied(drawings(7)).double()
    change = random_recolouring(7, AugmentConfig(jitter=0.5, grey=0.4), torch_generator(2, "colours"))
    change = Recolouring(*(value.double() for value in dataclasses.astuple(change)))
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)

    picture = x[:, :3] + (1 - x[:, 3:]) * change.background[:, :, None, None]
    picture = picture * change.gain[:, :, None, None]
    middle = picture.mean((1, 2, 3), keepdim=True)
    picture = (picture - middle) * change.contrast[:, None, None, None] + middle
    grey = picture.mean(1, keepdim=True)
    picture = grey + (picture - grey) * change.saturation[:, None, None, None]
    shift, scale = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (mean, std))
    expected = (picture - shift) / scale

    assert torch.allclose(recolour(x, change, mean=mean, std=std), expected, rtol=0, atol=1e-12)
    assert torch.allclose(recolour(x.float(), change, mean=mean, std=std).double(), expected, rtol=0, atol=1e-4)


def test_without_strength_a_view_is_the_drawing_on_white():
    x = premultiplied(drawings())
    expected = x[:, :3] + (1 - x[:, 3:])
    view = augment(x, AugmentConfig(), torch_generator(0, "views"), side=24, strength=0.0)
    assert torch.allclose(view, expected, atol=1e-4)


def test_grey_views_have_no_colour_and_backgrounds_show_where_it_is_transparent():
    x = torch.zeros(50, 4, 6, 6)
    views = augment(x, AugmentConfig(grey=1.0), torch_generator(0, "views"), side=6)
    assert torch.allclose(views[:, 0], views[:, 1], atol=1e-5) and torch.allclose(views[:, 0], views[:, 2], atol=1e-5)
    plain = AugmentConfig(jitter=0.0, grey=0.0, background=0.5)
    corner = augment(x, plain, torch_generator(1, "views"), side=6)[:, :, 0, 0]
    white = (corner - 1).abs().amax(1) < 1e-5
    assert 10 < white.sum() < 40 and corner[~white].std() > 0.2


def test_views_depend_on_the_generator_and_on_nothing_else():
    x = premultiplied(drawings())
    state = torch.random.get_rng_state()
    first, second = (augment(x, AugmentConfig(), torch_generator(0, "views"), side=16) for _ in range(2))
    other = augment(x, AugmentConfig(), torch_generator(1, "views"), side=16)
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.shape == (5, 3, 16, 16)


def test_bfloat16_drawings_give_bfloat16_views():
    x = premultiplied(drawings())
    close = augment(x.bfloat16(), AugmentConfig(), torch_generator(0, "views"), side=24)
    assert close.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: AugmentConfig(rotation=-1.0), "augment.rotation"),
        (lambda: AugmentConfig(grey=1.5), "augment.grey"),
        (lambda: CropConfig(scale=(0.0, 1.0)), "crop.scale"),
        (lambda: CropConfig(scale=(0.9, 0.8)), "crop.scale"),
        (lambda: CropConfig(ratio=(2.0, 1.0)), "crop.ratio"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(make, key):
    with pytest.raises(ConfigError, match=key):
        make()
