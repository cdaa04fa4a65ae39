"""Serve a model over HTTP: embeddings in OpenAI's form, classification, search, and a web page."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from ostension.errors import UsageError, require_extra

if TYPE_CHECKING:
    from ostension.serve.settings import ServeSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Serve:
    """Serve a model over HTTP: embeddings in OpenAI's form, classification, search, and a web page.

    Nothing is written but logs, one JSON object a line, to stderr. SIGTERM and an interrupt let what is there finish.

    Examples:
      ostension serve --model FOLDER
      ostension serve --model FOLDER --store STORE --previews
      ostension serve --model FOLDER --predictor pets=FOLDER --host 0.0.0.0 --keys-file keys.txt

    Args:
        model: A model's folder, file or hub name. Default: the environment variable OSTENSION_MODEL.
        model_id: What clients call the model. Default: its own name.
        store: A folder of collections to search (`ostension embed` makes one).
        predictor: A saved predictor as NAME=FOLDER; repeat the flag for several.
        host: Address to listen on. Others than this machine's own need a key.
        port: Port to listen on; 0 takes a free one.
        keys_file: A file with the keys that open the service, one a line. OSTENSION_KEYS may hold more, between commas.
        open_metrics: Answer /metrics without a key.
        allow_url_host: A host whose pictures may be given by their address, as pictures.example or *.pictures.example; repeat
            the flag for several. Without it addresses are refused.
        previews: Show the pictures of collections.
        device: Where to compute: auto, cpu, cuda, cuda:N.
        dtype: Type of the weights: auto, float32, bfloat16, float16.
        engine: What computes: torch, onnx, openvino, or auto for the fastest here.
        threads: Threads of the process that computes. Default: OMP_NUM_THREADS, or all cores.
        max_batch: Texts or pictures that are computed together, at most.
        max_wait_ms: How long an item waits for others that are on their way.
        max_queue: Seconds that a request may wait for others; if it would wait longer, it is refused with 429.
        max_slowdown: Refuse with 429 what would take more than so many times what it takes on an idle service, and make
            batches short enough for that (3 is a good one). Fewer are answered in a second. 0: no such bound.
        queue: Pictures that may wait, at most.
        deadline: Seconds after which a request without an answer is given up.
        drain: Seconds that requests may go on after SIGTERM.
        max_body_mb: Megabytes of a request, at most.
        max_items: Texts and pictures of a request, at most.
        max_pixels: Pixels of a picture, at most.
    """

    model: str | None = None
    model_id: str | None = None
    store: str | None = None
    predictor: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    keys_file: Path | None = None
    open_metrics: bool = False
    allow_url_host: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    previews: bool = False
    device: str = "auto"
    dtype: str = "auto"
    engine: Literal["torch", "onnx", "openvino", "auto"] = "torch"
    threads: int | None = None
    max_batch: int = 32
    max_wait_ms: float = 8.0
    max_queue: float = 2.0
    max_slowdown: float = 0.0
    queue: int = 256
    deadline: float = 30.0
    drain: float = 20.0
    max_body_mb: int = 64
    max_items: int = 128
    max_pixels: int = 25_000_000

    def run(self) -> int:
        for module in ("fastapi", "uvicorn", "pydantic", "prometheus_client"):
            require_extra(module, "serve")
        settings = self.settings()
        from ostension.serve.server import run

        run(settings)
        return 0

    def settings(self) -> ServeSettings:
        """What the flags say.

        Raises:
            UsageError, ConfigError, DataError: for what cannot be meant.
        """
        from ostension.cli.classify import model_name
        from ostension.serve.keys import read_keys
        from ostension.serve.settings import MEGABYTE, Limits, ServeSettings

        if self.previews and self.store is None:
            raise UsageError(
                "--previews shows pictures of collections, and there is no --store", fix="give --store, or leave it out"
            )
        body = self.max_body_mb * MEGABYTE
        waiting = max(Limits.max_waiting_bytes, 4 * body)
        limits = Limits(
            max_body_bytes=body, max_waiting_bytes=waiting, max_batch_items=self.max_items, max_pixels=self.max_pixels
        )
        return ServeSettings(
            model=model_name(self.model), model_id=self.model_id, predictors=named_folders(self.predictor), store=self.store,
            device=self.device, dtype=self.dtype, engine=self.engine, threads=self.threads, host=self.host, port=self.port,
            keys=read_keys(self.keys_file), open_metrics=self.open_metrics, allow_url_hosts=self.allow_url_host,
            previews=self.previews, max_batch=self.max_batch, max_wait_ms=self.max_wait_ms, max_queue_s=self.max_queue,
            max_slowdown=self.max_slowdown, queue_images=self.queue, deadline_s=self.deadline,
            drain_s=self.drain, limits=limits,
        )  # fmt: skip


COMMAND = Serve


def named_folders(given: tuple[str, ...]) -> dict[str, str]:
    """NAME=FOLDER pairs as a dict.

    Raises:
        UsageError: for another form, or a name given twice.
    """
    found: dict[str, str] = {}
    for text in given:
        name, sign, folder = text.partition("=")
        if not (name and sign and folder) or name in found:
            raise UsageError(f"--predictor is {text!r}", expected="NAME=FOLDER, each name once")
        found[name] = folder
    return found
