"""The window resize against Pillow itself, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_samples import noise, photo
from PIL import Image

from ostension.image import resample as module
from ostension.image.resample import FILTERED_MODES, coefficients, nearest, resample

PILLOW = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
SIDES = st.one_of(st.integers(1, 12), st.integers(13, 400))


def pillow_planes(image, size, window, interpolation):
    small = image.resize(size, PILLOW[interpolation]).crop(window)
    return np.stack([np.asarray(band) for band in small.split()])


@settings(max_examples=80, deadline=None)
@given(width=SIDES, height=SIDES, out=st.tuples(SIDES, SIDES), data=st.data())
def test_any_window_of_any_size_has_pillows_bits(width, height, out, data):
    image = noise(data.draw(st.sampled_from(["RGB", "L", "RGBa"])), width, height, binary=data.draw(st.booleans()))
    left, top = (data.draw(st.integers(0, side - 1)) for side in out)
    right, bottom = (data.draw(st.integers(low + 1, side)) for low, side in zip((left, top), out, strict=True))
    for interpolation in PILLOW:
        ours = resample(image, out, (left, top, right, bottom), interpolation)
        assert np.array_equal(ours, pillow_planes(image, out, (left, top, right, bottom), interpolation))


@pytest.mark.parametrize("mode", sorted(FILTERED_MODES - {"RGBA", "LA"}))
def test_every_filtered_mode_has_pillows_bits(mode):
    image = noise(mode, 83, 61)
    for out in ((50, 37), (120, 90)):
        window = (3, 5, out[0] - 2, out[1] - 7)
        assert np.array_equal(resample(image, out, window), pillow_planes(image, out, window, "bicubic"))


def test_a_picture_of_many_strips_and_blocks_has_pillows_bits():
    image = photo(1000, 700)
    for out in ((327, 224), (224, 500), (1001, 3), (7, 701)):
        window = (out[0] // 5, out[1] // 7, out[0], out[1])
        assert np.array_equal(resample(image, out, window), pillow_planes(image, out, window, "bicubic"))


def test_a_large_reduction_does_not_keep_its_weights():
    image = noise("L", 60_000, 3)
    module._cached_blocks.cache_clear()
    window = (0, 0, 20, 3)
    assert np.array_equal(resample(image, (20, 3), window), pillow_planes(image, (20, 3), window, "bicubic"))
    assert module._cached_blocks.cache_info().currsize == 0


def test_the_order_of_the_passes_is_pillows():
    for size, out in (((30, 100), (20, 10)), ((300, 10), (10, 8)), ((10, 3000), (10, 30)), ((99, 200), (50, 100))):
        image = noise("L", *size, binary=True)
        window = (0, 0, *out)
        assert np.array_equal(resample(image, out, window), pillow_planes(image, out, window, "bicubic"))


def test_the_size_that_it_has_leaves_a_picture_alone():
    image = photo(40, 30)
    assert np.array_equal(resample(image, (40, 30), (5, 6, 25, 26)), np.asarray(image)[6:26, 5:25].transpose(2, 0, 1))


@settings(max_examples=60, deadline=None)
@given(width=SIDES, height=SIDES, out=st.tuples(SIDES, SIDES))
def test_nearest_takes_the_pixels_that_pillow_takes(width, height, out):
    for mode in ("P", "1"):
        image = noise(mode, width, height)
        window = (out[0] // 3, out[1] // 4, out[0], out[1])
        expected = image.resize(out, Image.Resampling.NEAREST).crop(window)
        assert np.array_equal(nearest(image, out, window), np.asarray(expected))


def test_weights_add_up_to_one_and_stay_within_their_reach():
    for size, out in ((500, 298), (3, 224), (64, 224), (4000, 224)):
        lows, highs, weights = coefficients(size, out, 0, out, "bicubic")
        assert np.abs(weights.sum(axis=1) - 1).max() <= weights.shape[1] * 2.0**-23
        assert lows.min() == 0 and highs.max() == size
        assert not weights[np.arange(weights.shape[1]) >= (highs - lows)[:, None]].any()


def test_halving_has_the_weights_of_the_cubic_kernel():
    # Keys' kernel with a = -1/2 at 1/4, 3/4, 5/4, 7/4, for an output between four and four inputs; it sums to 2.
    kernel = np.array([-0.0234375, -0.0703125, 0.2265625, 0.8671875]) / 2
    lows, _, weights = coefficients(20, 10, 4, 5, "bicubic")
    assert lows.tolist() == [5]
    assert np.allclose(weights[0, :8], [*kernel, *kernel[::-1]], atol=2.0**-22)
    _, _, tent = coefficients(20, 10, 4, 5, "bilinear")
    assert np.allclose(tent[0, :4], [1 / 8, 3 / 8, 3 / 8, 1 / 8], atol=2.0**-22)
