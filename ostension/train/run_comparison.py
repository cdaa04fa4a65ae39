"""Runs beside each other: the settings in which they differ, and their measurements at the same place and at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ostension.errors import DataError
from ostension.train.run_reader import Run, measurements

# Of `run.json`: what can explain a difference that no setting explains.
MAKERS = ("versions", "git", "processor", "threads")


def differing(trees: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The dotted settings that are not the same in all trees, with the value of each tree (None where it has none)."""
    flat = [leaves_of(tree) for tree in trees]
    keys = dict.fromkeys(key for leaves in flat for key in leaves)
    found = {key: [leaves.get(key) for leaves in flat] for key in keys}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


def made_by(run: Run) -> dict[str, Any]:
    """What of `run.json` a comparison looks at."""
    return {name: run.facts.get(name) for name in MAKERS}


def last_common(runs: Sequence[Run], axis: str) -> float:
    """The farthest place on an axis that every run has reached.

    Raises:
        DataError: if a run has no measurements yet.
    """
    ends = []
    for run in runs:
        places = [place for record in run.of("step") if (place := run.place(record["step"], axis)) is not None]
        if not places:
            raise DataError("has no measurements yet", source=run.folder, expected="a run that has logged a step")
        ends.append(max(places))
    return min(ends)


def measured_at(run: Run, place: float, axis: str) -> dict[str, float]:
    """What a run measured last at or before a place: its step, then the numbers of the step, then of the evaluation."""
    found: dict[str, float] = {}
    for kind in ("step", "evaluation"):
        before = [record for record in run.of(kind) if (at := run.place(record["step"], axis)) is not None and at <= place]
        if before:
            if kind == "step":
                found = {"step": before[-1]["step"], **measurements(before[-1])}
            else:
                found |= {f"evaluation.{name}": value for name, value in measurements(before[-1]).items()}
    return found


def measured_last(run: Run) -> dict[str, float]:
    """What a run measured last."""
    return measured_at(run, float("inf"), "step")


def leaves_of(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, Mapping) and tree:
        found: dict[str, Any] = {}
        for name, value in tree.items():
            found |= leaves_of(value, f"{prefix}.{name}" if prefix else str(name))
        return found
    return {prefix: tree}
