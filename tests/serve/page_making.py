"""A real server for tests of the page: on 127.0.0.1, at a port of its own, in a thread; it can be stopped, and come back."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
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


def tiny_service(model: Any = None, **settings: Any) -> Callable[[], Any]:
    """Makes services of one tiny model with random weights in this process; `settings` are those of the service."""
    from service_making import app_of, tiny_model

    model = model or tiny_model()
    return lambda: app_of(model, **{"threads": 1, "decoders": 2, "canary_s": 2.0, **settings})


def make_pictures(folder: Path, names: Sequence[str]) -> list[Path]:
    """Small pictures, each of another colour and pattern, lossless."""
    import numpy as np
    from PIL import Image

    from ostension.runtime import numpy_generator

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, name in enumerate(names):
        coarse = numpy_generator(7, "page", index).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        paths.append(folder / name)
        Image.fromarray(coarse.repeat(12, 0).repeat(12, 1)).save(paths[-1], format="PNG")
    return paths


def make_store(folder: Path, captions: dict[str, str]) -> tuple[Path, list[Path]]:
    """A store with a collection of small pictures, each with a caption and a number; gives it and the pictures."""
    from service_making import tiny_model

    from ostension.store import Store
    from ostension.store.growing import add
    from ostension.store.origins import open_source

    pictures = make_pictures(folder / "pictures", list(captions))
    for number, (path, caption) in enumerate(zip(pictures, captions.values(), strict=True)):
        path.with_suffix(".txt").write_text(caption)
        path.with_suffix(".json").write_text(json.dumps({"number": number, "shelf": "odd" if number % 2 else "even"}))
    source, origin = open_source(str(folder / "pictures"))
    added = add(Store(folder / "store"), tiny_model(), source, origin=origin, workers=0)
    assert added.rows == len(captions), added
    return folder / "store", pictures
