"""The check behind `/health/ready`: a picture and a text go through the real queue, and must come out as they did at first.

A service can answer its health route while nothing behind it works. Here "ready" means that within the last rounds an
embedding was computed as any client's would have been, and has its golden value.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import numpy as np

# Rows of one input differ by the batch that they were computed in. Wrong weights or a broken kernel differ by far more.
TOLERANCE = {"float32": 1e-4, "float64": 1e-4}
SHORT_TOLERANCE = 3e-2  # bfloat16 and float16
ROUNDS = 3.0  # that may be missed
RETRY_S = 0.25


class Canary:
    """Runs a probe again and again.

    Args:
        probe: gives rows that are always the same.
        able: whether it makes sense to ask now, and why not.
        dtype: of the weights, for the tolerance.
        every_s: between rounds.
    """

    def __init__(
        self,
        probe: Callable[[], Awaitable[np.ndarray]],
        able: Callable[[], str],
        dtype: Callable[[], str],
        *,
        every_s: float,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._probe, self._able, self._dtype, self._clock = probe, able, dtype, clock
        self.every_s, self.timeout_s = every_s, timeout_s
        self.golden: np.ndarray | None = None
        self._good: float | None = None
        self._wrong = "nothing was computed yet"
        self._task: asyncio.Task[None] | None = None

    @property
    def reason(self) -> str:
        """Why the service is not ready; empty if it is."""
        unable = self._able()
        if unable:
            return unable
        if self._good is None:
            return self._wrong
        late = self._clock() - self._good
        return f"no embedding was computed for {late:.0f} s" if late > ROUNDS * self.every_s + self.timeout_s else ""

    def start(self) -> None:
        """Begin the rounds."""
        self._task = asyncio.create_task(self._rounds(), name="canary")

    async def stop(self) -> None:
        """End them."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _rounds(self) -> None:
        while True:
            if self._able():
                self._good = None
                await asyncio.sleep(RETRY_S / 5)
                continue
            await self.round()
            await asyncio.sleep(self.every_s if self._good is not None else RETRY_S)

    async def round(self) -> None:
        """Ask once."""
        try:
            async with asyncio.timeout(self.timeout_s):
                rows = await self._probe()
        except TimeoutError:
            return  # the queue is long, or the process hangs: time tells
        except Exception as error:
            self._good, self._wrong = None, f"the check failed: {type(error).__name__}"
            return
        if self.golden is None:
            self.golden = rows
        far = float(np.abs(rows - self.golden).max())
        if far <= TOLERANCE.get(self._dtype(), SHORT_TOLERANCE):
            self._good = self._clock()
        else:
            self._good, self._wrong = None, f"an embedding differs by {far:.2g} from what it was"
