"""Load for an HTTP server, from a process of its own: a specification in on stdin, what happened out on stdout, both JSON.

A specification has `host`, `port`, `seconds` and `streams`. A stream has a `name`, `clients` (connections, each with one
request at a time, kept open), `requests` (each with `path`, `body` and, if answers are checked, `expected` rows), and

    rate     requests a second of all its clients together, spread evenly; as fast as answers come if missing
    most     the clients stop after so many requests together
    patient  wait as long as Retry-After says after 429 and 503

An answer is checked where the request has `expected`: rows in base64 as OpenAI's clients ask for them, compared number by
number. What comes out, for each stream: `answers` as [seconds since the start, seconds it took, status], `errors` by what
went wrong with a connection, the number of refusals `without_retry_after`, the `worst` difference from an expected row, and
how late requests were sent that had a time (`late_s`).
"""

from __future__ import annotations

import asyncio
import base64
import collections
import contextlib
import json
import sys
import time
from typing import Any

import numpy as np

GRACE_S = 30.0  # for the last answers


class Stream:
    """The clients of one stream and what they saw."""

    def __init__(self, given: dict[str, Any], host: str, port: int, until: float, start: float):
        self.host, self.port, self.start, self.until = host, port, start, until
        self.clients, self.rate, self.most = given["clients"], given.get("rate"), given.get("most")
        self.patient = given.get("patient", False)
        self.requests = [_wire(one, host, port, given.get("headers", {})) for one in given["requests"]]
        self.expected = [
            np.array(one["expected"], np.float32) if one.get("expected") is not None else None for one in given["requests"]
        ]
        self.sent = 0
        self.answers: list[tuple[float, float, int]] = []
        self.errors: collections.Counter[str] = collections.Counter()
        self.without_retry_after, self.worst, self.late_s = 0, 0.0, 0.0

    async def run(self) -> None:
        await asyncio.gather(*(self._client() for _ in range(self.clients)))

    def found(self) -> dict[str, Any]:
        return {
            "answers": self.answers, "errors": dict(self.errors), "without_retry_after": self.without_retry_after,
            "worst": self.worst, "late_s": self.late_s, "sent": self.sent,
        }  # fmt: skip

    async def _client(self) -> None:
        reader = writer = None
        try:
            while True:
                number = await self._next()
                if number is None:
                    return
                began = time.monotonic()
                try:
                    if writer is None:
                        reader, writer = await asyncio.open_connection(self.host, self.port, limit=1 << 20)
                    writer.write(self.requests[number % len(self.requests)])
                    await writer.drain()
                    status, headers, body = await asyncio.wait_for(_answer(reader), max(0.0, self.until - began) + GRACE_S)
                except Exception as error:
                    self.errors[type(error).__name__] += 1
                    if writer is not None:
                        writer.close()
                    writer = None
                    await asyncio.sleep(0.05)
                    continue
                now = time.monotonic()
                self.answers.append((began - self.start, now - began, status))
                if status == 200:
                    self._check(number, body)
                if headers.get("connection", "").lower() == "close":
                    writer.close()
                    writer = None
                if status in (429, 503):
                    wait = headers.get("retry-after")
                    self.without_retry_after += wait is None
                    if self.patient and wait is not None:
                        await asyncio.sleep(min(float(wait), max(0.0, self.until - now)))
        finally:
            if writer is not None:
                writer.close()

    async def _next(self) -> int | None:
        """The number of the next request, when its time has come; None at the end."""
        number, now = self.sent, time.monotonic()
        if self.most is not None and number >= self.most:
            return None
        due = now if self.rate is None else self.start + number / self.rate
        if max(due, now) >= self.until:
            return None
        self.sent += 1
        if due > now:
            await asyncio.sleep(due - now)
        else:
            self.late_s = max(self.late_s, now - due)
        return number

    def _check(self, number: int, body: bytes) -> None:
        expected = self.expected[number % len(self.requests)]
        if expected is None:
            return
        try:
            rows = json.loads(body)["data"]
            found = np.stack([np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in rows])
            difference = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")
        except (ValueError, KeyError, TypeError):
            difference = float("inf")
        self.worst = max(self.worst, difference)


def _wire(request: dict[str, Any], host: str, port: int, headers: dict[str, str]) -> bytes:
    body = b"" if request.get("body") is None else json.dumps(request["body"]).encode()
    lines = [f"{'POST' if body else 'GET'} {request['path']} HTTP/1.1", f"Host: {host}:{port}"]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def _answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int((await reader.readline()).split(b";")[0], 16):
            body += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return int(head[0].split()[1]), headers, body


async def main(given: dict[str, Any]) -> dict[str, Any]:
    """Run every stream."""
    start = time.monotonic()
    until = start + given["seconds"]
    streams = {one["name"]: Stream(one, given["host"], given["port"], until, start) for one in given["streams"]}
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*(stream.run() for stream in streams.values()))
    return {"seconds": time.monotonic() - start, "streams": {name: stream.found() for name, stream in streams.items()}}


if __name__ == "__main__":
    json.dump(asyncio.run(main(json.load(sys.stdin))), sys.stdout)
