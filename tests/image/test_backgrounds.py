"""Two textures that can be told apart, and drawings that lie on them whole."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ostension.image.backgrounds import BACKGROUNDS, background, on_background


def test_a_background_is_a_function_of_its_generator_and_no_two_are_alike():
    made = [background("forest", 32, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert np.array_equal(made[0], made[1]) and not np.array_equal(made[0], made[2])
    assert made[0].shape == (32, 32, 3) and made[0].dtype == np.uint8


def test_streaks_of_a_forest_are_upright_and_those_of_water_level():
    for kind in BACKGROUNDS:
        pixels = background(kind, 64, np.random.default_rng(2)).astype(float)
        across, down = np.abs(np.diff(pixels, axis=1)).mean(), np.abs(np.diff(pixels, axis=0)).mean()
        assert (across > down) == (kind == "forest")
        green, blue = pixels[..., 1].mean(), pixels[..., 2].mean()
        assert (green > blue) == (kind == "forest")


@pytest.mark.parametrize("seed", range(5))
def test_a_drawing_is_whole_and_what_is_transparent_shows_the_background(seed):
    drawing = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    drawing.paste((255, 0, 0, 255), (5, 5, 15, 15))
    made = np.asarray(on_background(drawing, "water", 48, np.random.default_rng(seed))).astype(int)
    red = (made[..., 0] > 250) & (made[..., 1] < 5)
    down, across = (np.flatnonzero(red.any(axis=axis)) for axis in (1, 0))
    assert down.min() > 0 and down.max() < 47 and across.min() > 0 and across.max() < 47
    assert red.sum() == pytest.approx((down.max() - down.min() + 1) * (across.max() - across.min() + 1), rel=0.2)
    assert 10 <= down.max() - down.min() + 1 <= 22 and not red[0].any()
