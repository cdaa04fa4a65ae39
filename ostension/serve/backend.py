"""Where batches are computed: a protocol with two forms, this process (here) and one of its own (`worker`).

A backend starts without waiting for its model, says when it is ready, and never raises anything but `BackendLost` (nothing
more will come of this batch) or `BatchFailed` (the computation said no).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from ostension.serve.batcher import BackendLost, Computed
from ostension.serve.compute import TEXT, Computation, Facts


class BatchFailed(Exception):
    """The computation of a batch raised."""


class Backend(Protocol):
    """Computes batches."""

    facts: Facts | None  # once it is ready
    on_ready: Callable[[Facts], None] | None  # called when batches can be given to it
    on_lost: Callable[[], None] | None  # called when what was being computed is lost
    on_failed: Callable[[str], None] | None  # called when the model cannot be loaded: nothing will ever come
    restarts: int

    @property
    def ready(self) -> bool:
        """Whether batches can be given to it."""
        ...

    @property
    def reason(self) -> str:
        """Why it is not ready."""
        ...

    async def start(self) -> None:
        """Begin to get ready; gives back at once."""

    async def stop(self) -> None:
        """End; what is being computed is lost."""

    async def compute(self, lane: str, payloads: Sequence[Any]) -> Computed:
        """A row for each payload."""
        ...


class LocalBackend:
    """Computes in a thread of this process: for tests, and for a model that is in memory already."""

    def __init__(self, computation: Computation):
        self.computation = computation
        self.facts: Facts | None = None
        self.on_ready: Callable[[Facts], None] | None = None
        self.on_lost: Callable[[], None] | None = None
        self.on_failed: Callable[[str], None] | None = None
        self.restarts = 0
        self._thread = concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix="compute")  # as many as groups of lanes
        self._warming: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        return self.facts is not None

    @property
    def reason(self) -> str:
        return "" if self.ready else "the model is being loaded"

    async def start(self) -> None:
        self._warming = asyncio.create_task(self._warm())

    async def _warm(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self.computation.warm)
        self.facts = await loop.run_in_executor(self._thread, self.computation.facts)
        if self.on_ready is not None:
            self.on_ready(self.facts)

    async def stop(self) -> None:
        if self._warming is not None:
            self._warming.cancel()
            await asyncio.gather(self._warming, return_exceptions=True)
        self.facts = None
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)

    async def compute(self, lane: str, payloads: Sequence[Any]) -> Computed:
        if self.facts is None:
            raise BackendLost(self.reason)
        batch = list(payloads) if lane == TEXT else np.stack(payloads)
        start = time.perf_counter()
        try:
            rows = await asyncio.get_running_loop().run_in_executor(self._thread, self.computation.run, lane, batch)
        except Exception as error:
            raise BatchFailed(f"{type(error).__name__}: {error}") from error
        return Computed(rows, time.perf_counter() - start)
