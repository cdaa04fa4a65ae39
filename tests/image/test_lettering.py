"""Words on pictures: inside, legible whatever lies below, drawn from a generator and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ostension.errors import ConfigError, DataError
from ostension.image.lettering import BLACK, WHITE, WritingConfig, contrast, enlarged, spelled, write

WORDS = ("cat", "airplane", "great white shark", "Mrs. Claus", "i")


def noise(seed: int, width: int = 96, height: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def drawn(seed: int, word: str, **changes):
    return write(noise(seed), word, np.random.default_rng(seed), WritingConfig(side=96, **changes))


@pytest.mark.parametrize("word", WORDS)
def test_the_word_lies_inside_and_nothing_outside_its_box_changes(word):
    for seed in range(12):
        found = drawn(seed, word)
        left, top, right, bottom = found.box
        width, height = found.picture.size
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        before, after = (np.asarray(image).astype(int) for image in (enlarged(noise(seed), 96), found.picture))
        outside = np.ones(before.shape[:2], dtype=bool)
        outside[top:bottom, left:right] = False
        assert np.array_equal(before[outside], after[outside])


def test_letters_and_what_is_around_them_have_the_contrast_of_small_print():
    for seed in range(60):
        found = drawn(seed, "cat")
        assert contrast(found.ink, found.ground) >= 4.5


@pytest.mark.parametrize("form", ["outline", "plate"])
def test_the_same_letters_stand_there_whatever_the_picture_shows(form):
    """Ink and ground alone, in the same places, on noise as on black and on white: what lies below cannot hide them."""
    config, masks = WritingConfig(side=96, forms=(form,)), []
    for picture in (noise(1), Image.new("RGB", (96, 64), BLACK), Image.new("RGB", (96, 64), WHITE)):
        found = write(picture, "kite", np.random.default_rng(5), config)
        left, top, right, bottom = found.box
        inside = np.asarray(found.picture).astype(int)[top:bottom, left:right]
        masks.append(np.abs(inside - np.array(found.ink)).max(axis=2) <= 8)
        ground = np.abs(inside - np.array(found.ground)).max(axis=2) <= 8
        assert masks[-1].mean() > 0.03 and ground.mean() > 0.08
    both = masks[0] & masks[1] & masks[2]
    assert both.sum() >= 0.8 * min(mask.sum() for mask in masks)


def test_every_colour_goes_with_black_or_white():
    levels = range(0, 256, 15)
    worst = min(max(contrast((r, g, b), BLACK), contrast((r, g, b), WHITE)) for r in levels for g in levels for b in levels)
    assert worst >= 4.58 and contrast(BLACK, WHITE) == pytest.approx(21)


def test_the_same_generator_writes_the_same_pixels_and_another_one_others():
    first, second, other = (drawn(seed, "cat") for seed in (3, 3, 4))
    assert first.picture.tobytes() == second.picture.tobytes() and first.box == second.box
    assert (first.box, first.ink, first.ground) != (other.box, other.ink, other.ground)


def test_small_pictures_are_enlarged_in_their_proportions_and_large_ones_stay():
    assert enlarged(noise(0, 30, 20), 100).size == (150, 100)
    assert enlarged(noise(0, 300, 200), 100).size == (300, 200)


def test_a_word_that_does_not_fit_gets_smaller_and_more_lines():
    config = WritingConfig(size=(0.5, 0.5))
    found = write(noise(0, 224, 224), "a very long name of a class of things", np.random.default_rng(0), config)
    assert "\n" in found.text and found.size < 112


def test_accents_that_the_font_lacks_are_left_out_and_other_scripts_are_refused():
    assert spelled("piñata") == "pinata" and spelled("rescue  worker\u2019s helmet") == "rescue worker\u2019s helmet"
    with pytest.raises(DataError, match="no sign for '中'"):
        spelled("中国")
    with pytest.raises(DataError, match="an empty word"):
        spelled("  ")


def test_what_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(DataError, match="too long to be read"):
        drawn(0, "a" * 200)
    (tmp_path / "no.ttf").write_text("x")
    with pytest.raises(ConfigError, match="not a font"):
        drawn(0, "cat", font=tmp_path / "no.ttf")
    with pytest.raises(ConfigError, match="size"):
        WritingConfig(size=(0.3, 0.1))
