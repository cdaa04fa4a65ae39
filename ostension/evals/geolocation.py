"""Where a picture was taken: the nearest geotagged picture in embedding space gives its place (the IM2GPS protocol).

Coordinates are degrees, latitude then longitude; distances are great circles on a sphere of the earth's mean radius, which
differ from the ellipsoid's by at most 0.6 %. Search is exact.

Letters: Q queries, N references, E embedding, T thresholds.
Source: Hays and Efros 2008 (nearest neighbour, thresholds); CLIP's appendix on geolocation.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ostension.errors import DataError
from ostension.shapes import Float, Int
from ostension.store.exact import search
from ostension.store.rows import Rows

EARTH_KM = 6371.0088  # mean radius (2a + b) / 3 of the WGS 84 ellipsoid
THRESHOLDS_KM = (1.0, 25.0, 200.0, 750.0, 2500.0)  # street, city, region, country, continent
# Shares within the thresholds that the CLIP paper printed for IM2GPS with a million references (table 17). Known from notes
# on the paper, not from the paper: to be shown beside a result, never to fail one.
PUBLISHED = {"ViT-L-14-336": (0.139, 0.329, 0.430, 0.620, 0.793)}


def great_circle_km(here: Float[np.ndarray, "N 2"], there: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, " N"]:
    """Kilometres between places, row by row.

    2 R asin sqrt(h), h = sin^2(dlat / 2) + cos(lat1) cos(lat2) sin^2(dlon / 2): the haversine form, exact for near places.
    """
    check_places(here)
    check_places(there)
    latitude, longitude = np.radians(here.astype(np.float64)).T
    other_latitude, other_longitude = np.radians(there.astype(np.float64)).T
    h = np.sin((other_latitude - latitude) / 2) ** 2
    h += np.cos(latitude) * np.cos(other_latitude) * np.sin((other_longitude - longitude) / 2) ** 2
    return 2 * EARTH_KM * np.arcsin(np.sqrt(np.clip(h, 0.0, 1.0)))


def nearest_reference(
    queries: Float[np.ndarray, "Q E"], references: Float[np.ndarray, "N E"] | Rows
) -> tuple[Int[np.ndarray, " Q"], Float[np.ndarray, " Q"]]:
    """For each unit row of `queries` the number of the reference with the greatest dot product, and that product.

    Raises:
        DataError: without references.
    """
    if not len(references):
        raise DataError("there are no geotagged references", expected="at least one")
    found = search(references, queries, k=1)
    return found.rows[:, 0], found.scores[:, 0]


def shares_within(
    distances_km: Float[np.ndarray, " Q"], thresholds_km: Sequence[float] = THRESHOLDS_KM
) -> dict[float, float]:
    """The share of distances that are at most each threshold."""
    if not len(distances_km):
        raise DataError("there are no distances", expected="at least one")
    return {threshold: float((distances_km <= threshold).mean()) for threshold in thresholds_km}


def share_by_chance(
    places: Float[np.ndarray, "Q 2"], references: Float[np.ndarray, "N 2"], threshold_km: float
) -> float:
    """The share that a reference drawn at random would bring within the threshold: the mean over all pairs."""
    check_places(references)
    near = 0
    for place in places:
        near += int((great_circle_km(np.broadcast_to(place, references.shape), references) <= threshold_km).sum())
    return near / (len(places) * len(references))


def check_places(places: np.ndarray, source: object = None) -> None:
    """Raise a `DataError` for a latitude outside -90..90 or a longitude outside -180..180, naming the row."""
    wrong = ~((np.abs(places[:, 0]) <= 90) & (np.abs(places[:, 1]) <= 180))  # also true of NaN
    if wrong.any():
        row = int(wrong.argmax())
        what = f"row {row} is at {places[row, 0]:g}, {places[row, 1]:g}"
        raise DataError(what, source=source, expected="latitude -90 to 90, longitude -180 to 180, in degrees")


def read_places(path: str | Path) -> dict[str, tuple[float, float]]:
    """Places by id of a CSV file with the columns `id`, `latitude` and `longitude` (others are passed over).

    Raises:
        DataError: for a file that cannot be read, a column that is missing, an id that comes twice or a place that is none.
    """
    path = Path(path)
    found: dict[str, tuple[float, float]] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle, strict=True)
            missing = [name for name in ("id", "latitude", "longitude") if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"no column {missing[0]!r}", source=path, expected="the columns id, latitude, longitude")
            for row in reader:
                where = f"{path} line {reader.line_num}"
                if row["id"] in found:
                    raise DataError(f"the id {row['id']!r} comes twice", source=where, expected="each once")
                place = _degrees(row["latitude"], where), _degrees(row["longitude"], where)
                check_places(np.array([place]), where)
                found[row["id"]] = place
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot be read: {error}", source=path, expected="a CSV file in UTF-8") from None
    return found


def places_of(ids: Sequence[str], places: dict[str, tuple[float, float]], source: object) -> Float[np.ndarray, "N 2"]:
    """The places of samples in their order.

    Raises:
        DataError: naming the first sample without a place.
    """
    for sample in ids:
        if sample not in places:
            raise DataError(f"no place for {sample!r}", source=source, expected="a row for every sample")
    return np.array([places[sample] for sample in ids], dtype=np.float64).reshape(len(ids), 2)


def _degrees(text: str | None, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        raise DataError(f"{text!r} is no number", source=where, expected="degrees") from None
    if not math.isfinite(value):
        raise DataError(f"{text!r} is no place", source=where, expected="degrees")
    return value
