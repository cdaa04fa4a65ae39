"""The contract of protocols and summaries: one file each, found by its name.

A **protocol** is a module of `evals.protocols` that measures one task with one model:

    # its docstring's first line is what `ostension eval ls` says of it
    SPLITS = ("train", "test")                     # splits that it cannot do without
    class Config: ...                              # a frozen dataclass; its fields are the protocol's settings
    def reason_not(task) -> str | None: ...        # why it cannot measure such a task
    def run(inputs, config, *, seed) -> Outcome: ...

One that takes logits from its inputs and no rows of texts says so (`OF_PREDICTORS = True`), and measures saved predictors too.
One whose settings name files or folders says which (`FILES = ("answers",)`), so that a result is computed again when they
change.

A **summary** is a module of `evals.summaries` that makes records of records, over tasks or protocols:

    def run(records) -> list[Record]: ...          # empty where the records that it needs are not there
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np

from ostension.data.task import Task
from ostension.errors import DataError
from ostension.evals.inputs import Inputs
from ostension.evals.records import Record
from ostension.registry import ModuleRegistry

PROTOCOLS = ModuleRegistry("ostension.evals.protocols", "protocol")
SUMMARIES = ModuleRegistry("ostension.evals.summaries", "summary")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a protocol gives.

    Attributes:
        record: the result.
        samples: what was said of each sample, (N,) columns by name, "id" first; empty where samples are not scored one by one.

    Raises:
        DataError: for columns of different lengths, or columns without ids.
    """

    record: Record
    samples: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        lengths = {name: len(column) for name, column in self.samples.items()}
        if lengths and (len(set(lengths.values())) > 1 or "id" not in lengths):
            raise DataError(f"columns of samples {lengths}", expected="columns of one length, with 'id' among them")


@runtime_checkable
class EvalProtocol(Protocol):
    """A module of `evals.protocols`."""

    SPLITS: tuple[str, ...]
    Config: type[Any]

    def reason_not(self, task: Task) -> str | None: ...

    def run(self, inputs: Inputs, config: Any, *, seed: int) -> Outcome: ...


@runtime_checkable
class Summary(Protocol):
    """A module of `evals.summaries`."""

    def run(self, records: Sequence[Record]) -> list[Record]: ...


def load_protocol(name: str) -> EvalProtocol:
    """The protocol called `name`.

    Raises:
        ConfigError: for an unknown name, with the nearest three.
    """
    return cast("EvalProtocol", PROTOCOLS.load(name))


def summarise(records: Sequence[Record]) -> list[Record]:
    """What every summary makes of the records."""
    found: list[Record] = []
    for name in SUMMARIES.names():
        found += cast("Summary", SUMMARIES.load(name)).run(records)
    return found
