"""Reading a request's body: within a number of bytes and a time, and within what all requests may hold together.

A body that is too long is refused by its Content-Length before anything is read, and otherwise as soon as it passes the limit.
Nothing is written to a disk. A refused body is still read for a moment and thrown away, for a client that is sending does
not look for the answer, and closing at once would take the answer with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from ostension.serve.problems import Problem
from ostension.serve.settings import Limits

Receive = Callable[[], Awaitable[Any]]
Look = Callable[[bytes, bool], None]
LINGER_S = 2.0
LINGER_BYTES = 64_000_000


class ClientGone(Exception):
    """The client closed the connection."""


class Room:
    """Bytes that all bodies share."""

    def __init__(self, most: int):
        self.most, self.used = most, 0

    def take(self, count: int) -> None:
        """Use more of it.

        Raises:
            Problem: 503 if it is used up.
        """
        if self.used + count > self.most:
            raise Problem(503, "too many large requests are being read", "too_many_bytes", retry_after_s=1)
        self.used += count

    def give(self, count: int) -> None:
        """Give back."""
        self.used -= count


async def read_body(
    receive: Receive, headers: Iterable[tuple[bytes, bytes]], limits: Limits, room: Room, look: Look | None = None
) -> bytes:
    """The whole body; what it takes of `room` is the caller's to give back, which is its length.

    Args:
        look: is shown the first part, and whether it is all; raises where the rest need not be read.

    Raises:
        Problem: 413 for too many bytes, 408 for too much time, 400 for a length that is no number, 503 without room, and
            what `look` raises.
        ClientGone: if the client went away.
    """
    declared = [value for name, value in headers if name == b"content-length"]
    for value in declared:
        if not value.isdigit():
            raise Problem(400, "Content-Length is not a number", "invalid_length")
        if int(value[:20]) > limits.max_body_bytes:
            raise _too_long(limits)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                part = message.get("body", b"")
                if part:
                    if size + len(part) > limits.max_body_bytes:
                        raise _too_long(limits)
                    room.take(len(part))
                    size += len(part)
                    parts.append(part)
                    if look is not None and len(parts) == 1:
                        look(part, not message.get("more_body", False))
                if not message.get("more_body", False):
                    return parts[0] if len(parts) == 1 else b"".join(parts)
    except TimeoutError:
        room.give(size)
        what = f"the body was not there after {limits.body_seconds:g} s"
        raise Problem(408, what, "body_timeout") from None
    except BaseException:
        room.give(size)
        raise


async def linger(receive: Receive) -> None:
    """Read what still comes of a refused body, for a moment, and throw it away."""
    count = 0
    try:
        async with asyncio.timeout(LINGER_S):
            while count < LINGER_BYTES:
                message = await receive()
                count += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return


def _too_long(limits: Limits) -> Problem:
    return Problem(413, f"the body is too long; expected at most {limits.max_body_bytes:,} bytes", "body_too_large")
