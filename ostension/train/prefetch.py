"""Batches made ahead of the loop, in the order of the steps, by processes or threads (see `data.workers`).

As a batch is a function of its step alone, the result of a run does not depend on their number.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ostension.data.workers import Note, in_processes, in_threads
from ostension.train.batches import Batch, BatchSource


@contextlib.contextmanager
def batches_ahead(source: BatchSource, start: int, stop: int, workers: int) -> Iterator[Iterator[Batch]]:
    """While entered, an iterator over the batches of the steps from `start` up to `stop`; afterwards the workers are gone.

    Args:
        workers: 0 makes each batch here, when it is asked for.
    """
    steps = range(start, stop)
    if not workers:
        yield map(source.batch, steps)
        return
    if source.worker_kind == "threads":
        answers = in_threads(_InThread(source), steps, workers)
        batches: Iterator[Batch] = answers
    else:
        answers = in_processes(_InProcess(source), steps, workers)
        batches = map(_from_arrays, answers)
    try:
        yield batches
    finally:
        answers.close()  # type: ignore[attr-defined]  # a generator: its end is the workers' end


@dataclasses.dataclass(frozen=True)
class _InThread:
    """What a thread does: a batch, without threads of its own, which would fight with the loop's for the cores."""

    source: BatchSource

    def __call__(self, task: int, note: Note) -> Batch:
        torch.set_num_threads(1)
        return self.source.batch(task)


@dataclasses.dataclass(frozen=True)
class _InProcess:
    """What a process does: a batch, as arrays, because tensors travel between related processes only."""

    source: BatchSource

    def __call__(self, task: int, note: Note) -> dict[str, Any]:
        note(f"the batch of step {task}")
        batch = self.source.batch(task)
        return {name: value.numpy() if isinstance(value, Tensor) else value for name, value in vars(batch).items()}


def _from_arrays(values: dict[str, Any]) -> Batch:
    tensors = {name: torch.from_numpy(values[name]) for name in ("images", "tokens", "groups") if values[name] is not None}
    return Batch(**{**values, **tensors})
