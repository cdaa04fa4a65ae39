"""One result of a protocol's results on official folds: the mean of every metric, each fold's values beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from ostension.evals.protocol import Outcome
from ostension.evals.records import Metric


def mean_of_folds(outcomes: Mapping[str, Outcome]) -> Outcome:
    """The outcome of a task with folds, from those of its folds by name.

    Metrics that all folds have are averaged; their intervals are left out, since what folds share makes them depend on each
    other. Details are the first fold's, with "folds" {fold: {metric: value}}. Samples are those of all folds, with a column
    "fold".
    """
    first = next(iter(outcomes.values()))
    measured: dict[str, Metric] = {}
    for name, metric in first.record.metrics.items():
        of_folds = [outcome.record.metrics[name] for outcome in outcomes.values() if name in outcome.record.metrics]
        if len(of_folds) == len(outcomes):
            chances = [one.chance for one in of_folds if one.chance is not None]
            measured[name] = dataclasses.replace(
                metric,
                value=float(np.mean([one.value for one in of_folds])),
                count=max(one.count for one in of_folds),
                chance=float(np.mean(chances)) if len(chances) == len(of_folds) else None,
                interval=None,
            )
    of_fold = {fold: {name: one.record.metrics[name].value for name in measured} for fold, one in outcomes.items()}
    record = dataclasses.replace(
        first.record,
        metrics=measured,
        counts={**first.record.counts, "folds": len(outcomes)},
        details={**first.record.details, "folds": of_fold},
    )
    if not first.samples:
        return Outcome(record=record)
    samples = {name: np.concatenate([one.samples[name] for one in outcomes.values()]) for name in first.samples}
    samples["fold"] = np.repeat(list(outcomes), [len(one.samples["id"]) for one in outcomes.values()])
    return Outcome(record=record, samples=samples)
