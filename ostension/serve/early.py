"""Refusing before reading: what a request surely needs shows in its route and the first part of its body, and where there is
no room for that, neither the rest is read nor any of it parsed.

Only what is certain is refused here. A request of many items may wait longer than one of a single one, so room is looked for
at both ends; texts may be kept ones, which need no room; and where the first part does not say what the request holds, it is
read and parsed like any other.
"""

from __future__ import annotations

import re

from ostension.serve.batcher import Overloaded
from ostension.serve.compute import TEXT
from ostension.serve.problems import Problem, of_overload
from ostension.serve.service import Service

# Inside a string of JSON these would have a backslash before each quote.
PICTURE = re.compile(rb'"(?:image"\s*:|modality"\s*:\s*"image")')
WITH_PICTURES = ("/v1/classify", "/v1/similarity")
EMBEDDINGS = "/v1/embeddings"


class Early:
    """Looks at the beginning of requests.

    Args:
        service: whose queue it is.
    """

    def __init__(self, service: Service):
        self.service = service

    def __call__(self, path: str, part: bytes, *, whole: bool) -> Problem | None:
        """What a request is refused with, or None.

        Args:
            part: of the body, its beginning; all of it if `whole`.
        """
        batcher, limits = self.service.batcher, self.service.limits
        full: Overloaded | None = None
        if path in WITH_PICTURES or (path == EMBEDDINGS and PICTURE.search(part)):
            full = batcher.full([lane for lane in batcher.lanes if lane != TEXT], limits.max_batch_items)
        elif path == EMBEDDINGS and whole and b"\\u" not in part and not len(self.service.cache):
            full = batcher.full([TEXT], len(part))  # a token is a byte at least
        return None if full is None else of_overload(full.retry_after_s)
