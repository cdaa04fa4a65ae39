"""Records: every result as JSON with its configuration, hashes, counts, chance level, interval and seeds.

Tables and plots are made from records, never typed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ostension import files, runtime
from ostension.config import from_tree, to_tree
from ostension.errors import DataError
from ostension.evals.metrics import Interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """One measured number.

    Attributes:
        value: the estimate, in the metric's own unit (shares are 0..1, not percent).
        count: samples that it was measured on.
        direction: whether higher or lower is better.
        chance: what a guesser reaches; None where chance has no meaning.
        interval: confidence interval of `value`.
    """

    value: float
    count: int
    direction: Literal["higher", "lower"] = "higher"
    chance: float | None = None
    interval: Interval | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One result: what was measured, how, on what, with which seeds, and how sure it is.

    Attributes:
        protocol: "zero-shot", "retrieval", "linear-probe", ...
        subject: what was measured, in words that can head a table row.
        metrics: measured numbers by name; the first is the headline.
        config: every setting of the protocol.
        hashes: of weights, class list, prompts and data, by name.
        counts: sizes by name (samples, classes, templates, ...).
        seeds: seeds that the numbers depend on.
        task: the name of the task, of the suite for a summary, or empty.
        model: the name under which results of one model are put side by side, or empty.
        split: the split that was measured, or empty.
        details: curves and tables, a JSON tree, from which figures are drawn; the protocol's module says what is in it.
    """

    protocol: str
    subject: str
    metrics: dict[str, Metric]
    config: dict[str, Any]
    hashes: dict[str, str]
    counts: dict[str, int]
    seeds: tuple[int, ...] = ()
    task: str = ""
    model: str = ""
    split: str = ""
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def headline(self) -> Metric:
        """The first metric."""
        return next(iter(self.metrics.values()))


def save_records(path: Path, records: Mapping[str, Record]) -> None:
    """Write records by name into one JSON file, with the versions that produced them."""
    files.write_text(path, records_text(records))


def records_text(records: Mapping[str, Record]) -> str:
    """What `save_records` writes."""
    tree = {"format": 1, "versions": runtime.versions(), "git": runtime.git_state(), "records": to_tree(records)}
    return json.dumps(tree, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def load_records(path: Path) -> dict[str, Record]:
    """The records of a file that `save_records` wrote.

    Raises:
        DataError, ConfigError: if the file is not of that form.
    """
    tree = files.read_json(path)
    if not isinstance(tree, dict) or tree.get("format") != 1 or not isinstance(tree.get("records"), dict):
        raise DataError("not a file of records", source=path, expected='{"format": 1, "records": {...}}')
    return {name: from_tree(Record, record, source=f"{path}: {name}") for name, record in tree["records"].items()}
