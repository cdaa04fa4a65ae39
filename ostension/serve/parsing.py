"""JSON of request bodies: large ones in a thread and within a number of values, so that nobody else waits for them.

Small bodies are parsed where they are, in less than a millisecond. json's fast scanner holds the interpreter's lock until it is
done, in whatever thread it runs; its plain one, used here for large bodies, lets others in between. A body of 64 megabytes
may hold 30 million numbers, which would take minutes to check one by one: no request of this interface needs more than
`MAX_VALUES`, and those that have them are refused at the first one past it.
"""

from __future__ import annotations

import asyncio
import json
import json.scanner
from collections.abc import Callable
from typing import Any

from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

LARGE = 32_768  # bytes
MAX_VALUES = 100_000


class TooManyValues(Exception):
    """A body with more than `MAX_VALUES` values."""


class BoundedDecoder(json.JSONDecoder):
    """json's, in Python, which gives up at the first value past `most`."""

    def __init__(self, most: int = MAX_VALUES):
        super().__init__()
        self._left = most
        plain: Any = self
        of_array, of_object = plain.parse_array, plain.parse_object
        plain.parse_array = lambda place, scan: of_array(place, self._counted(scan))
        plain.parse_object = lambda place, strict, scan, *hooks: of_object(place, strict, self._counted(scan), *hooks)
        plain.scan_once = vars(json.scanner)["py_make_scanner"](self)

    def _counted(self, scan: Callable[[str, int], Any]) -> Callable[[str, int], Any]:
        def one(text: str, index: int) -> Any:
            self._left -= 1
            if self._left < 0:
                raise TooManyValues
            return scan(text, index)

        return one


def parse(body: bytes) -> Any:
    """The tree of a body.

    Raises:
        TooManyValues: past `MAX_VALUES`.
        ValueError, RecursionError: for what is no JSON.
    """
    if len(body) <= LARGE:
        return json.loads(body)
    return BoundedDecoder().decode(body.decode(json.detect_encoding(body), "surrogatepass"))


class Route(APIRoute):
    """FastAPI's, whose requests parse their body as above."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        plain = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await plain(_Request(request.scope, request.receive))

        return handle


class _Request(Request):
    async def json(self) -> Any:
        body = await self.body()
        try:
            return parse(body) if len(body) <= LARGE else await asyncio.to_thread(parse, body)
        except TooManyValues:
            raise HTTPException(400, f"the body holds more than {MAX_VALUES:,} values") from None
