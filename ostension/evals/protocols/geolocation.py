"""Geolocation: the place of the nearest geotagged training picture in embedding space, by distance from the true one.

The split "train" holds the references, "test" the pictures to place; both say where they were taken in the groups "latitude"
and "longitude", in degrees. Metrics: "within_1_km" and so on for each threshold, with the share that a reference drawn at
random would bring; "median_distance_km". Details: "distances" [[share of pictures, km], ...], and "published" {model: {km:
share}}, the paper's figures for IM2GPS with a million references, known second-hand.

Columns: "reference" (the nearest one's id), "similarity", "distance_km".
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ostension.config import require, to_tree
from ostension.data.task import Task
from ostension.errors import DataError
from ostension.evals import geolocation as geo
from ostension.evals.inputs import Inputs
from ostension.evals.metrics import wilson_interval
from ostension.evals.protocol import Outcome
from ostension.evals.records import Metric, Record
from ostension.evals.statistics import bootstrap
from ostension.runtime import numpy_generator
from ostension.shapes import Float
from ostension.store import Features

SPLITS = ("train", "test")
FIELDS = ("latitude", "longitude")
CHANCE_REFERENCES = 10_000  # drawn to say what chance reaches; its error is far below a tenth of a point
QUANTILES = tuple(percent / 100 for percent in range(0, 101, 5))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Distances that count as found.

    Attributes:
        thresholds_km: street, city, region, country and continent by default.
    """

    thresholds_km: tuple[float, ...] = geo.THRESHOLDS_KM

    def __post_init__(self):
        require(bool(self.thresholds_km) and min(self.thresholds_km) > 0, "thresholds_km", self.thresholds_km, "all above 0")


def reason_not(task: Task) -> str | None:
    """Why it cannot be run on this task."""
    absent = [field for field in FIELDS if field not in task.groups]
    return f"its record names no group {absent[0]!r}" if absent else None


def run(inputs: Inputs, config: Config, *, seed: int) -> Outcome:
    """Shares within each distance.

    Raises:
        DataError: for samples without a place, or places that are none.
    """
    references, queries = inputs.features("train"), inputs.features("test")
    known, true = _places(references, f"{inputs.task.name}/train"), _places(queries, f"{inputs.task.name}/test")
    numbers, similarity = geo.nearest_reference(queries.unit(), references.unit())
    distances = geo.great_circle_km(known[numbers], true)
    drawn = numpy_generator(seed, "geolocation").permutation(len(known))[:CHANCE_REFERENCES]
    count = len(queries)
    measured: dict[str, Metric] = {}
    for threshold, share in geo.shares_within(distances, config.thresholds_km).items():
        measured[f"within_{threshold:g}_km"] = Metric(
            value=share, count=count, chance=geo.share_by_chance(true, known[drawn], threshold),
            interval=wilson_interval(round(share * count), count),
        )  # fmt: skip
    measured["median_distance_km"] = Metric(
        value=float(np.median(distances)), count=count, direction="lower",
        interval=bootstrap(lambda rows: float(np.median(rows)), distances, seed=seed),
    )  # fmt: skip
    published = {
        model: {f"{threshold:g}": share for threshold, share in zip(geo.THRESHOLDS_KM, shares, strict=True)}
        for model, shares in geo.PUBLISHED.items()
    }
    record = Record(
        protocol="geolocation", subject=f"{inputs.model_name} on {inputs.task.title}", metrics=measured,
        config=to_tree(config), hashes=inputs.hashes(), counts={"samples": count, "references": len(references)},
        seeds=(seed,), task=inputs.task.name, model=inputs.model_name, split=inputs.name_of("test"),
        details={"distances": [[share, float(np.quantile(distances, share))] for share in QUANTILES], "published": published},
    )  # fmt: skip
    samples = {
        "id": np.array(queries.ids), "reference": np.array(references.ids)[numbers], "similarity": similarity,
        "distance_km": distances,
    }  # fmt: skip
    return Outcome(record=record, samples=samples)


def _places(features: Features, source: str) -> Float[np.ndarray, "N 2"]:
    """(N, 2) degrees of the samples."""
    columns = []
    for field in FIELDS:
        if field not in features.groups:
            raise DataError(f"the samples do not say their {field}", source=source, expected="a column of degrees")
        try:
            columns.append(np.asarray(features.groups[field]).astype(np.float64))
        except ValueError as error:
            raise DataError(f"{field}: {error}", source=source, expected="degrees") from None
    places = np.stack(columns, axis=1)
    geo.check_places(places, source)
    return places
