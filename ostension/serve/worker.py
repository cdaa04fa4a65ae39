"""The service's side of the process that computes: starts it, feeds it, watches it, replaces it.

The process is started anew (nothing is inherited but a socket and the shared pixels), so that whatever happens to it, this
one answers on: if it dies, what it was computing fails at once; a batch that takes too long is taken for hung and the process
is killed. A process that dies soon after its start is replaced later and later.

A replacement must have the same weights. If the model's files were changed meanwhile, answers would mix two models, and the
service stays unready instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ostension.serve.backend import BatchFailed
from ostension.serve.batcher import BackendLost, Computed
from ostension.serve.compute import TEXT, Facts
from ostension.serve.frames import pack_frame, read_frame, shared_memory
from ostension.serve.keys import VARIABLE
from ostension.serve.logs import without_folders
from ostension.serve.settings import ServeSettings

COMMAND = (sys.executable, "-m", "ostension.serve.worker_main")
LOAD_S = 900.0  # reading the largest model from a slow disk
STEADY_S = 30.0  # a process that lived so long starts with a clean record
MAX_PAUSE_S = 30.0
SECRETS = (VARIABLE,)  # of the environment, which the process has no use for

# Kernels that oneDNN keeps, each for one shape of a batch; it would keep 1,024, which texts of all lengths fill with 100 MB.
KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128"}

Note = Callable[..., None]


class WorkerBackend:
    """Computes in a process of its own.

    Args:
        settings: of the service.
        image_side: pixels a side of the model's pictures.
        note: told what happens: `note(event, **facts)`.
        command: what to start, before the two descriptors; another one in tests.
    """

    def __init__(
        self,
        settings: ServeSettings,
        *,
        image_side: int,
        note: Note | None = None,
        command: Sequence[str] = COMMAND,
    ):
        self.settings, self.side, self.command = settings, image_side, tuple(command)
        self.facts: Facts | None = None
        self.on_ready: Callable[[Facts], None] | None = None
        self.on_lost: Callable[[], None] | None = None
        self.on_failed: Callable[[str], None] | None = None  # the model cannot be loaded: nothing will ever come
        self.reason = "the model is being loaded"
        self.restarts = 0
        self._note = note or (lambda event, **facts: None)
        self._bytes = settings.max_batch * 3 * image_side**2  # of one batch of pictures, and there is one at a time
        self._descriptor, self._memory = shared_memory(self._bytes)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._count = 0
        self._writer: asyncio.StreamWriter | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._up = False

    @property
    def ready(self) -> bool:
        return self._up

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        self._keeper = asyncio.create_task(self._keep(), name="worker")

    async def stop(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._process is not None:  # which was killed, and perhaps not waited for
            await asyncio.get_running_loop().run_in_executor(None, self._process.wait)
        self._memory.close()
        os.close(self._descriptor)

    async def compute(self, lane: str, payloads: Sequence[Any]) -> Computed:
        """Rows of one batch, at most `max_batch` items; one of texts and one of pictures at a time."""
        if not self._up or self._writer is None:
            raise BackendLost(self.reason)
        self._count += 1
        number = self._count
        answered = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(self._message(number, lane, payloads))
            async with asyncio.timeout(self.settings.hang_s):
                tree, data = await answered
        except TimeoutError:
            self._note("worker_hung", seconds=self.settings.hang_s, lane=lane)
            self._lose("the process that computes did not answer")
            raise BackendLost(self.reason) from None
        finally:
            self._waiting.pop(number, None)
        if "error" in tree:
            self._note("batch_failed", lane=lane, size=len(payloads), error=without_folders(tree["error"]))
            raise BatchFailed(tree["error"])
        return Computed(np.frombuffer(data, "<f4").reshape(tree["shape"]), tree["seconds"])

    def _message(self, number: int, lane: str, payloads: Sequence[Any]) -> bytes:
        if lane == TEXT:
            ids = np.concatenate([np.asarray(row, "<i4") for row in payloads])
            return pack_frame({"batch": number, "lane": lane, "lengths": [len(row) for row in payloads]}, ids.tobytes())
        shape = (len(payloads), 3, self.side, self.side)
        place = np.frombuffer(self._memory, np.uint8, int(np.prod(shape))).reshape(shape)
        for index, pixels in enumerate(payloads):
            place[index] = pixels
        return pack_frame({"batch": number, "lane": lane, "count": len(payloads), "side": self.side})

    async def _keep(self) -> None:
        """Start the process, again whenever it ends, until cancelled."""
        pause = 0.0
        try:
            while True:
                started = time.monotonic()
                await self._live()
                lived = time.monotonic() - started
                pause = 0.0 if lived > STEADY_S else min(MAX_PAUSE_S, max(0.25, 2 * pause))
                self.restarts += 1
                self._note("worker_restarts", after_s=round(pause, 2), lived_s=round(lived, 2))
                await asyncio.sleep(pause)
        finally:
            self._lose("the service is stopping")

    async def _live(self) -> None:
        """One process from its start to its end."""
        ours, theirs = socket.socketpair()
        with theirs:
            descriptors = (theirs.fileno(), self._descriptor)
            environment = KERNELS | {name: value for name, value in os.environ.items() if name not in SECRETS}
            self._process = process = subprocess.Popen(
                [*self.command, *map(str, descriptors)], pass_fds=descriptors, env=environment,
                stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno() if _has_descriptor(sys.stderr) else subprocess.DEVNULL,
            )  # fmt: skip
        self._note("worker_started", worker_pid=process.pid)
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=1 << 20)
        try:
            self._writer.write(pack_frame({"memory_bytes": self._bytes, "load": self._load()}))
            async with asyncio.timeout(LOAD_S):
                hello, _ = await read_frame(reader)
            if not self._accept(hello):
                return
            while True:
                tree, data = await read_frame(reader)
                future = self._waiting.get(tree["batch"])
                if future is not None and not future.done():
                    future.set_result((tree, data))
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            pass  # it is gone, or hangs: what `_lose` says
        finally:
            self._lose("the process that computes was lost and starts anew")
            self._writer.close()
            with contextlib.suppress(ConnectionError):
                await self._writer.wait_closed()
            code = await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, process.wait))
            self._note("worker_ended", worker_pid=process.pid, code=code)

    def _accept(self, hello: Any) -> bool:
        if "failed" in hello:
            self.reason = "the model cannot be loaded"
            self._note("worker_failed", error=without_folders(hello["failed"]))
            if self.facts is None and self.on_failed is not None:
                self.on_failed(hello["failed"])
            return False
        found = Facts(**hello["facts"])
        if self.facts is not None and found.sha256 != self.facts.sha256:
            self.reason = "the model's files were changed; the service has to be started anew"
            self._note("worker_failed", error=self.reason)
            return False
        self.facts, self._up, self.reason = found, True, ""
        if self.on_ready is not None:
            self.on_ready(found)
        self._note("worker_ready", worker_pid=self.pid, sha256=found.sha256[:16], dtype=found.dtype, threads=found.threads)
        return True

    def _lose(self, reason: str) -> None:
        """End the process, if there is one, and fail everything."""
        was_up, self._up = self._up, False
        if was_up or not self.reason:
            self.reason = reason
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(BackendLost(reason))
        if self.on_lost is not None:
            self.on_lost()

    def _load(self) -> dict[str, Any]:
        settings = self.settings
        return {
            "model": settings.model, "device": settings.device, "dtype": settings.dtype, "engine": settings.engine,
            "threads": settings.threads, "predictors": dict(settings.predictors),
        }  # fmt: skip


def _has_descriptor(stream: Any) -> bool:
    try:
        return stream.fileno() >= 0
    except (AttributeError, OSError, ValueError):
        return False
