"""Serve a model over HTTP: embeddings in OpenAI's form, classification, search, and a web page."""

from __future__ import annotations

import dataclasses

import tyro

from ostension.errors import UsageError, require_extra


@dataclasses.dataclass(frozen=True, kw_only=True)
class Serve:
    """Serve a model over HTTP: embeddings in OpenAI's form, classification, search, and a web page.

    Args:
        model: A model's folder, file or hub name. Default: the environment variable OSTENSION_MODEL.
        store: A folder of collections to search.
        predictor: A saved predictor as NAME=FOLDER; repeat the flag for several.
        host: Address to listen on. Others than this machine's own need a key.
        port: Port to listen on; 0 takes a free one.
        device: Where to compute: auto, cpu, cuda, cuda:N.
        dtype: Type of the weights: auto, float32, bfloat16, float16.
        threads: Threads of the process that computes.
    """

    model: str | None = None
    store: str | None = None
    predictor: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None

    def run(self) -> int:
        for module in ("fastapi", "uvicorn", "pydantic", "prometheus_client"):
            require_extra(module, "serve")
        from ostension.cli.classify import model_name
        from ostension.serve.settings import ServeSettings

        settings = ServeSettings(
            model=model_name(self.model), store=self.store, predictors=named_folders(self.predictor), host=self.host,
            port=self.port, device=self.device, dtype=self.dtype, threads=self.threads,
        )  # fmt: skip
        from ostension.serve.server import run

        run(settings)
        return 0


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
