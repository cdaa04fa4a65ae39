"""Batches made ahead of the loop by worker processes, in the order of the steps whatever their number.

Worker w of N makes the steps w, w + N, w + 2N, ...; as a batch is a function of its step alone, the result does not depend
on N. Workers are started through a fork server, not by forking this process: they share neither its threads nor its lock on
the run folder, and they end by themselves when it dies.
"""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from multiprocessing.connection import Connection

import torch
import torch.multiprocessing  # registers how tensors travel between processes: through shared memory

from ostension.errors import DataError, OstensionError
from ostension.train.batches import Batch, BatchSource

AHEAD = 2  # batches in the making or waiting, per worker


class Prefetch:
    """The batches of the steps from `start` up to `stop`, one by one, made by `workers` processes (0: here, on demand)."""

    def __init__(self, source: BatchSource, start: int, stop: int, workers: int):
        self.source, self.stop, self._step, self._asked = source, stop, start, start
        self._processes: list[multiprocessing.process.BaseProcess] = []
        self._connections: list[Connection] = []
        if not workers or start >= stop:
            return
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["ostension.train.prefetch"])
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(source, theirs), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._connections.append(ours)
        for _ in range(AHEAD * workers):
            self._ask()

    def next(self) -> Batch:
        """The batch of the next step.

        Raises:
            OstensionError: what the source raised.
            DataError: if the worker died, naming the step that it was making.
        """
        step, self._step = self._step, self._step + 1
        if not self._connections:
            return self.source.batch(step)
        index = step % len(self._connections)
        try:
            batch, error, trace = self._connections[index].recv()
        except (EOFError, OSError):
            self._processes[index].join(5)
            raise DataError(
                f"data worker {index} ended with exit code {self._processes[index].exitcode} before the batch of step {step}",
                fix="the run can be resumed; --workers 0 makes the batches in the main process",
            ) from None
        if error is not None:
            raise error
        if trace is not None:
            raise RuntimeError(f"data worker {index} failed at step {step}:\n{trace}")
        self._ask()
        return batch

    def close(self) -> None:
        """End the workers."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.join(2)
            if process.is_alive():
                process.kill()  # in the middle of a long batch that nobody wants any more
                process.join()

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self) -> None:
        if self._asked < self.stop:
            try:
                self._connections[self._asked % len(self._connections)].send(self._asked)
            except OSError:
                pass  # the worker is dead: `next` says so when it comes to its step
            self._asked += 1


def _work(source: BatchSource, connection: Connection) -> None:
    """A worker: answers each step number with its batch, until the other end is closed."""
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the run, which ends its workers when it has saved
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    try:
        while True:
            step = connection.recv()
            answer: tuple[Batch | None, OstensionError | None, str | None]
            try:
                answer = (source.batch(step), None, None)
            except OstensionError as error:
                answer = (None, error, None)
            except Exception:
                answer = (None, None, traceback.format_exc())
            connection.send(answer)
    except (EOFError, OSError):
        pass
