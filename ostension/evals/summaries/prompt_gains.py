"""Prompt gains over tasks: what engineering and ensembling of prompts gain over bare class names on average (Figure 4).

One record for each model with two tasks or more: "gain", "engineering", "ensembling" (and "search_gain" where all tasks have
it) are means over tasks, as shares; their intervals are a bootstrap over tasks, so they speak of tasks like these.

Details: "tasks" {task: {"gain": ..., "engineering": ..., "ensembling": ..., "prompts": of the ensemble}}.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ostension.config import to_tree
from ostension.evals.metrics import bootstrap_interval
from ostension.evals.records import Metric, Record
from ostension.files import sha256_json

GAINS = ("gain", "engineering", "ensembling", "search_gain")
SEED = 0


def run(records: Sequence[Record]) -> list[Record]:
    """The mean gains of each model."""
    chosen = [record for record in records if record.protocol == "prompts"]
    models = dict.fromkeys(record.model for record in chosen)
    return [
        of_model(model, found) for model in models if len(found := [record for record in chosen if record.model == model]) >= 2
    ]


def of_model(model: str, records: Sequence[Record]) -> Record:
    """The mean gains over these tasks."""
    known = [name for name in GAINS if all(name in record.metrics for record in records)]
    values = {name: np.array([record.metrics[name].value for record in records]) for name in known}
    tasks = [record.task if record.split in ("", "test") else f"{record.task}@{record.split}" for record in records]
    return Record(
        protocol="prompt-gains",
        subject=f"{model}: what prompts gain, mean of {len(records)} tasks",
        metrics={
            name: Metric(value=float(of.mean()), count=len(of), chance=0.0, interval=bootstrap_interval(of, seed=SEED))
            for name, of in values.items()
        },
        config={"mean_over": tasks},
        hashes={"records": sha256_json([to_tree(record) for record in records])},
        counts={"tasks": len(records)},
        seeds=(SEED,),
        model=model,
        details={
            "tasks": {
                task: {**{name: record.metrics[name].value for name in known}, "prompts": record.details["cost"]["ensemble"]}
                for task, record in zip(tasks, records, strict=True)
            }
        },
    )
