"""Suite scores: the plain mean of the tasks' own metrics, with what is missing.

One record for each suite, protocol and model: "score" if every task of the suite was measured; if only more than half were,
"mean_of_measured", which is no score of the suite and comparable only between models that lack the same tasks. Below that
there is none. Intervals take the tasks as independent of each other and normal; they are about these tasks, not about others.

Counted are records of the split "test" whose first metric is the task's own.

Details: "tasks" {task: value}, "missing" [task, ...].
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

from ostension.config import to_tree
from ostension.data.suite import Suite, read_suite, suite_names
from ostension.errors import DataError
from ostension.evals.metrics import Interval
from ostension.evals.records import Metric, Record
from ostension.evals.scores import score_name
from ostension.files import sha256_json

# Suites whose score is a plain mean say so in these words; others have rules of their own, or no score.
MEAN_OF_OWN, MEAN_RECALL = "mean of each set's own metric", "mean recall"
CONFIDENCE = 0.95


def run(records: Sequence[Record]) -> list[Record]:
    """The scores of all suites of which enough was measured."""
    found = []
    for suite in map(read_suite, suite_names()):
        if MEAN_OF_OWN not in suite.score and MEAN_RECALL not in suite.score:
            continue
        measured = of_suite(suite, records)
        for (protocol, model), by_task in measured.items():
            if len(by_task) > len(suite.tasks) / 2:
                found.append(score_of(suite, protocol, model, by_task))
    return found


def of_suite(suite: Suite, records: Sequence[Record]) -> dict[tuple[str, str], dict[str, Record]]:
    """The suite's records by (protocol, model), each by task in the suite's order.

    Raises:
        DataError: for two records of the same.
    """
    wanted = {task.name: "mean_recall" if task.kind == "retrieval" else score_name(task) for task in suite.read()}
    found: dict[tuple[str, str], dict[str, Record]] = {}
    for task, metric in wanted.items():
        for record in records:
            if record.task != task or record.split not in ("", "test") or next(iter(record.metrics), None) != metric:
                continue
            of_model = found.setdefault((record.protocol, record.model), {})
            if task in of_model:
                raise DataError(f"two records of {task} by {record.protocol} for {record.model!r}", expected="one")
            of_model[task] = record
    return found


def score_of(suite: Suite, protocol: str, model: str, by_task: Mapping[str, Record]) -> Record:
    """The mean of these tasks as a record."""
    values = {task: record.headline for task, record in by_task.items()}
    missing = [task for task in suite.tasks if task not in by_task]
    metric = mean_of(list(values.values()))
    share = f"{len(values)} of {len(suite.tasks)}"
    return Record(
        protocol="suite-score",
        subject=f"{model}: {suite.name} by {protocol}" + (f", mean of {share}" if missing else ""),
        metrics={"mean_of_measured" if missing else "score": metric},
        config={"suite": suite.name, "of": protocol, "rule": suite.score},
        hashes={"records": sha256_json({task: to_tree(record) for task, record in by_task.items()})},
        counts={"tasks": len(suite.tasks), "measured": len(values)},
        seeds=tuple(sorted({seed for record in by_task.values() for seed in record.seeds})),
        task=suite.name,
        model=model,
        details={"tasks": {task: one.value for task, one in values.items()}, "missing": missing},
    )


def mean_of(found: Sequence[Metric]) -> Metric:
    """The plain mean; of chances too if all are known, and with an interval if all have one."""
    count = len(found)
    value = sum(one.value for one in found) / count
    chances = [one.chance for one in found if one.chance is not None]
    chance = sum(chances) / count if len(chances) == count else None
    # Half of an interval over its normal quantile is a standard error, whatever it was made by.
    errors = [error_of(one.interval) for one in found if one.interval is not None]
    interval = None
    if len(errors) == count:
        half = statistics.NormalDist().inv_cdf(0.5 + CONFIDENCE / 2) * math.sqrt(sum(error**2 for error in errors)) / count
        interval = Interval(value - half, value + half, CONFIDENCE, "normal")
    return dataclasses.replace(found[0], value=value, count=count, chance=chance, interval=interval)


def error_of(interval: Interval) -> float:
    """The standard error that an interval amounts to."""
    return (interval.high - interval.low) / 2 / statistics.NormalDist().inv_cdf(0.5 + interval.confidence / 2)
