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


def tiny_service(**settings: Any) -> Callable[[], Any]:
    """Makes services of one tiny model with random weights in this process; `store` and others are settings of the service."""
    import ostension
    from ostension.model.clip import CLIP
    from ostension.model.presets import preset
    from ostension.serve.app import create_app
    from ostension.serve.backend import LocalBackend
    from ostension.serve.compute import load_computation
    from ostension.serve.settings import ServeSettings

    folder = settings.pop("folder")
    if not (folder / "config.json").exists():
        ostension.save(CLIP(preset("tiny-vit"), seed=3), folder)
    chosen = ServeSettings(model=str(folder), dtype="float32", threads=1, decoders=2, **settings)

    def make() -> Any:
        return create_app(chosen, backend=LocalBackend(load_computation(str(folder), device="cpu", dtype="float32", engine="torch", threads=1, predictors={})))

    return make


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
