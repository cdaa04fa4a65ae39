"""Scenes of a number of objects: as many as asked for, whole, apart, visible."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ostension.errors import ConfigError
from ostension.image import scenes
from ostension.image.scenes import GAP, draw_scene


def generator(seed):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("count", range(1, 11))
def test_objects_are_counted_inside_and_apart(count):
    for seed in range(5):
        scene = draw_scene(count, generator(seed), side=96)
        assert len(scene.boxes) == count and scene.picture.size == (96, 96) and scene.picture.mode == "RGB"
        for place, one in enumerate(scene.boxes):
            assert 0 <= one[0] < one[2] <= 96 and 0 <= one[1] < one[3] <= 96
            for other in scene.boxes[:place]:
                apart = max(one[0] - other[2], other[0] - one[2], one[1] - other[3], other[1] - one[3])
                assert apart >= GAP


def test_every_object_is_seen_in_its_box_and_nothing_outside():
    """Drawn again without objects, the picture differs in every box and nowhere else."""
    for seed in range(6):
        scene = draw_scene(6, generator(seed), side=128)
        empty, _ = scenes._background(128, generator(seed))
        different = np.abs(np.asarray(scene.picture).astype(int) - np.asarray(empty).astype(int)).max(axis=2) > 25
        inside = np.zeros_like(different)
        for left, top, right, bottom in scene.boxes:
            assert different[top:bottom, left:right].mean() > 0.15
            inside[top:bottom, left:right] = True
        assert not different[~inside].any()


def test_scenes_are_functions_of_their_generator():
    first, second, other = (draw_scene(4, generator(seed), side=64) for seed in (1, 1, 2))
    assert first.boxes == second.boxes and first.picture.tobytes() == second.picture.tobytes()
    assert first.boxes != other.boxes


def test_covered_area_says_little_about_the_number():
    """Scenes of three and of six objects overlap in what they cover."""
    areas = {count: [sum((b[2] - b[0]) ** 2 for b in draw_scene(count, generator(seed), side=96).boxes) for seed in range(30)]
             for count in (3, 6)}  # fmt: skip
    assert max(areas[3]) > np.median(areas[6]) and min(areas[6]) < np.median(areas[3])


def test_drawings_take_the_place_of_shapes():
    red = Image.new("RGBA", (8, 8), (255, 0, 0, 255))
    scene = draw_scene(2, generator(0), side=64, drawings=[red])
    pixels = np.asarray(scene.picture)
    for left, top, right, bottom in scene.boxes:
        assert (pixels[top:bottom, left:right] == (255, 0, 0)).all()


def test_settings_out_of_range_are_one_line():
    for count, side in ((-1, 64), (1, 8)):
        with pytest.raises(ConfigError):
            draw_scene(count, generator(0), side=side)
