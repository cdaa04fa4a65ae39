"""Zero-shot against linear probe over tasks: their correlation, the slope, and what share of the probe zero-shot reaches.

Pearson's r and the least-squares slope of zero-shot on probe, each with a 95 % percentile bootstrap over tasks. The paper has
r = 0.82 and 1.28 (0.93 to 1.79) over its 27 sets. Transfer efficiency is zero-shot's score divided by the probe's; the probe
bounds what zero-shot can reach with these features, so 1 means that the words cost nothing.

Details: "points" [[task, probe, zero-shot, zero-shot / probe], ...], "p" of the correlation, "intercept", and "within_3_points"
[tasks whose zero-shot is at most 3 points below the probe].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ostension.errors import DataError
from ostension.evals.records import Metric, Record
from ostension.evals.selection import models, one, tasks
from ostension.evals.statistics import bootstrap, least_squares, pearson

FEWEST = 4  # of three points a bootstrap draws lines of two
NEAR = 0.03


def run(records: Sequence[Record]) -> list[Record]:
    """A record for each model that has both on four tasks or more."""
    found = []
    for model in models(records):
        points = {}
        for task in tasks(records, "zeroshot"):
            zero_shot, probe = one(records, "zeroshot", model, task), one(records, "probe", model, task)
            if zero_shot is not None and probe is not None:
                points[task] = (probe.headline.value, zero_shot.headline.value)
        if len(points) < FEWEST:
            continue
        try:
            measured, details = compare(points)
        except DataError:  # scores that are all equal correlate with nothing
            continue
        found.append(
            Record(
                protocol="zeroshot_vs_probe", subject=f"{model} on {len(points)} tasks", metrics=measured, config={},
                hashes={}, counts={"tasks": len(points)}, seeds=(0,), model=model, details=details,
            )
        )  # fmt: skip
    return found


def compare(points: Mapping[str, tuple[float, float]], *, seed: int = 0) -> tuple[dict[str, Metric], dict[str, Any]]:
    """Metrics "pearson", "slope" and "transfer_efficiency" (its mean), and the details, of (probe, zero-shot) by task.

    Raises:
        DataError: for fewer than three tasks, or scores that are all equal.
    """
    probe, zero_shot = (np.array(values, dtype=np.float64) for values in zip(*points.values(), strict=True))
    r, p = pearson(probe, zero_shot)
    line = least_squares(probe, zero_shot)
    share = zero_shot / np.maximum(probe, np.finfo(np.float64).tiny)
    count = len(points)
    measured = {
        "pearson": Metric(
            value=r, count=count, chance=0.0, interval=bootstrap(lambda x, y: pearson(x, y)[0], probe, zero_shot, seed=seed)
        ),
        "slope": Metric(
            value=line.slope,
            count=count,
            interval=bootstrap(lambda x, y: least_squares(x, y).slope, probe, zero_shot, seed=seed),
        ),
        "transfer_efficiency": Metric(
            value=float(share.mean()), count=count, interval=bootstrap(lambda values: float(values.mean()), share, seed=seed)
        ),
    }
    return measured, {
        "points": [[task, *values, float(one)] for (task, values), one in zip(points.items(), share, strict=True)],
        "p": p, "intercept": line.intercept,
        "within_3_points": [task for task, (full, zero) in points.items() if zero >= full - NEAR],
    }  # fmt: skip
