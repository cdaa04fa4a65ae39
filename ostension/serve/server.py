"""Running the service: a socket, signals, and connections that cannot be held open by being slow.

SIGTERM (and an interrupt) stops accepting, lets what is there finish for a while, and exits with 0. A second one exits at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ostension.errors import CheckpointError, OstensionError
from ostension.serve.logs import Log
from ostension.serve.problems import Problem
from ostension.serve.settings import ServeSettings

HEADER_S = 10.0  # a request's head has to be there after these
KEEP_ALIVE_S = 30.0
LAST_S = 0.5  # after the stop, for the request of a connection that had not asked anything yet
MAX_HEAD_BYTES = 32_768
BACKLOG = 1024


class Connection(H11Protocol):
    """uvicorn's, which closes idle connections after an answer, but waits forever for the first request's head; ours does not.

    Also: a bound on the number of connections, and answers to what is no HTTP in the form that all errors have.
    """

    max_connections = 1_000
    _head: asyncio.TimerHandle | None = None
    _ending = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self._write(Problem(503, "there are too many connections", "too_many_connections", retry_after_s=1))
            return
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._is_idle():
            self._wait_for_head()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._stop_waiting()
        super().on_response_complete()

    def shutdown(self) -> None:
        """Close, but let a connection that was made just before the stop ask what it came for."""
        if self.cycle is None and not self._ending and not self.transport.is_closing():
            self._ending = True
            self.loop.call_later(LAST_S, self.shutdown)
        elif not self.transport.is_closing():
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        self._write(Problem(400, "this is not a valid HTTP request", "invalid_http"))

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait_for_head(self) -> None:
        if self._head is None:
            self._head = self.loop.call_later(HEADER_S, self._too_slow)

    def _stop_waiting(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _too_slow(self) -> None:
        if self._is_idle() and not self.transport.is_closing():
            self._write(Problem(408, f"the request's head was not there after {HEADER_S:g} s", "head_timeout"))

    def _write(self, problem: Problem) -> None:
        """Answer outside any request, and close."""
        body = problem.body()
        lines = [f"HTTP/1.1 {problem.status} Refused", "Content-Type: application/json", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in problem.headers.items()]
        self.transport.write("\r\n".join([*lines, "Connection: close", "", ""]).encode() + body)
        self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's, with our signals: none is raised anew at the end, so that a stop is a success."""

    on_stop: Callable[[], None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            loop.add_signal_handler(number, self._signalled, number)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    async def shutdown(self, sockets: list[Any] | None = None) -> None:
        """uvicorn's, which closes the listening sockets and with them resets the connections that the system took and nobody
        accepted yet; here those are accepted first and get their answers."""
        loop, rest = asyncio.get_running_loop(), []
        for listening in sockets or []:
            with contextlib.suppress(OSError):  # until it would block
                while True:
                    rest.append(listening.accept()[0])
        for server in self.servers:
            server.close()
        for connection in rest:
            connection.setblocking(False)
            await loop.connect_accepted_socket(self._protocol, connection)
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        make: Any = self.config.http_protocol_class
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    def _signalled(self, number: int) -> None:
        if self.should_exit:
            os._exit(128 + number)
        self.stop()

    def stop(self) -> None:
        """Stop accepting and end when what is there is done."""
        self.should_exit = True
        if self.on_stop is not None:
            self.on_stop()


def run(settings: ServeSettings, *, log: Log | None = None) -> None:
    """Serve until a signal.

    Raises:
        OstensionError: if the model cannot be loaded, or the address cannot be listened on.
    """
    from ostension.serve.app import create_app

    log = log or Log()
    log.take_over()
    app = create_app(settings, log=log)
    limits = settings.limits
    protocol = type("Connection", (Connection,), {"max_connections": limits.max_connections})
    config = uvicorn.Config(
        app, host=settings.host, port=settings.port, http=protocol, ws="none", lifespan="on", log_config=None, access_log=False,
        server_header=False, timeout_keep_alive=KEEP_ALIVE_S, timeout_graceful_shutdown=settings.drain_s + 5,  # type: ignore[arg-type]
        backlog=BACKLOG, h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    )  # fmt: skip
    server = Server(config)
    failure: list[str] = []

    def fail(message: str) -> None:
        failure.append(message)
        server.stop()

    server.on_stop = app.state.gate.drain
    app.state.service.backend.on_failed = fail
    listening = _listen(settings)
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"ostension: serving {app.state.service.model_id} on http://{shown}:{port}", file=sys.stderr, flush=True)
    log("listening", host=host, port=port, pid=os.getpid())
    try:
        server.run(sockets=[listening])
    finally:
        listening.close()
    if failure:
        raise CheckpointError(failure[0])
    log("stopped")


def _listen(settings: ServeSettings) -> Any:
    import socket

    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    found = socket.socket(family)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((settings.host, settings.port))
        found.listen(BACKLOG)
    except OSError as error:
        found.close()
        raise OstensionError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from None
    found.setblocking(False)
    return found
