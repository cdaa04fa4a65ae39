"""What can go wrong with a request, and the one form in which every failure is answered.

    {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}

Messages are ours: they name what the client sent, never a path of the server or a library's own words.
"""

from __future__ import annotations

import json
import math
from typing import Any

from ostension.errors import DataError, LimitError, OstensionError

# The kinds of OpenAI's interface, which its clients turn into exceptions by status.
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "unavailable_error",
    504: "timeout_error",
}


class Problem(Exception):
    """A request that gets an error as its answer.

    Args:
        status: of HTTP.
        message: one line for people.
        code: one word for programs, stable over versions.
        param: which part of the request it is about.
        retry_after_s: when to try again, where that can help.
    """

    def __init__(self, status: int, message: str, code: str, *, param: str | None = None, retry_after_s: float | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to the answer."""
        found = {}
        if self.retry_after_s is not None:
            found["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.status == 401:
            found["WWW-Authenticate"] = "Bearer"
        return found

    def tree(self) -> dict[str, Any]:
        """The answer's body."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def body(self) -> bytes:
        """The answer's body as it is sent."""
        return json.dumps(self.tree(), ensure_ascii=True).encode()


def of_input(error: OstensionError, param: str | None) -> Problem:
    """The problem with an input that one of our own checks refused; the reason stays, its source (a path perhaps) does not."""
    code = "limit_exceeded" if isinstance(error, LimitError) else "invalid_data" if isinstance(error, DataError) else "invalid"
    parts = [error.what] + ([f"expected {error.expected}"] if error.expected else [])
    return Problem(400, "; ".join(" ".join(part.split()) for part in parts), code, param=param)


def of_overload(retry_after_s: float) -> Problem:
    """429 for a request that there is no room for."""
    return Problem(429, "the queue is full", "queue_full", retry_after_s=retry_after_s)


def unknown(what: str, name: str, known: list[str], param: str) -> Problem:
    """404 for a name that is not one of the known."""
    shown = ", ".join(repr(one) for one in known[:20]) or "none"
    code = f"{what.replace(' ', '_')}_not_found"
    return Problem(404, f"there is no {what} {name[:100]!r}; known: {shown}", code, param=param)
