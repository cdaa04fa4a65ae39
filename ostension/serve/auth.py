"""Keys: who may use the service. Kept as digests, compared in constant time, never logged.

A request gives its key as `Authorization: Bearer KEY`, once. A digest is compared with every known one whatever the outcome,
so that neither the time nor the order of the keys says anything about them.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence

from ostension.serve.problems import Problem

# What everybody may ask: whether it works, and the page and documents that hold nothing of the model's or the store's.
OPEN = ("/", "/health/live", "/health/ready", "/docs", "/openapi.json")
OPEN_PREFIXES = ("/page/",)


class Keys:
    """The keys of a service; without any, everybody may use it.

    Args:
        keys: in plain text.
        open_metrics: whether `/metrics` needs none.
    """

    def __init__(self, keys: Sequence[str], *, open_metrics: bool = False):
        self._digests = [_digest(key.encode()) for key in keys]
        self._open = (*OPEN, "/metrics") if open_metrics else OPEN

    def check(self, path: str, headers: Iterable[tuple[bytes, bytes]]) -> int | None:
        """The number of the request's key, or None where none is needed.

        Raises:
            Problem: 401.
        """
        if not self._digests or path in self._open or path.startswith(OPEN_PREFIXES):
            return None
        given = [value for name, value in headers if name == b"authorization"]
        if len(given) != 1:
            what = "no key is given" if not given else "more than one Authorization header is given"
            raise Problem(401, f"{what}; expected Authorization: Bearer KEY", "missing_key" if not given else "invalid_key")
        scheme, _, key = given[0].partition(b" ")
        digest = _digest(key)
        same = [hmac.compare_digest(digest, known) for known in self._digests]
        if scheme.lower() != b"bearer" or not any(same):
            raise Problem(401, "the key is not one of this service's", "invalid_key")
        return same.index(True)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
