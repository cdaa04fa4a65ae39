"""The service behind the routes: inputs into the queue, rows out of it. Nothing here knows of HTTP but its errors.

Letters: N items, E embedding, C classes, M templates.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from ostension.serve.backend import Backend
from ostension.serve.batcher import BackendLost, Batcher, Hold, ItemFailed, Overloaded, TooLarge
from ostension.serve.cache import TextCache
from ostension.serve.canary import Canary
from ostension.serve.compute import IMAGE, PREDICTOR, TEXT, Facts, lower_priority
from ostension.serve.inputs import Inputs
from ostension.serve.metrics import Metrics
from ostension.serve.model_files import ModelFiles
from ostension.serve.problems import Problem, of_overload
from ostension.serve.settings import ServeSettings

T = TypeVar("T")
SHORT = 2_000  # characters that are tokenised at once, in less than a millisecond; a thread would take longer to begin


class Service:
    """One model and what is needed to answer for it.

    Args:
        settings: of the service.
        files: what is known of the model without its weights.
        backend: computes batches.
    """

    def __init__(self, settings: ServeSettings, files: ModelFiles, backend: Backend, metrics: Metrics):
        self.settings, self.files, self.backend, self.metrics = settings, files, backend, metrics
        self.limits = settings.limits
        self.started = time.time()
        transform = files.transform(self.limits.max_pixels)
        self.inputs = Inputs(transform, files.tokenizer, self.limits, fetcher(settings))
        # Long work gives way, as the computing of pictures does, and short work does not wait behind it.
        self.pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="texts")
        self.decoders = concurrent.futures.ThreadPoolExecutor(
            settings.decoders, thread_name_prefix="decode", initializer=lower_priority
        )
        pictures = dict.fromkeys((IMAGE, *(f"{PREDICTOR}{name}" for name in settings.predictors)), settings.queue_images)
        self.batcher = Batcher(
            backend.compute, ({TEXT: settings.queue_tokens}, pictures), max_batch=settings.max_batch,
            slice_s=settings.slice_ms / 1000, max_wait_s=settings.max_wait_ms / 1000,
            max_queue_s=settings.max_queue_s, max_slowdown=settings.max_slowdown or math.inf, watcher=metrics,
        )  # fmt: skip
        self.cache = TextCache(settings.cache_bytes)
        self.canary = Canary(
            self._probe, lambda: backend.reason, lambda: backend.facts.dtype if backend.facts else "",
            every_s=settings.canary_s, timeout_s=settings.deadline_s,
        )  # fmt: skip
        backend.on_ready = self._shape
        backend.on_lost = lambda: self.batcher.fail_all(BackendLost("the process that computes was lost"))

    async def start(self) -> None:
        """Begin; the model may take a while after this."""
        await self.backend.start()
        await self.batcher.start()
        self.canary.start()

    async def stop(self) -> None:
        """End; what is left fails."""
        await self.canary.stop()
        await self.batcher.stop()
        await self.backend.stop()
        for pool in (self.pool, self.decoders):
            pool.shutdown(wait=False, cancel_futures=True)

    @property
    def model_id(self) -> str:
        """What clients call the model."""
        return self.settings.model_id or self.files.name

    def _shape(self, facts: Facts) -> None:
        for lane, (fixed, slope) in facts.paces.items():
            self.batcher.lanes[lane].pace.shape(fixed, slope)

    async def embed_texts(
        self, texts: Sequence[str], param: str, client: Hashable, *, truncate: bool = False, places: Sequence[int] | None = None
    ) -> Rows:
        """Unit rows of texts and the tokens that they took.

        Args:
            param: the list that they came in; errors name it and the place there, or the place in `places`.
        """
        named = [f"{param}[{index}]" for index in places or range(len(texts))]

        def read() -> list[list[int]]:
            return [self.inputs.tokens(text, name, truncate=truncate) for text, name in zip(texts, named, strict=True)]

        with self._preparing(), self.metrics.decode.labels("texts").time():
            ids = read() if sum(map(len, texts)) <= SHORT else await self.in_thread(read)
        return Rows(await self.rows_of_tokens(ids, client), sum(map(len, ids)))

    async def rows_of_tokens(self, ids: Sequence[Sequence[int]], client: Hashable) -> list[np.ndarray]:
        """Unit rows of token ids; each different text is computed once, and not at all if its row is kept."""
        rows = {tuple(row): self.cache.get(row) for row in ids}
        new = [list(row) for row, known in rows.items() if known is None]
        self.metrics.cache_hits.inc(len(ids) - len(new))
        self.metrics.cache_misses.inc(len(new))
        if new:
            costs = [len(row) for row in new]
            with self._hold(TEXT, sum(costs)):
                found = await self._run(TEXT, new, costs, client)
            for text, row in zip(new, found, strict=True):
                rows[tuple(text)] = row
                self.cache.put(text, row)
        elif not self.backend.ready:
            raise unavailable()
        return [rows[tuple(row)] for row in ids]  # type: ignore[misc]

    async def embed_images(
        self, images: Sequence[str], param: str, client: Hashable, *, lane: str = IMAGE, places: Sequence[int] | None = None
    ) -> list[np.ndarray]:
        """Rows of pictures: unit embeddings, or a predictor's logits in its lane; see `embed_texts`."""
        named = [f"{param}[{index}]" for index in places or range(len(images))]
        with self._hold(lane, len(images)):  # before a picture is decoded: what cannot be computed need not be
            with self._preparing():
                pixels = await self._pictures(images, named)
            return await self._run(lane, pixels, [1] * len(pixels), client)

    async def in_thread(self, function: Callable[[], T]) -> T:
        """The result of work that takes time, done in the pool."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, function)

    async def _pictures(self, images: Sequence[str], names: Sequence[str]) -> list[np.ndarray]:
        """Decoded pictures; half of the threads at most are one request's, so that others find one free."""
        loop = asyncio.get_running_loop()
        places = asyncio.Semaphore(max(1, self.settings.decoders // 2))

        async def read(text: str, name: str) -> np.ndarray:
            async with places:
                return await loop.run_in_executor(self.decoders, self._picture, text, name)

        reading = [asyncio.create_task(read(text, name)) for text, name in zip(images, names, strict=True)]
        try:
            return list(await asyncio.gather(*reading))
        finally:
            for one in reading:  # after a first failure the rest is of no use
                one.cancel()

    def _picture(self, text: str, name: str) -> np.ndarray:
        with self.metrics.decode.labels("picture").time():
            return self.inputs.picture(text, name)

    async def _probe(self) -> np.ndarray:
        """Rows of a grey picture and of a short text, through the queue and past its bounds."""
        side, end = self.inputs.transform.config.image_size, self.inputs.tokenizer.end_id
        picture = np.full((3, side, side), 128, np.uint8)
        found = await asyncio.gather(
            self.batcher.run(IMAGE, [picture], [1], "canary"), self.batcher.run(TEXT, [[end]], [1], "canary")
        )
        return np.stack([rows[0] for rows in found])

    async def _run(self, lane: str, payloads: Sequence[Any], costs: Sequence[int], client: Hashable) -> list[np.ndarray]:
        try:
            return await self.batcher.run(lane, payloads, costs, client)
        except ItemFailed:
            raise Problem(500, "the model failed on this input", "computation_failed") from None
        except BackendLost:
            raise unavailable() from None

    def _hold(self, lane: str, cost: int) -> Hold:
        if not self.backend.ready:
            raise unavailable()
        try:
            return self.batcher.hold(lane, cost)
        except TooLarge as error:
            raise Problem(400, f"{error}; expected a smaller request", "request_too_large") from None
        except Overloaded as error:
            raise of_overload(error.retry_after_s) from None

    @contextlib.contextmanager
    def _preparing(self) -> Iterator[None]:
        self.batcher.preparing += 1
        try:
            yield
        finally:
            self.batcher.preparing -= 1


def fetcher(settings: ServeSettings) -> Callable[[str], bytes] | None:
    """What gives the bytes behind an address of the allowed hosts; None where no host is allowed."""
    from ostension.data.fetch import FetchPolicy, fetch

    if not settings.allow_url_hosts:
        return None
    seconds = min(FetchPolicy.timeout_s, settings.deadline_s)
    policy = FetchPolicy(hosts=settings.allow_url_hosts, max_bytes=settings.limits.max_image_bytes, timeout_s=seconds)
    return lambda url: fetch(url, policy=policy)


def unavailable() -> Problem:
    """503 while the process that computes is not there."""
    return Problem(503, "the model is not available just now", "model_unavailable", retry_after_s=2)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Unit rows (N of E), and the tokens of their texts."""

    rows: list[np.ndarray]
    tokens: int
