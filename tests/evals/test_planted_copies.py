"""Measuring a detector on copies made on purpose: curves in closed form, and what every way of comparing must see."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ostension.data.pictures import open_pictures
from ostension.errors import DataError
from ostension.evals.planted_copies import (
    Pairs,
    average_precision,
    hash_rows,
    measure,
    measure_kinds,
    own_nearest,
    pixel_rows,
    plant,
    planted_pairs,
    precision_recall,
    threshold_for,
)
from ostension.image.copies import CopyConfig
from ostension.runtime import numpy_generator
from ostension.store import perceptual_hash

SLIGHT = CopyConfig(kinds=("jpeg",), jpeg=(95, 95), share=1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("planted")
    for index in range(20):
        pixels = numpy_generator("planted test", index).integers(0, 255, (5, 5, 3)).astype(np.uint8)
        Image.fromarray(pixels).resize((60, 60), Image.Resampling.BICUBIC).save(place / f"{index:02d}.png")
    return place


def test_precision_and_recall_of_five_pairs_are_those_counted_by_hand():
    pairs = Pairs(
        scores=np.array([0.9, 0.8, 0.8, 0.5, 0.2]), right=np.array([True, True, False, True, False]),
        copy=np.array([0, 1, -1, 2, -1]),
    )  # fmt: skip
    curve = precision_recall(pairs)
    np.testing.assert_allclose(curve, [[0.9, 1, 1 / 3], [0.8, 2 / 3, 2 / 3], [0.5, 3 / 4, 1], [0.2, 3 / 5, 1]])
    assert average_precision(curve) == pytest.approx(1 / 3 + 2 / 9 + 1 / 4)
    assert threshold_for(curve) == 0.9
    assert threshold_for(curve, 0.7) == 0.5
    assert threshold_for(np.array([[0.9, 0.5, 0.5]])) is None


def test_the_right_original_is_the_nearest_one_or_one_with_the_same_bytes():
    originals = np.eye(4, dtype=np.float32)
    copies = originals[[0, 1, 3, 2]]
    assert own_nearest(originals, copies, np.arange(4)).tolist() == [True, True, False, False]
    assert own_nearest(originals, copies, np.array([0, 1, 2, 2])).all()


def test_strangers_are_never_right_and_those_whose_file_is_in_training_are_no_strangers():
    rows = np.eye(6, dtype=np.float32)
    pairs = planted_pairs(rows, rows, np.array([0, 1, 2, 0, 3, 4]))
    assert pairs.copy.tolist() == [0, 1, 2, -1, -1]
    assert pairs.right.tolist() == [True, True, True, False, False]
    assert pairs.scores.tolist() == [1.0, 1.0, 1.0, 0.0, 0.0]


def test_slight_copies_are_found_by_pixels_and_by_hash_and_all_is_written_down(folder):
    planted = plant(open_pictures(folder), 20, SLIGHT)
    for name, encode in (("pixels", pixel_rows), ("hash", hash_rows)):
        found = measure(planted, encode, name)
        assert found.headline.value == 1.0
        assert found.metrics["recall_at_99"].value == 1.0
        assert found.counts == {"pictures": 20, "planted": 10, "pairs": 20}
        assert found.details["curve"][0][1] == 1.0
    assert plant(open_pictures(folder), 20, SLIGHT).copies[3].tobytes() == planted.copies[3].tobytes()
    kinds = measure_kinds(open_pictures(folder), 8, pixel_rows, 0.9)
    assert set(kinds) == set(CopyConfig().kinds)
    assert kinds["jpeg"]["accuracy"] == 1.0


def test_the_cosine_of_hash_rows_is_a_distance_in_bits(folder):
    pictures = plant(open_pictures(folder), 4, SLIGHT).originals
    rows = hash_rows(pictures)
    bits = (perceptual_hash(pictures[0]) ^ perceptual_hash(pictures[1])).bit_count()
    assert float(rows[0] @ rows[1]) / 64 == pytest.approx(1 - bits / 32)


def test_too_few_pictures_are_refused(folder, tmp_path):
    (tmp_path / "a.png").write_bytes((folder / "00.png").read_bytes())
    with pytest.raises(DataError, match="1 pictures"):
        plant(open_pictures(tmp_path), 20, SLIGHT)
