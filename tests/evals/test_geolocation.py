"""Geolocation: great circles of known length, the nearest reference's place, shares within thresholds, tables of places."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ostension.errors import DataError
from ostension.evals import geolocation as geo
from ostension.runtime import numpy_generator

QUARTER = math.pi / 2 * geo.EARTH_KM


@pytest.mark.parametrize(
    ("here", "there", "km"),
    [
        ((0, 0), (0, 0), 0.0),
        ((0, 0), (90, 0), QUARTER),
        ((0, 0), (0, 90), QUARTER),
        ((0, 170), (0, -170), QUARTER * 20 / 90),  # across the date line
        ((0, 0), (0, 180), 2 * QUARTER),
        ((90, 12), (-90, -77), 2 * QUARTER),
        ((60, 0), (60, 180), 2 * QUARTER * 60 / 180),  # over the pole, not along the parallel
        ((48.8566, 2.3522), (51.5074, -0.1278), 343.56),  # Paris to London
    ],
)
def test_great_circles_have_their_known_lengths(here, there, km):
    found = geo.great_circle_km(np.array([here], float), np.array([there], float))
    assert found[0] == pytest.approx(km, abs=0.01)


def test_a_metre_is_a_metre_and_no_rounding_error():
    degree = 1e-3 / (geo.EARTH_KM * math.pi / 180)
    found = geo.great_circle_km(np.array([[40.0, 7.0]]), np.array([[40.0 + degree, 7.0]]))
    assert found[0] == pytest.approx(1e-3, rel=1e-6)


def test_the_nearest_reference_in_embedding_space_gives_the_place():
    references = np.eye(3, dtype=np.float32)
    numbers, similarities = geo.nearest_reference(np.array([[0.0, 0.8, 0.6], [0.96, 0.28, 0.0]], np.float32), references)
    assert numbers.tolist() == [1, 0] and similarities == pytest.approx([0.8, 0.96])
    with pytest.raises(DataError, match="no geotagged references"):
        geo.nearest_reference(references, references[:0])


def test_shares_count_distances_up_to_each_threshold():
    assert geo.shares_within(np.array([0.5, 1.0, 30.0, 3000.0])) == {1: 0.5, 25: 0.5, 200: 0.75, 750: 0.75, 2500: 0.75}


def test_chance_is_the_mean_over_all_pairs():
    places = np.array([[0.0, 0.0], [0.0, 90.0]])
    references = np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 90.0], [0.0, -90.0]])
    assert geo.share_by_chance(places, references, 200.0) == pytest.approx(3 / 8)
    assert geo.share_by_chance(places, references, 2.1 * QUARTER) == 1.0


def test_tables_of_places_are_read_and_wrong_ones_named(tmp_path):
    path = tmp_path / "places.csv"
    path.write_text("id,latitude,longitude,note\na.jpg,48.86,2.35,Paris\nb.jpg,-33.9,151.2,Sydney\n")
    places = geo.read_places(path)
    assert geo.places_of(["b.jpg", "a.jpg"], places, path).tolist() == [[-33.9, 151.2], [48.86, 2.35]]
    with pytest.raises(DataError, match=r"no place for 'c.jpg'"):
        geo.places_of(["c.jpg"], places, path)
    for row, said in [("a,91,0", "91"), ("a,nan,0", "nan"), ("a,north,0", "north"), ("a,1,2\na,1,2", "twice"), ("a,1", "None")]:
        path.write_text(f"id,latitude,longitude\n{row}\n")
        with pytest.raises(DataError, match=said):
            geo.read_places(path)
    path.write_text("id,lat,lon\n")
    with pytest.raises(DataError, match="no column 'latitude'"):
        geo.read_places(path)


def test_planted_places_are_found_by_their_neighbours():
    generator = numpy_generator(0, "geo")
    cities = generator.uniform([-60, -180], [60, 180], size=(8, 2))
    looks = generator.normal(size=(8, 32))
    which = generator.integers(0, 8, 200)
    rows = looks[which] + 0.1 * generator.normal(size=(200, 32))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    numbers, _ = geo.nearest_reference(rows[100:], rows[:100])
    distances = geo.great_circle_km(cities[which[100:]], cities[which[:100]][numbers])
    assert geo.shares_within(distances)[1.0] == 1.0
