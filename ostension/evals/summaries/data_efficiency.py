"""How many labelled samples a class a linear probe needs to match zero-shot, for each task and over all.

The probe's curve has the points of `fewshot` and, where `probe` was measured on the same rows, the whole training set at its
mean number of samples a class. It is linear in log K between them and is prolonged below the first. The paper has medians of
5.4 and means of 20.8 over its sets.

A record for each task: "needed" (or "more_than", the largest K, where zero-shot is never reached), with details "needed" (None
if never), "how" (`linear_probe.labels_needed`), "curve" [[k, score], ...], "zero_shot" and "regime". A record for each model
of two tasks or more: "median", "mean" and "max" (those two only where every task has an answer) and "reached", the share of
tasks that have one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from ostension.evals.linear_probe import labels_needed
from ostension.evals.records import Metric, Record
from ostension.evals.selection import find, models, one, target


def run(records: Sequence[Record]) -> list[Record]:
    """A record for each model and task with a few-shot curve and zero-shot, and one for each model of several tasks."""
    found: list[Record] = []
    for model in models(records):
        mine = [made for record in find(records, "fewshot", model=model) if (made := _of_task(records, record)) is not None]
        found += mine
        if len(mine) > 1:
            measured = aggregate({target(record): record.details["needed"] for record in mine})
            regimes = sorted({record.details["regime"] for record in mine})
            found.append(
                Record(
                    protocol="data_efficiency", subject=f"{model} on {len(mine)} tasks", metrics=measured,
                    config={"regimes": regimes}, hashes={}, counts={"tasks": len(mine)}, model=model,
                    details={"tasks": {target(record): record.details["needed"] for record in mine}},
                )
            )  # fmt: skip
    return found


def aggregate(needed: Mapping[str, float | None]) -> dict[str, Metric]:
    """Median, mean, maximum and the share that is known; a task that is never reached counts as infinitely many."""
    values = [math.inf if value is None else value for value in needed.values()]
    count, reached = len(values), sum(map(math.isfinite, values))
    middle = statistics.median(values)
    found = {"median": Metric(value=middle, count=count)} if math.isfinite(middle) else {}
    if reached == count:
        found["mean"] = Metric(value=statistics.fmean(values), count=count)
        found["max"] = Metric(value=max(values), count=count)
    return {**found, "reached": Metric(value=reached / count, count=count)}


def curve_of(fewshot: Record, probe: Record | None) -> dict[float, float]:
    """Score by samples a class: few-shot's, and the whole training set's where it is larger and measured on the same rows."""
    curve = {float(k): float(mean) for k, mean, _ in fewshot.details["curve"]}
    same = probe is not None and all(
        probe.config.get(name) == fewshot.config.get(name) for name in ("level", "normalise")
    )  # fmt: skip
    if probe is not None and same:
        whole = probe.counts["fitted"] / probe.counts["classes"]
        if whole > max(curve):
            curve[whole] = probe.headline.value
    return curve


def _of_task(records: Sequence[Record], fewshot: Record) -> Record | None:
    name = target(fewshot)
    zero_shot = one(records, "zeroshot", fewshot.model, name)
    value = zero_shot.headline.value if zero_shot is not None else fewshot.details.get("zero_shot")
    curve = curve_of(fewshot, one(records, "probe", fewshot.model, name))
    if value is None or len(curve) < 2:
        return None
    needed, how = labels_needed(curve, value)
    count = fewshot.counts["samples"]
    metric = {"more_than": Metric(value=max(curve), count=count)} if needed is None else {
        "needed": Metric(value=needed, count=count)
    }  # fmt: skip
    return Record(
        protocol="data_efficiency", subject=fewshot.subject, metrics=metric, config={"fewshot": fewshot.config},
        hashes=fewshot.hashes, counts=fewshot.counts, seeds=fewshot.seeds, task=fewshot.task, model=fewshot.model,
        split=fewshot.split,
        details={"needed": needed, "how": how, "curve": [[k, score] for k, score in sorted(curve.items())], "zero_shot": value,
                 "regime": fewshot.details["regime"]},
    )  # fmt: skip
