"""Batches made ahead of the loop, in the order of the steps, by processes or threads (see `data.workers`).

As a batch is a function of its step alone, the result of a run does not depend on their number. Of several training processes
each makes its part of every batch, with workers of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ostension.data.workers import Note, in_processes, in_threads
from ostension.errors import OstensionError
from ostension.train.batches import Batch, BatchSource
from ostension.train.signals import StopSignals
from ostension.world import ALONE, World


@contextlib.contextmanager
def batches_ahead(
    source: BatchSource, start: int, stop: int, workers: int, world: World = ALONE
) -> Iterator[Iterator[Batch]]:
    """While entered, an iterator over the batches of the steps from `start` up to `stop`; afterwards the workers are gone.

    Args:
        workers: 0 makes each batch here, when it is asked for.
        world: the processes that share each batch; this one gets its part.
    """
    steps, part = range(start, stop), _Part(source, world.rank, world.size)
    if not workers:
        yield map(part.batch, steps)
        return
    if source.worker_kind == "threads":
        answers = in_threads(_InThread(part), steps, workers)
        batches: Iterator[Batch] = answers
    else:
        answers = in_processes(_InProcess(part), steps, workers)
        batches = map(_from_arrays, answers)
    try:
        yield batches
    finally:
        answers.close()  # type: ignore[attr-defined]  # a generator: its end is the workers' end


def draw(stream: Iterator[Batch], stop: StopSignals, world: World) -> tuple[Batch, float] | None:
    """The next batch and the seconds that the slowest process waited for it; None if a signal asked for the end.

    A signal to one process ends all at the same step, and `stop` says so in each. What had to be replaced or cut is told of the
    batch of all.

    Raises:
        DataError: for data that cannot be read, here; a `ProcessError` where another process could not read its own.
    """
    if world.size == 1 and stop.received is not None:
        return None
    started, batch, problem = time.perf_counter(), None, None
    try:
        batch = next(stream)
    except OstensionError as error:
        problem = error
    waited = time.perf_counter() - started
    told = (0, 0, 0) if batch is None else (1, len(batch.rejects), batch.texts_cut)
    all_told = world.rows(torch.tensor([[stop.received or 0, *told, waited]], dtype=torch.float64))
    signals, ready, rejects, texts_cut, waits = all_told.unbind(1)
    if signals.any() and not (world.size == 1 and batch is not None):
        stop.received = int(signals.max())
        return None  # whatever problem there is: a signal to the whole process group ended the workers too
    if not ready.all():
        world.agree(problem)
    assert batch is not None
    if world.size > 1:
        told_rejects = world.all_facts([list(pair) for pair in batch.rejects]) if rejects.any() else []
        replaced = [(key, reason) for part in told_rejects for key, reason in part]
        batch = dataclasses.replace(batch, rejects=replaced, texts_cut=int(texts_cut.sum()))
    return batch, float(waits.max())


@dataclasses.dataclass(frozen=True)
class _Part:
    """A process's part of every batch."""

    source: BatchSource
    rank: int
    size: int

    def batch(self, step: int) -> Batch:
        return self.source.batch(step) if self.size == 1 else self.source.batch(step, self.rank, self.size)


@dataclasses.dataclass(frozen=True)
class _InThread:
    """What a thread does: a batch, without threads of its own, which would fight with the loop's for the cores."""

    part: _Part

    def __call__(self, task: int, note: Note) -> Batch:
        torch.set_num_threads(1)
        return self.part.batch(task)


@dataclasses.dataclass(frozen=True)
class _InProcess:
    """What a process does: a batch, as arrays, because tensors travel between related processes only."""

    part: _Part

    def __call__(self, task: int, note: Note) -> dict[str, Any]:
        note(f"the batch of step {task}")
        batch = self.part.batch(task)
        return {name: value.numpy() if isinstance(value, Tensor) else value for name, value in vars(batch).items()}


def _from_arrays(values: dict[str, Any]) -> Batch:
    tensors = {name: torch.from_numpy(value) for name, value in values.items() if isinstance(value, np.ndarray)}
    return Batch(**{**values, **tensors})
