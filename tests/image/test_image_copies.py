"""Altered copies: one kind of change at a time, within its range, the same for the same generator."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ostension.errors import ConfigError
from ostension.image.copies import KINDS, CopyConfig, altered_copy
from ostension.runtime import numpy_generator


def picture(width=60, height=40):
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([across, down, 255 - across], axis=-1).astype(np.uint8))


def copies(config, count=40, of=None):
    return [altered_copy(of or picture(), config, numpy_generator("copies", index)) for index in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_changes_the_picture_and_the_same_generator_gives_the_same_copy(kind):
    first, second = copies(CopyConfig().only(kind), 8), copies(CopyConfig().only(kind), 8)
    assert [copy.tobytes() for copy in first] == [copy.tobytes() for copy in second]
    assert any(copy.tobytes() != picture().tobytes() for copy in first)
    assert all(copy.mode == "RGB" for copy in first)


def test_a_crop_keeps_at_least_its_share_of_the_area():
    areas = [copy.width * copy.height / 2400 for copy in copies(CopyConfig(crop=0.5).only("crop"))]
    assert 0.45 <= min(areas) < 0.6
    assert 0.9 < max(areas) <= 1


def test_a_stretch_changes_the_aspect_by_at_most_its_factor():
    ratios = [copy.width / copy.height / 1.5 for copy in copies(CopyConfig(stretch=2.0).only("stretch"))]
    assert 0.48 <= min(ratios) < 0.8
    assert 1.25 < max(ratios) <= 2.1


def test_resizing_leaves_fewer_pixels_or_as_many_as_before():
    sizes = {copy.size for copy in copies(CopyConfig(resize=0.25).only("resize"))}
    assert (60, 40) in sizes
    assert all(15 <= width <= 60 for width, _ in sizes)
    assert min(width for width, _ in sizes) < 30


def test_switching_a_kind_off_leaves_the_others_as_they_were():
    crops = [copy.size for copy in copies(CopyConfig(kinds=("crop",), share=0.5))]
    both = [copy.size for copy in copies(CopyConfig(kinds=("turn", "crop", "jpeg"), share=0.5))]
    assert crops == both
    assert len(set(crops)) > 10


def test_pictures_of_one_pixel_and_of_one_row_are_copied_too():
    for size in ((1, 1), (1, 30), (30, 1)):
        assert all(min(copy.size) >= 1 for copy in copies(CopyConfig(share=1.0), 10, Image.new("RGB", size, (9, 99, 199))))


@pytest.mark.parametrize(
    "wrong",
    [{"share": 0.0}, {"crop": 1.5}, {"stretch": 0.5}, {"turn": 90.0}, {"jpeg": (90, 20)}, {"kinds": ("flip",)}, {"kinds": ()}],
)
def test_settings_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(ConfigError, match="copies"):
        CopyConfig(**wrong)
