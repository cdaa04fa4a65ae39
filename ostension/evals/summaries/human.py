"""A model's zero-shot accuracy on Oxford Pets beside that of the people in CLIP's Table 2.

The people's numbers are published ones, with the evidence that they are known by; they are not measured here. The protocol
`human` measures people of one's own.

Details: "table" [[who, {column: share}], ...] with the columns of `evals.human.COLUMNS`, "source", "evidence".
"""

from __future__ import annotations

from collections.abc import Sequence

from ostension.evals.human import published
from ostension.evals.records import Metric, Record
from ostension.files import sha256_json


def run(records: Sequence[Record]) -> list[Record]:
    """A record for each model that was measured on the task."""
    table = published()
    found = []
    for record in records:
        if record.protocol != "zeroshot" or record.task != table["task"] or "mean_per_class" not in record.metrics:
            continue
        own = record.metrics["mean_per_class"]
        metrics, told = {"model": own}, [[record.model, {"accuracy": own.value}]]
        for name, row in table["conditions"].items():
            metrics[f"above people, {name}"] = Metric(value=own.value - row["accuracy"], count=own.count)
            told.append([f"people, {name}", row])
        found.append(
            Record(
                protocol="human-comparison",
                subject=f"{record.model} beside people on {table['task']}",
                metrics=metrics,
                config={"source": table["source"], "evidence": table["evidence"]},
                hashes={"published": sha256_json(table["conditions"])},
                counts={"conditions": len(told) - 1},
                seeds=record.seeds,
                task=record.task,
                model=record.model,
                split=record.split,
                details={"table": told, "source": table["source"], "evidence": table["evidence"]},
            )
        )
    return found
