"""Search: a query in one of five ways becomes a unit vector, and the vector hits. Reading and products run in threads.

Letters: E embedding, k hits.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import numpy as np

from ostension.errors import OstensionError
from ostension.serve.collections import Collections, preview
from ostension.serve.problems import Problem, of_input
from ostension.serve.schemas import Query, SearchRequest
from ostension.serve.service import Service, unavailable

T = TypeVar("T")
THREADS = 2  # a search uses all cores by itself; a second one fills its pauses
MAX_WAITING = 64
MAX_TERMS_LENGTH = 20_000
PREVIEW_SIDE = 320
INTERNAL = ("digest", "perceptual", "described", "source", "sample")  # hashes of 64 bits, and places in the source


class Search:
    """Searches in the store's collections.

    Args:
        service: embeds the queries.
    """

    def __init__(self, service: Service):
        self.service = service
        self.collections = Collections(service.settings.store)
        self._pool = concurrent.futures.ThreadPoolExecutor(THREADS, thread_name_prefix="search")
        self._waiting = 0

    async def find(self, body: SearchRequest, client: Hashable) -> dict[str, Any]:
        """The answer to a search request as a tree."""
        from ostension.store import where

        if body.k > self.service.limits.max_results:
            raise Problem(
                400, f"k is {body.k}; expected at most {self.service.limits.max_results}", "too_many_results", param="k"
            )
        try:
            wanted = where.parse(body.where) if body.where is not None else None
        except OstensionError as error:
            raise of_input(error, "where") from None
        searcher = await self.in_thread(lambda: self._searcher(body.collection))
        vector = await self._vector(body.query, searcher, client)
        try:
            hits = (await self.in_thread(lambda: searcher.find(vector[None], body.k, wanted)))[0]
        except OstensionError as error:
            raise of_input(error, "where") from None
        found: list[dict[str, Any]] = [{"id": hit.id, "score": hit.score, "fields": shown(hit.fields)} for hit in hits]
        if body.vectors and hits:
            rows = await self.in_thread(lambda: searcher.opened.rows[np.array([hit.row for hit in hits])])
            for one, row in zip(found, rows, strict=True):
                one["vector"] = row.astype(np.float32).tolist()
        return {
            "object": "list", "data": found, "collection": body.collection, "model": self.service.model_id,
            "vector": vector.tolist() if body.vectors else None,
        }  # fmt: skip

    async def cards(self) -> list[dict[str, Any]]:
        """What is known of each collection."""
        return await self.in_thread(lambda: self.collections.cards(previews=self.service.settings.previews))

    async def preview(self, collection: str, name: str) -> bytes:
        """A small JPEG of a row's picture."""
        if not self.service.settings.previews:
            raise Problem(404, "this service shows no previews", "previews_off")
        limit = self.service.limits.max_pixels
        return await self.in_thread(lambda: preview(self._searcher(collection), name, max_pixels=limit, side=PREVIEW_SIDE))

    def stop(self) -> None:
        """Begin nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def in_thread(self, function: Callable[[], T]) -> T:
        """The result of work on the store.

        Raises:
            Problem: 429 if too many wait for theirs.
        """
        if self._waiting >= MAX_WAITING:
            raise Problem(429, "too many searches wait", "queue_full", retry_after_s=1)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, function)
        finally:
            self._waiting -= 1

    def _searcher(self, name: str) -> Any:
        facts = self.service.backend.facts
        if facts is None:
            raise unavailable()
        return self.collections.searcher(name, facts.model_key)

    async def _vector(self, query: Query, searcher: Any, client: Hashable) -> np.ndarray:
        """The unit vector (E,) of a query."""
        if query.text is not None:
            return (await self.service.embed_texts([query.text], "query.text", client)).rows[0]
        if query.image is not None:
            return (await self.service.embed_images([query.image], "query.image", client))[0]
        if query.expression is not None:
            return await self._of_expression(query.expression, searcher, client)
        if query.id is not None:
            name = query.id
            try:
                row = await self.in_thread(lambda: searcher.vectors([name])[0])
            except OstensionError as error:
                raise Problem(404, of_input(error, None).message, "item_not_found", param="query.id") from None
            return _unit(row, "query.id")
        width = self.service.files.config.embed_dim
        if len(query.vector or ()) != width:
            what = f"the vector has {len(query.vector or ()):,} numbers; expected {width:,}"
            raise Problem(400, what, "invalid_vector", param="query.vector")
        return _unit(np.array(query.vector, np.float64), "query.vector")

    async def _of_expression(self, text: str, searcher: Any, client: Hashable) -> np.ndarray:
        from ostension.store import query

        self.service.inputs.check_text(text, "query.expression")
        try:
            parsed = query.parse(text)
        except OstensionError as error:
            raise of_input(error, "query.expression") from None
        if any(term.kind == "image" for term in parsed.terms):  # it would be a file of the server's
            what = "pictures cannot be named in an expression; quotes make words of them"
            raise Problem(400, what, "invalid", param="query.expression")
        words = list(dict.fromkeys(term.value for term in parsed.terms if term.kind == "text"))
        rows = (await self.service.embed_texts(words, "query.expression", client)).rows if words else []
        known = dict(zip(words, rows, strict=True))
        try:
            return await self.in_thread(lambda: parsed.vector(_Known(known), searcher.vectors))
        except OstensionError as error:
            raise of_input(error, "query.expression") from None


def shown(fields: dict[str, Any]) -> dict[str, Any]:
    """What is known of a row, without what only the store has a use for."""
    return {name: value for name, value in fields.items() if name not in INTERNAL}


class _Known:
    """An embedder of texts whose rows are there already."""

    def __init__(self, rows: dict[str, np.ndarray]):
        self._rows = rows

    def embed_texts(self, texts: Any) -> np.ndarray:
        return np.stack([self._rows[text] for text in texts])

    def embed_images(self, images: Any, batch_size: int = 0) -> Any:
        raise AssertionError("an expression has no pictures here")


def _unit(row: np.ndarray, param: str) -> np.ndarray:
    length = float(np.linalg.norm(row.astype(np.float64)))
    if not np.isfinite(length) or length < 1e-12:
        raise Problem(400, "the vector has no direction: its length is 0 or not finite", "invalid_vector", param=param)
    return (row / length).astype(np.float32)
