"""Other servers of the same model, to compare with: `python _serve_peers.py NAME MODEL PORT THREADS` (LitServe: _serve_lit.py).

    plain      http.server and our model: one request at a time, what one writes first
    infinity   infinity_emb 0.0.78 with transformers' CLIP: dynamic batches, OpenAI's form

infinity_emb's requirements are older than ours (numpy below 2, uvicorn 0.32), so it lives in an environment of its own:

    python -m venv peers; peers/bin/pip install -c constraints.txt '.[serve,towers]' litserve==0.2.19
    peers/bin/pip install --no-deps infinity_emb==0.0.78 orjson prometheus-fastapi-instrumentator posthog backoff typer rich \
        shellingham sentence-transformers optimum hf_transfer diskcache timm colpali-engine einops

transformers 5 gives an object where infinity expects a tensor; `as_before` gives it the tensor, and changes nothing else.
Neither uses torch.compile or a quantised model here, as ours does not.
"""

from __future__ import annotations

import base64
import functools
import http.server
import json
import os
import sys
from typing import Any

import torch


def main(name: str, model: str, port: str, threads: str) -> None:
    """Serve until killed."""
    torch.set_num_threads(int(threads))
    {"plain": plain, "infinity": infinity}[name](model, int(port))


def rows_answer(rows: Any, as_base64: bool) -> bytes:
    """Rows in OpenAI's form."""
    written = [base64.b64encode(row.astype("<f4").tobytes()).decode() if as_base64 else row.tolist() for row in rows]
    data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(written)]
    return json.dumps({"object": "list", "data": data}).encode()


def picture(text: str) -> bytes:
    """The bytes of a data URI."""
    return base64.b64decode(text.partition(",")[2])


def plain(folder: str, port: int) -> None:
    """One thread, one request at a time, batches of one."""
    from ostension.formats.load import load

    model = load(folder, dtype="float32")

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer(b"{}")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            items = body["input"] if isinstance(body["input"], list) else [body["input"]]
            with torch.inference_mode():
                if isinstance(items[0], dict):
                    rows = model.embed_images([picture(item["image"]) for item in items], batch_size=1)
                else:
                    rows = model.embed_texts(items)
            self.answer(rows_answer(rows.numpy(), body.get("encoding_format") == "base64"))

        def answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Connection", "close")  # so that one client does not keep the only thread
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    http.server.HTTPServer.request_queue_size = 128
    http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()


def as_before() -> None:
    """transformers 4's form of the features: the projected tensor itself."""
    from transformers import CLIPModel

    def unwrapped(method: Any) -> Any:
        @functools.wraps(method)
        def call(*arguments: Any, **options: Any) -> Any:
            found = method(*arguments, **options)
            return found if isinstance(found, torch.Tensor) else found.pooler_output

        return call

    for name in ("get_text_features", "get_image_features"):
        setattr(CLIPModel, name, unwrapped(getattr(CLIPModel, name)))


def infinity(folder: str, port: int) -> None:
    """infinity's own server with its defaults: batches of up to 32."""
    for name, value in (("HF_HUB_OFFLINE", "1"), ("DO_NOT_TRACK", "1"), ("INFINITY_ANONYMOUS_USAGE_STATS", "0")):
        os.environ[name] = value
    import uvicorn
    from infinity_emb import EngineArgs
    from infinity_emb.infinity_server import create_server

    as_before()
    arguments = EngineArgs(
        model_name_or_path=folder, served_model_name="model", engine="torch", device="cpu", dtype="float32", batch_size=32,
        bettertransformer=False, model_warmup=False, compile=False,
    )  # fmt: skip
    uvicorn.run(create_server(engine_args_list=[arguments]), host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main(*sys.argv[1:])
