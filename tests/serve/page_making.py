"""A real server for tests of the page: on 127.0.0.1, at a port of its own, in a thread; it can be stopped, and come back."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any


class Server:
    """Serves what `make` makes; a second start is at the same port.

    Attributes:
        refuse: so many of the next requests below /v1 are answered by 429 before the application sees them.
        seen: method and path of every request.
    """

    def __init__(self, make: Callable[[], Any]):
        self.make, self.port = make, 0
        self.refuse, self.seen = 0, []
        self.bodies: list[bytes] = []
        self._server: Any = None

    def start(self) -> None:
        import uvicorn

        self._app = self.make()
        config = uvicorn.Config(
            self._answer, interface="asgi3", host="127.0.0.1", port=self.port, log_level="error", ws="none", lifespan="on",
            timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        end = time.monotonic() + 60
        while not self._server.started:
            assert self._thread.is_alive() and time.monotonic() < end, "the server did not start"
            time.sleep(0.02)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self.seen.append((scope["method"], scope["path"]))
            if self.refuse > 0 and scope["path"].startswith("/v1/"):
                self.refuse -= 1
                body = json.dumps({"error": {"message": "the queue is full", "type": "rate_limit_error", "param": None,
                                             "code": "queue_full"}}).encode()  # fmt: skip
                headers = [(b"retry-after", b"1"), (b"content-type", b"application/json")]
                await send({"type": "http.response.start", "status": 429, "headers": headers})
                await send({"type": "http.response.body", "body": body})
                return
        await self._app(scope, receive, send)


@contextlib.contextmanager
def serving(make: Callable[[], Any]) -> Iterator[Server]:
    """A server that runs."""
    server = Server(make)
    server.start()
    try:
        yield server
    finally:
        server.stop()
