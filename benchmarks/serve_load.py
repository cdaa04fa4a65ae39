"""The service under load, beside a plain server and beside infinity and LitServe with the same model, in one run.

    python benchmarks/serve_load.py compare --peer-python peers/bin/python --record benchmarks/records/serve_load.json
    python benchmarks/serve_load.py held --record benchmarks/records/serve_held.json
    python benchmarks/serve_load.py soak --minutes 10 --record benchmarks/records/serve_soak.json

`compare`: requests a second and their times with 1, 8 and 64 clients, each with one request at a time, one picture (a JPEG of
640 x 480) or one text a request. Each server starts, is measured and ends before the next; all have the same threads.

`held`: what the service does with more than it can do: with `--max-slowdown 3` twice its capacity (what clients that wait as
long as they are told get) and 500 connections at once; as it is without flags a client with batches of 32 beside single ones;
and whether an answer depends on the load.

`soak`: at 80 % of capacity: processor memory, descriptors and threads over the minutes, and the first minute's times beside
the last one's. It runs in parts of at most five minutes, `--wrap` before each, on one process of the service.

The weights are random, which times do not depend on. The load comes from a process on the same machine and takes its part of
the processors from all servers alike.
"""

from __future__ import annotations

import argparse
import base64
import collections
import contextlib
import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measure import table, write_record
from PIL import Image

HERE = Path(__file__).parent
START_S = 180.0
TEXTS = 20_000  # more than are asked for, so that no text comes twice
PICTURES = 64
START = (
    "import json, sys; from ostension.config import from_tree; from ostension.serve.settings import ServeSettings;"
    "from ostension.serve.server import run; run(from_tree(ServeSettings, json.loads(sys.argv[1])))"
)


def main() -> None:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that no server is left behind
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        models = make_models(Path(folder), options.model)
        {"compare": compare, "held": held, "soak": soak}[options.what](options, models)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("compare", "held", "soak"))
    parser.add_argument("--record", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--model", default="ViT-B-32", help="architecture")
    parser.add_argument("--threads", type=int, default=2, help="threads of every server's computation")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each measurement")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--servers", nargs="+", default=["ostension", "plain", "infinity", "litserve"])
    parser.add_argument("--kinds", nargs="+", default=["pictures", "texts"], choices=("pictures", "texts"))
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has infinity_emb and litserve")
    parser.add_argument("--max-slowdown", type=float, default=3.0, help="the service's bound of that name (held)")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the soak")
    parser.add_argument("--wrap", default="", help="a command to put before the load of each part of the soak")
    return parser.parse_args()


def make_models(folder: Path, name: str) -> dict[str, str]:
    """Random weights in our layout and in the one that transformers reads."""
    from ostension.formats.load import save
    from ostension.model.clip import CLIP
    from ostension.model.presets import preset

    model = CLIP(preset(name), seed=0).eval()
    save(model, folder / "ours")
    with contextlib.redirect_stderr(io.StringIO()):
        save(model, folder / "hf", layout="hf")
    return {"ours": str(folder / "ours"), "hf": str(folder / "hf")}


# Servers


class Server:
    """A server in a process of its own; its children count too."""

    def __init__(self, name: str, command: Sequence[str], port: int, path: str):
        self.name, self.port, self.path = name, port, path
        self.log = tempfile.TemporaryFile()
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "PYTHONWARNINGS": "ignore"}
        self.process = subprocess.Popen(
            command, stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL, env=environment, process_group=0
        )

    def said(self) -> str:
        self.log.seek(0)
        return self.log.read().decode(errors="replace")

    def wait(self, request: dict[str, Any]) -> None:
        """Until it answers the request."""
        end = time.monotonic() + START_S
        while True:
            if self.process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{self.name} does not start:\n{self.said()[-2000:]}")
            if not self.port:
                found = re.search(r"http://127\.0\.0\.1:(\d+)", self.said())
                self.port = int(found[1]) if found else 0
            elif load(self, [stream("start", 1, [request], most=1)], 30.0)["start"]["statuses"].get("200"):
                return
            time.sleep(0.3)

    def tree(self) -> list[int]:
        """Its process and those that it started."""
        found = [self.process.pid]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                found += map(int, task.read_text().split())
        return found

    def use(self) -> dict[str, float]:
        """Memory (megabytes that are its own), descriptors and threads of all its processes."""
        pss = descriptors = threads = 0
        for pid in self.tree():
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            pss += int(re.search(r"^Pss:\s+(\d+)", text, re.M)[1])
            descriptors += len(list(Path(f"/proc/{pid}/fd").iterdir()))
            threads += len(list(Path(f"/proc/{pid}/task").iterdir()))
        return {"MB": pss / 1000, "descriptors": descriptors, "threads": threads}

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@contextlib.contextmanager
def serving(name: str, options: argparse.Namespace, models: dict[str, str], **settings: Any) -> Iterator[Server]:
    """One of the servers, warm."""
    if name == "ostension":
        tree = {
            "model": models["ours"], "port": 0, "threads": options.threads, "dtype": "float32", "cache_bytes": 0, **settings
        }  # fmt: skip
        server = Server(name, [sys.executable, "-c", START, json.dumps(tree)], 0, "/v1/embeddings")
    else:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        python = sys.executable if name == "plain" else options.peer_python
        script = HERE / ("_serve_lit.py" if name == "litserve" else "_serve_peers.py")
        command = [python, str(script), name, models["ours" if name == "plain" else "hf"], str(port), str(options.threads)]
        server = Server(name, command, port, "/embeddings" if name == "infinity" else "/v1/embeddings")
    try:
        for kind in ("pictures", "texts"):
            server.wait(requests(kind, server, 1)[0])
            load(server, [stream("warm", 8, requests(kind, server, 64), most=32)], 60.0)
        yield server
    finally:
        server.stop()


# Load


def jpeg(seed: int) -> bytes:
    """A JPEG of 640 x 480 with about the detail of a photograph (some 60 kB)."""
    rng = np.random.default_rng(seed)
    pixels = Image.fromarray(rng.integers(0, 255, (60, 80, 3), np.uint8)).resize((640, 480), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    pixels.save(out, "JPEG", quality=90)
    return out.getvalue()


def requests(kind: str, server: Server, count: int, items: int = 1) -> list[dict[str, Any]]:
    """Requests in the form of a server."""
    found = []
    for number in range(count):
        body: dict[str, Any] = {"encoding_format": "base64", "model": "model"}
        if server.name == "ostension":
            del body["model"]
        if kind == "texts":
            texts = [f"a photo of {number} things and {item} more" for item in range(items)]
            body["input"] = texts[0] if items == 1 else texts
        else:
            uris = [data_uri((number * items + item) % PICTURES) for item in range(items)]
            if server.name == "infinity":
                body |= {"input": uris, "modality": "image"}
            else:
                body["input"] = [{"image": uri} for uri in uris]
        found.append({"path": server.path, "body": body})
    return found


_URIS: dict[int, str] = {}


def data_uri(number: int) -> str:
    if number not in _URIS:
        _URIS[number] = "data:image/jpeg;base64," + base64.b64encode(jpeg(number)).decode()
    return _URIS[number]


def stream(name: str, clients: int, wanted: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"name": name, "clients": clients, "requests": wanted, **more}


def load(server: Server, streams: list[dict[str, Any]], seconds: float, wrap: str = "") -> dict[str, Any]:
    """What came of some streams: figures of each, and its raw answers."""
    spec = {"host": "127.0.0.1", "port": server.port, "seconds": seconds, "streams": streams}
    command = [*shlex.split(wrap), sys.executable, str(HERE / "_load.py")]
    done = subprocess.run(command, input=json.dumps(spec), capture_output=True, text=True, check=True)
    return {name: figures(found) for name, found in json.loads(done.stdout)["streams"].items()}


def figures(found: dict[str, Any]) -> dict[str, Any]:
    """Rates and times of what was answered with 200; the rate counts until the last answer, which may come after the load."""
    good = [(start, took) for start, took, status in found["answers"] if status == 200]
    statuses = collections.Counter(str(status) for *_, status in found["answers"])
    seconds = max((start + took for start, took in good), default=1.0)
    return {
        "per_s": len(good) / seconds, **times([took for _, took in good]), "statuses": dict(statuses), "good": good,
        "answers": found["answers"],
        **{name: found[name] for name in ("errors", "without_retry_after", "worst", "late_s")},
    }  # fmt: skip


def times(took: Sequence[float]) -> dict[str, float]:
    if not took:
        return {"p50_ms": float("nan"), "p99_ms": float("nan")}
    return {"p50_ms": 1000 * float(np.percentile(took, 50)), "p99_ms": 1000 * float(np.percentile(took, 99))}


def row_of(found: dict[str, Any]) -> dict[str, float]:
    """The figures that stand in a table."""
    refused = sum(count for status, count in found["statuses"].items() if status in ("429", "503"))
    failed = sum(found["statuses"].values()) - found["statuses"].get("200", 0) - refused + sum(found["errors"].values())
    return {
        "requests/s": found["per_s"], "p50 ms": found["p50_ms"], "p99 ms": found["p99_ms"], "refused": refused, "failed": failed
    }  # fmt: skip


# What is measured


def compare(options: argparse.Namespace, models: dict[str, str]) -> None:
    """Requests a second and times of each server."""
    result: dict[str, dict[str, dict[str, float]]] = {}
    for name in options.servers:
        with serving(name, options, models) as server:
            for kind in options.kinds:
                wanted = requests(kind, server, PICTURES if kind == "pictures" else TEXTS)
                for clients in options.clients:
                    # Clients that are refused wait as long as they are told, as the stock client of OpenAI does.
                    found = load(server, [stream("all", clients, wanted, patient=True)], options.seconds)["all"]
                    result.setdefault(f"{kind}, clients: {clients}", {})[name] = row_of(found)
                    told = f"{found['per_s']:.1f}/s {found['statuses']} {found['errors']}"
                    print(f"{name}, {kind}, {clients} clients: {told}", flush=True)
    for title, rows in result.items():
        for row in rows.values():
            if "ostension" in rows and row["requests/s"]:
                row["ours is x"] = rows["ostension"]["requests/s"] / row["requests/s"]
        table(title, rows)
    write_record(options.record, "serve_load", settings_of(options), result)


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    names = ("model", "threads", "seconds", "clients") if options.what == "compare" else ("model", "threads", "seconds")
    return {name: getattr(options, name) for name in names} | {"picture_bytes": len(jpeg(0)), "dtype": "float32"}


def held(options: argparse.Namespace, models: dict[str, str]) -> None:
    """More than the service can do, and whether answers depend on it."""
    result: dict[str, dict[str, dict[str, float]]] = {}
    wanted: dict[str, list[dict[str, Any]]] = {}
    most: dict[str, dict[str, Any]] = {}
    with serving("ostension", options, models) as server:  # as it is without flags
        for kind in options.kinds:
            wanted[kind] = expected(server, requests(kind, server, PICTURES if kind == "pictures" else 2_000), 24)
            most[kind] = load(server, [stream("all", 16, wanted[kind], patient=True)], options.seconds)["all"]
        texts = requests("texts", server, 2_000)
        single = load(server, [stream("one", 1, texts)], options.seconds)["one"]
        batches = requests("pictures", server, 2, items=32)
        mixed = load(server, [stream("one", 1, texts), stream("many", 1, batches)], 3 * options.seconds)
        rows = {"alone": row_of(single), "beside 32 pictures a request": row_of(mixed["one"])}
        for row in rows.values():
            row["p99 x alone"] = row["p99 ms"] / single["p99_ms"]
        result["single texts of one client"] = rows | {"the other client": row_of(mixed["many"])}
    asked = {"single texts beside 32 pictures, p99 x alone": (mixed["one"]["p99_ms"] / single["p99_ms"], "<", 2.0)}
    with serving("ostension", options, models, max_slowdown=options.max_slowdown) as server:
        for kind in options.kinds:
            alone = load(server, [stream("all", 1, wanted[kind])], options.seconds)["all"]
            full = load(server, [stream("all", 16, wanted[kind], patient=True)], options.seconds)["all"]
            twice = [stream("all", 64, wanted[kind], rate=2 * full["per_s"])]
            load(server, twice, options.seconds)  # what grows once has grown
            before = server.use()
            over = load(server, twice, 5 * options.seconds)["all"]
            after = server.use()
            rows = {
                "without a bound, 16 clients": row_of(most[kind]), "alone": row_of(alone),
                "at capacity, 16 clients": row_of(full), "twice that, 64 clients": row_of(over),
            }  # fmt: skip
            for row, found in zip(rows.values(), (most[kind], alone, full, over), strict=True):
                row |= {"p99 x alone": found["p99_ms"] / alone["p99_ms"], "largest difference": found["worst"]}
            more = {
                "of capacity": over["per_s"] / full["per_s"], "refused without Retry-After": over["without_retry_after"],
                "MB more": after["MB"] - before["MB"], "descriptors more": after["descriptors"] - before["descriptors"],
            }  # fmt: skip
            rows["twice that, 64 clients"] |= more
            result[f"{kind}, one a request"] = rows
            asked |= {
                f"{kind} at twice the capacity: answered, of capacity": (more["of capacity"], ">", 0.9),
                f"{kind}: p99 of what is accepted, x alone": (over["p99_ms"] / alone["p99_ms"], "<", 3.0),
                f"{kind}: memory, MB more": (more["MB more"], "<", 50.0),
                f"{kind}: refused without Retry-After, or failed": (
                    over["without_retry_after"] + row_of(over)["failed"], "<", 1.0
                ),
                f"{kind}: largest difference from the answer alone": (over["worst"], "<", 1e-6),
            }  # fmt: skip
        burst = load(server, [stream("all", 500, texts, most=500)], 30.0)["all"]
        last = max((start + took for start, took, _ in burst["answers"]), default=0.0)
        row = {name: value for name, value in row_of(burst).items() if name != "requests/s"}
        result["connections at once"] = {"500": {"answered": len(burst["good"]), "last answer after s": last} | row}
        asked["500 connections at once: the last answer, s"] = (last, "<", 1.0)
    for title, rows in result.items():
        table(title, rows)
    told(asked)
    write_record(options.record, "serve_held", settings_of(options) | {"max_slowdown": options.max_slowdown}, result)


def told(asked: dict[str, tuple[float, str, float]]) -> None:
    """Print each figure that was asked for, beside what was asked."""
    print("\nwhat was asked for")
    for name, (found, sign, target) in asked.items():
        met = found < target if sign == "<" else found > target
        print(f"{name:66s}{found:12.4g}  {sign} {target:<8.4g} {'met' if met else 'NOT MET'}")


def expected(server: Server, wanted: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The requests, the first `count` with the rows that they have when they are asked alone."""
    import http.client

    for request in wanted[:count]:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.request("POST", request["path"], json.dumps(request["body"]), {"Content-Type": "application/json"})
        rows = json.loads(connection.getresponse().read())["data"]
        request["expected"] = [np.frombuffer(base64.b64decode(row["embedding"]), "<f4").tolist() for row in rows]
        connection.close()
    return wanted


def soak(options: argparse.Namespace, models: dict[str, str]) -> None:
    """At 80 % of capacity for long."""
    with serving("ostension", options, models) as server:
        kinds = {
            "pictures": expected(server, requests("pictures", server, PICTURES), PICTURES),
            "texts": requests("texts", server, 500),
        }
        full = load(server, [stream(kind, 8, wanted) for kind, wanted in kinds.items()], options.seconds, options.wrap)
        rates = {kind: 0.8 * full[kind]["per_s"] for kind in kinds}
        left, passed = 60 * options.minutes, 0.0
        uses, parts = [server.use()], []
        while left > 1:
            seconds = min(left, 300.0)
            streams = [stream(kind, 16, wanted, rate=rates[kind]) for kind, wanted in kinds.items()]
            part = load(server, streams, seconds, options.wrap)
            parts.append((passed, part))
            uses.append(server.use())
            left, passed = left - seconds, passed + seconds
        minutes = passed / 60
        result = {f"{kind}, {rates[kind]:.3g} requests/s": soaked(parts, kind, passed) for kind in kinds}
        result["processes"] = {f"after {minutes * number / len(parts):g} minutes": use for number, use in enumerate(uses)}
    for title, rows in result.items():
        table(title, rows)
    write_record(options.record, "serve_soak", settings_of(options) | {"minutes": options.minutes}, result)


def soaked(parts: list[tuple[float, dict[str, Any]]], kind: str, seconds: float) -> dict[str, dict[str, float]]:
    """Each minute's times, and what went wrong in all of them."""
    good = [(start + when, took) for start, part in parts for when, took in part[kind]["good"]]
    rows: dict[str, dict[str, float]] = {}
    for minute in range(int(seconds // 60)):
        took = [one for when, one in good if 60 * minute <= when < 60 * minute + 60]
        found = times(took)
        rows[f"minute {minute + 1}"] = {"requests/s": len(took) / 60, "p50 ms": found["p50_ms"], "p99 ms": found["p99_ms"]}
    whole = [row_of(part[kind]) for _, part in parts]
    rows["all"] = {name: sum(row[name] for row in whole) for name in ("refused", "failed")}
    rows["all"]["largest difference"] = max(part[kind]["worst"] for _, part in parts)
    return rows


if __name__ == "__main__":
    main()
