"""A service in a process of its own, and clients that do what no client library would do."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ostension.formats.load import save
from ostension.model.clip import CLIP
from ostension.model.presets import preset

# Generous, for machines that do much else; nothing is measured with it.
PATIENCE_S = 120.0
POISON = "zyx"  # a text that the model of `make_model` answers with numbers that are none
START = "import json, sys; from ostension.config import from_tree; from ostension.serve.settings import ServeSettings; \
from ostension.serve.server import run; run(from_tree(ServeSettings, json.loads(sys.argv[1])))"


def make_model(folder: Path) -> Path:
    """A tiny model, broken in one place: whatever holds a token of `POISON` that no other text here has becomes NaN."""
    model = CLIP(preset("tiny-vit"), seed=0).eval()
    common = {token for text in GOOD_TEXTS for token in model.tokenizer.encode(text)}
    rare = [token for token in model.tokenizer.encode(POISON) if token not in common]
    with torch.no_grad():
        model.text.token_embedding.weight[rare[0]] = float("nan")
    save(model, folder)
    return folder


THINGS = ("dogs", "boats", "red cars", "hats")
GOOD_TEXTS = [f"a photo of {count} {what}" for count in ("one", "two", "no", "many") for what in THINGS]


def jpeg(seed: int = 0, side: int = 40) -> bytes:
    """A small photograph-like picture."""
    rough = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(rough).resize((side, side), Image.Resampling.BICUBIC).save(out, "JPEG")
    return out.getvalue()


def data_uri(data: bytes, kind: str = "image/jpeg") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes that says that it is large, and is."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    row = b"\0" + bytes(-(-width // 8))
    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def head(length: str, extra: str = "", path: str = "/v1/embeddings") -> bytes:
    """The beginning of a request as it is sent."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", length, extra]
    return "\r\n".join(line for line in lines if line).encode() + b"\r\n\r\n"


class NoAnswer(AssertionError):
    """The connection was closed without a word."""


class Answer:
    """Status, headers (names in lower case) and body of an answer."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes):
        self.status, self.headers, self.body = status, headers, body

    @property
    def tree(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        return self.tree["error"]

    def rows(self) -> np.ndarray:
        return np.array([row["embedding"] for row in self.tree["data"]], np.float64)

    def __repr__(self) -> str:
        return f"<{self.status} {self.body[:300]!r}>"


class Running:
    """A service that runs; its folder for temporary files and its working folder stay empty, or something was written."""

    def __init__(self, folder: Path, settings: dict[str, Any], *, wait: bool = True, command: list[str] | None = None):
        self.folder = folder
        self.scratch = folder / "scratch"
        self.scratch.mkdir(parents=True)
        self.log_path = folder / "log"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
        environment |= {"TMPDIR": str(self.scratch), "OSTENSION_CACHE": str(folder / "cache")}
        # A machine that does much else must not make the service refuse what would wait long.
        tree = {"port": 0, "threads": 1, "dtype": "float32", "max_queue_s": 100.0, **settings}
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                command or [sys.executable, "-c", START, json.dumps(tree)],
                stderr=log, stdout=log, stdin=subprocess.DEVNULL, cwd=self.scratch, env=environment,
            )  # fmt: skip
        found = until(lambda: re.search(r"http://127\.0\.0\.1:(\d+)", self.log()), self)
        self.port = int(found[1])
        if wait:
            self.wait_ready()

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [line for line in self.log().splitlines() if line.startswith("{")]
        return [event for event in map(json.loads, lines) if event["event"] == name]

    def ready(self) -> bool:
        with contextlib.suppress(OSError):
            return self.ask("GET", "/health/ready").status == 200
        return False

    def wait_ready(self) -> None:
        until(self.ready, self)

    def worker(self) -> int:
        """The process that computes."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        children = [int(pid) for task in tasks for pid in task.read_text().split()]
        assert len(children) == 1, children
        return children[0]

    def has_worker(self) -> bool:
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return any(task.read_text().split() for task in tasks)

    def memory(self) -> int:
        """Bytes of the process that answers (resident)."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def metric(self, name: str, **labels: str) -> float:
        """A sum over what the labels fit."""
        total = 0.0
        for line in self.ask("GET", "/metrics").body.decode().splitlines():
            if re.match(rf"{name}(\{{|\s)", line) and all(f'{key}="{value}"' in line for key, value in labels.items()):
                total += float(line.rpartition(" ")[2])
        return total

    def connect(self, timeout: float = PATIENCE_S) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """One request on a connection of its own; `body` is sent as it is if it is bytes."""
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}", "Connection: close"]
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        return self.raw("\r\n".join(lines).encode() + b"\r\n\r\n" + data)

    def raw(self, data: bytes) -> Answer:
        """Send bytes, and read until the server closes."""
        with self.connect() as connection:
            with contextlib.suppress(ConnectionError):  # an answer may come before all was sent
                connection.sendall(data)
            return read_answer(connection)

    def embed(self, inputs: Any, **more: Any) -> Answer:
        return self.ask("POST", "/v1/embeddings", {"input": inputs, **more})

    def embed_image(self, data: bytes, kind: str = "image/jpeg") -> Answer:
        return self.embed([{"image": data_uri(data, kind)}])

    def at_once(self, asks: list[Any]) -> list[Answer]:
        """The answers to several calls that are made at the same time."""
        gate = threading.Barrier(len(asks))

        def one(ask: Any) -> Answer:
            gate.wait(PATIENCE_S)
            return ask()

        with concurrent.futures.ThreadPoolExecutor(len(asks)) as pool:
            return list(pool.map(one, asks))

    def stop(self) -> int:
        """End it in the ordinary way; gives the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(PATIENCE_S)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()


def read_answer(connection: socket.socket) -> Answer:
    """What comes until the other side closes."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(1 << 16):
            data += part
    if not data:
        raise NoAnswer
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    assert lines[0].startswith("HTTP/1.1 "), data[:200]
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    if headers.get("transfer-encoding") == "chunked":
        rest, body = body, b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return Answer(int(lines[0].split()[1]), headers, body)


def until(condition: Any, service: Running | None = None, patience_s: float = PATIENCE_S) -> Any:
    """What `condition` gives once it is true."""
    end = time.monotonic() + patience_s
    while True:
        found = condition()
        if found:
            return found
        if service is not None and service.process.poll() is not None:
            raise AssertionError(f"the service ended with {service.process.returncode}:\n{service.log()[-3000:]}")
        assert time.monotonic() < end, f"waited {patience_s:g} s in vain" + (f":\n{service.log()[-3000:]}" if service else "")
        time.sleep(0.02)


@contextlib.contextmanager
def running(folder: Path, settings: dict[str, Any], **options: Any):
    """A service while entered."""
    service = Running(folder, settings, **options)
    try:
        yield service
    finally:
        service.stop()


@contextlib.contextmanager
def stopped(pid: int):
    """A process that does nothing while entered, as one that hangs."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


class Watching:
    """Asks for readiness all the time while entered; `seen` has what was answered."""

    def __init__(self, service: Running):
        self.service, self.seen, self._over = service, [], threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._over.is_set():
            self.seen.append(self.service.ready())
            self._over.wait(0.02)

    def __enter__(self) -> Watching:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
