"""A small model, a service of it in this process, and requests without a network."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import threading
from typing import Any

import numpy as np
import uvicorn
from PIL import Image

from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.runtime import numpy_generator
from ostension.serve.app import create_app
from ostension.serve.backend import LocalBackend
from ostension.serve.batcher import Computed
from ostension.serve.compute import Computation, Facts
from ostension.serve.model_files import ModelFiles
from ostension.serve.server import Connection
from ostension.serve.settings import Limits, ServeSettings

PATIENCE_S = 60.0  # of a loaded machine
JSON = (b"content-type", b"application/json")


def tiny_model() -> CLIP:
    return CLIP(preset("tiny-vit"), seed=0).eval()


def png(seed: int = 0, size: tuple[int, int] = (40, 50)) -> bytes:
    pixels = numpy_generator(seed, "picture").integers(0, 256, (*size, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def app_of(model: Any, *, backend: Any = None, limits: Any = None, predictors: Any = None, **settings: Any) -> Any:
    """A service of a model in memory; `predictors` are loaded ones."""
    names = dict.fromkeys(predictors or {}, "")
    made = ServeSettings(model="memory", limits=Limits(**(limits or {})), predictors=names, **{"canary_s": 0.2, **settings})
    return create_app(made, files=ModelFiles.of(model), backend=backend or LocalBackend(Computation(model, predictors)))


class Answer:
    def __init__(self, status: int, headers: dict[str, str], body: bytes):
        self.status, self.headers, self.body = status, headers, body

    @property
    def tree(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        assert set(self.tree) == {"error"} and set(self.tree["error"]) == {"message", "type", "param", "code"}
        return self.tree["error"]

    def rows(self) -> np.ndarray:
        return np.array([one["embedding"] for one in self.tree["data"]], np.float32)

    def __repr__(self) -> str:
        return f"<{self.status} {self.body[:300]!r}>"


async def ask(
    app: Any, method: str, path: str, body: Any = None, *, headers: Any = (), receive: Any = None, query: bytes = b""
) -> Answer:
    """One request, straight into the application."""
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    answer: dict[str, Any] = {"status": 0, "headers": {}, "body": b""}
    parts = [{"type": "http.request", "body": data, "more_body": False}]
    over = asyncio.Event()

    async def from_client() -> Any:
        if parts:
            return parts.pop(0)
        await over.wait()
        return {"type": "http.disconnect"}

    async def to_client(message: Any) -> None:
        if message["type"] == "http.response.start":
            answer["status"] = message["status"]
            answer["headers"] = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            answer["body"] += message.get("body", b"")
            if not message.get("more_body"):
                over.set()

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http", "path": path,
        "raw_path": path.encode(), "query_string": query, "root_path": "", "headers": [JSON, *headers],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {},
    }  # fmt: skip
    await app(scope, receive or from_client, to_client)
    return Answer(answer["status"], answer["headers"], answer["body"])


@contextlib.asynccontextmanager
async def started(app: Any, *, wait: bool = True) -> Any:
    """The application between its startup and its shutdown, ready."""
    async with app.router.lifespan_context(app):
        if wait:
            await until(lambda: not app.state.service.canary.reason)
        yield app


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


@contextlib.contextmanager
def listening(app: Any) -> Any:
    """The application on a port of this machine; gives its address."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, http=Connection, ws="none", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait = threading.Event()
        for _ in range(int(PATIENCE_S / 0.02)):
            if server.started and not app.state.service.canary.reason:
                break
            wait.wait(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)


class Slow:
    """A backend that computes when it is told to."""

    def __init__(self, width: int = 32):
        self.facts = Facts(
            sha256="0" * 64, embed_dim=width, logit_scale=1.0, logit_bias=None, dtype="float32", engine="torch", threads=1,
            provenance={}, model_key={}, predictors={},
        )  # fmt: skip
        self.on_ready = self.on_lost = self.on_failed = None
        self.restarts, self.ready, self.reason = 0, True, ""
        self.open, self.batches, self.width = asyncio.Event(), [], width
        self.open.set()

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def compute(self, lane: str, payloads: Any) -> Computed:
        self.batches.append((lane, len(payloads)))
        await self.open.wait()
        rows = np.zeros((len(payloads), self.width), np.float32)
        rows[:, 0] = 1
        return Computed(rows, 0.001)


def served(model: Any, work: Any, **settings: Any) -> Any:
    """Run a coroutine function of (app, backend) with a service that computes nothing by itself."""

    async def main() -> Any:
        backend = Slow()
        app = app_of(model, backend=backend, **{"canary_s": 1000.0, "cache_bytes": 0, **settings})
        async with started(app):
            return await work(app, backend)

    return asyncio.run(asyncio.wait_for(main(), PATIENCE_S))
