"""ELEVATER over a suite: the curve of sample efficiency, its spread over seeds, and parameter efficiency.

One record for each model and setting of the protocol `elevater` that was run on two tasks or more. At each number of shots
the score of a seed is the plain mean over tasks of its scores; what is reported is the mean and the standard deviation of
these over the seeds. Parameter efficiency is that of the mean score with the mean number of trained parameters. With all
twenty tasks it is the suite's score ("elevater20"); with fewer the subject says how many there are.

Details: "curve" [[shots, mean, std], ...] (0 zero-shot, -1 every image), "tasks" {task: {shots: mean}}, "missing" [task, ...],
"trained_parameters" (the mean), "not_for_reporting" where a record was made in faithful mode.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ostension.config import to_tree
from ostension.data.suite import read_suite
from ostension.evals.elevater.parameters import parameter_efficiency
from ostension.evals.elevater.runs import shots_name
from ostension.evals.records import Metric, Record
from ostension.files import sha256_json

SUITE = "elevater20"


def run(records: Sequence[Record]) -> list[Record]:
    """The curves of all models and settings."""
    groups: dict[str, dict[str, Record]] = {}
    for record in records:
        if record.protocol == "elevater" and record.split in ("", "test"):
            # The scale belongs to the model.
            settings = {key: value for key, value in record.config.items() if key != "scale"}
            groups.setdefault(sha256_json([record.model, settings]), {})[record.task] = record
    return [_curve(by_task) for by_task in groups.values() if len(by_task) > 1]


def _curve(by_task: dict[str, Record]) -> Record:
    first, known = next(iter(by_task.values())), read_suite(SUITE).tasks
    missing = [task for task in known if task not in by_task]
    complete = not missing and len(by_task) == len(known)
    curve, measured = [], {}
    for shots in first.config["shots"]:
        seeds = np.array([_scores(record, shots) for record in by_task.values()]).mean(axis=0)  # (S,)
        curve.append([shots, float(seeds.mean()), float(seeds.std())])
        chances = [record.metrics[shots_name(shots)].chance for record in by_task.values()]
        chance = float(np.mean([one for one in chances if one is not None])) if None not in chances else None
        measured[shots_name(shots)] = Metric(value=curve[-1][1], count=len(by_task), chance=chance)
        if len(seeds) > 1:
            measured[f"{shots_name(shots)}_std"] = Metric(value=curve[-1][2], count=len(seeds), direction="lower")
    trained = float(np.mean([record.counts["trained_parameters"] for record in by_task.values()]))
    last = shots_name(first.config["shots"][-1])
    measured["parameter_efficiency"] = Metric(
        value=parameter_efficiency(measured[last].value, trained), count=len(by_task), chance=None
    )
    warnings = [record.details["not_for_reporting"] for record in by_task.values() if "not_for_reporting" in record.details]
    share = "" if complete else f", mean of {len(by_task)} tasks"
    return Record(
        protocol="elevater-suite", subject=f"{first.model}: ELEVATER{share}" + (f" ({warnings[0]})" if warnings else ""),
        metrics={"score": measured[last], **measured}, config=first.config,
        hashes={"records": sha256_json({task: to_tree(record) for task, record in sorted(by_task.items())})},
        counts={"tasks": len(by_task), "missing": len(missing)}, seeds=first.seeds, task=SUITE if complete else "",
        model=first.model,
        details={
            "curve": curve, "missing": missing, "trained_parameters": trained,
            "tasks": {task: {str(row[0]): float(np.mean(_scores(record, row[0]))) for row in curve}
                      for task, record in by_task.items()},
            **({"not_for_reporting": warnings[0]} if warnings else {}),
        },
    )  # fmt: skip


def _scores(record: Record, shots: int) -> list[float]:
    """A task's score by seed; one for what has no seeds."""
    if shots == 0:
        return [record.metrics[shots_name(0)].value]
    return [one["score"] for one in record.details["runs"] if one["shots"] == shots]
