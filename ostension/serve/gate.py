"""What stands before every route: who asks, how much, how long; and what every answer carries.

In this order, so that nothing is done for those who may not ask: the key, the length, whether there is room for what the body
begins with, the body, then the route under a deadline while the client is there. Every answer, also that of a failure, gets a
request id, the headers that browsers need to be told, a line in the log and its count in the metrics.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from ostension.serve.auth import Keys
from ostension.serve.body import ClientGone, Room, linger, read_body
from ostension.serve.logs import Log, request_id, trace_of
from ostension.serve.metrics import Metrics
from ostension.serve.problems import Problem
from ostension.serve.settings import ServeSettings

# Answers are data: nothing may run, be framed, or be guessed to be something else. The page has a policy of its own.
HEADERS = {
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"x-frame-options": b"DENY",
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"no-store",
}
GONE = 499  # in logs and metrics: the client closed the connection before the answer
OTHER = "other"


class Gate:
    """An ASGI application around another.

    Args:
        settings, metrics, log: of the service.
    """

    app: Any
    early: Callable[..., Problem | None] | None = None  # says what is refused by the beginning of its body

    def __init__(self, settings: ServeSettings, metrics: Metrics, log: Log):
        self.settings, self.metrics, self.log = settings, metrics, log
        self.keys = Keys(settings.keys, open_metrics=settings.open_metrics)
        self.room = Room(settings.limits.max_waiting_bytes)
        self.draining = False
        self._ended: asyncio.Future[None] | None = None  # of the loop that runs

    def around(self, app: Any) -> Gate:
        """This gate before `app`."""
        self.app = app
        return self

    def drain(self) -> None:
        """Let what is there go on for `drain_s`; then it is answered with 503."""
        if not self.draining:
            self.draining = True
            asyncio.get_running_loop().call_later(self.settings.drain_s, self._end().set_result, None)

    def _end(self) -> asyncio.Future[None]:
        """Done when what is there has had its time."""
        if self._ended is None:
            self._ended = asyncio.get_running_loop().create_future()
        return self._ended

    def _look(self, path: str, part: bytes, whole: bool) -> None:
        problem = self.early(path, part, whole=whole) if self.early is not None else None
        if problem is not None:
            raise problem

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send)
        self.metrics.active.inc()
        try:
            await self._exchange(exchange)
        except ClientGone:
            exchange.status = GONE
        except asyncio.CancelledError:
            exchange.status = exchange.status or 503
            raise
        finally:
            self.metrics.active.dec()
            self._record(exchange)

    async def _exchange(self, exchange: Exchange) -> None:
        scope = exchange.scope
        try:
            scope["ostension.key"] = self.keys.check(scope["path"], scope["headers"])
            body = await read_body(
                exchange.receive, scope["headers"], self.settings.limits, self.room,
                lambda part, whole: self._look(scope["path"], part, whole),
            )  # fmt: skip
        except Problem as problem:
            await exchange.refuse(problem)
            return
        exchange.bytes_in = len(body)
        try:
            await self._answer(exchange, body)
        except Problem as problem:
            await exchange.fail(problem)
        finally:
            self.room.give(len(body))

    async def _answer(self, exchange: Exchange, body: bytes) -> None:
        """Run the route until it is done, the client has gone, the deadline has passed, or the service has ended.

        Raises:
            Problem: for the deadline (504) and the end (503).
            ClientGone: if nobody is there any more.
        """
        work = asyncio.create_task(self.app(exchange.scope, _replay(body, exchange.receive), exchange.send))
        gone = asyncio.create_task(_until_gone(exchange.receive))
        ended = self._end()
        try:
            await asyncio.wait((work, gone, ended), timeout=self.settings.deadline_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not exchange.complete:
                work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        if work.cancelled():
            if gone.done() and not gone.cancelled():
                raise ClientGone
            if ended.done():
                raise Problem(503, "the service is stopping", "stopping", retry_after_s=5)
            what = f"there was no answer within {self.settings.deadline_s:g} s"
            raise Problem(504, what, "deadline_exceeded")
        error = work.exception()
        if error is not None:
            self.log("request_failed", level="error", id=exchange.id, error=type(error).__name__, trace=trace_of(error))
            raise Problem(500, "the service failed on this request", "internal_error")

    def _record(self, exchange: Exchange) -> None:
        scope, seconds = exchange.scope, time.perf_counter() - exchange.started
        route = getattr(scope.get("route"), "path", None) or OTHER
        self.metrics.requests.labels(route, exchange.status).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        if exchange.code is not None:
            self.metrics.rejected.labels(exchange.code).inc()
        self.log(
            "request", id=exchange.id, method=scope["method"][:16], route=route, status=exchange.status, code=exchange.code,
            seconds=round(seconds, 5), client=(scope.get("client") or [None])[0], key=scope.get("ostension.key"),
            bytes_in=exchange.bytes_in, bytes_out=exchange.bytes_out,
        )  # fmt: skip


class Exchange:
    """One request and its answer."""

    def __init__(self, scope: Any, receive: Any, send: Any):
        self.scope, self._receive, self._send = scope, receive, send
        self.whole = False  # all of the request was read
        self.started = time.perf_counter()
        self.id = request_id(next((value for name, value in scope["headers"] if name == b"x-request-id"), None))
        self.status = 0
        self.code: str | None = None  # of the error, if it is one
        self.bytes_in = self.bytes_out = 0
        self.complete = False  # the whole answer is out
        scope["ostension.exchange"] = self

    async def receive(self) -> Any:
        """The next part of the request."""
        message = await self._receive()
        self.whole = self.whole or not message.get("more_body", False)
        return message

    async def send(self, message: Any) -> None:
        """Pass on a part of the answer, with what every answer carries."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", []))
            present = {name.lower() for name, _ in headers}
            headers += [(name, value) for name, value in HEADERS.items() if name not in present]
            message = {**message, "headers": [*headers, (b"x-request-id", self.id.encode())]}
        else:
            self.bytes_out += len(message.get("body", b""))
            self.complete = not message.get("more_body", False)
        await self._send(message)

    async def fail(self, problem: Problem, *, close: bool = False, more: bool = False) -> None:
        """Answer with a problem, if nothing was answered yet."""
        self.code = problem.code
        if self.status:
            raise ClientGone  # half an answer is out; closing the connection is all that can be said
        body = problem.body()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [(name.lower().encode(), value.encode()) for name, value in problem.headers.items()]
        if close:
            headers.append((b"connection", b"close"))
        await self.send({"type": "http.response.start", "status": problem.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": more})

    async def refuse(self, problem: Problem) -> None:
        """Answer before the body was used; where it was not read whole, read on for a moment, and close."""
        if self.whole:
            await self.fail(problem)
            return
        await self.fail(problem, close=True, more=True)
        await linger(self.receive)
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})


def _replay(body: bytes, receive: Any) -> Any:
    """A `receive` that gives the body that was read."""
    given = False

    async def replay() -> Any:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await asyncio.Future()  # `_until_gone` looks for the end

    return replay


async def _until_gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
