"""From what a request holds to what a batch takes: pictures decoded within limits, texts tokenised. Runs in threads.

A picture is a data URI, plain base64, or an address where the service allows its host. Which one it is shows in the first
characters, and none of them can be taken for another: base64 has no colon. Strings are never taken for files.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import re
from typing import TYPE_CHECKING, Any

from ostension.errors import DataError, LimitError, OstensionError
from ostension.serve.problems import Problem, of_input
from ostension.serve.settings import Limits

if TYPE_CHECKING:
    import numpy as np

DATA_URI = re.compile(r"data:(?P<type>[A-Za-z0-9.+-]+/[A-Za-z0-9.+-]+)?(?P<parameters>(?:;[^,;]{0,100}){0,5}),", re.ASCII)
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}:", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """How this service reads pictures and texts.

    Args:
        transform: of the model, with the service's limit of pixels.
        tokenizer: of the model.
        fetch: gives the bytes behind an address, or raises; None where addresses are refused.
    """

    transform: Any
    tokenizer: Any
    limits: Limits
    fetch: Any = None

    def picture_bytes(self, text: str, param: str) -> bytes:
        """The file's bytes.

        Raises:
            Problem: for what is no picture by its form, or too long.
        """
        if text.startswith(("http://", "https://")):
            return self._fetched(text, param)
        start = 0
        if text[:5].lower() == "data:":
            start = self._after_header(text, param)
        elif SCHEME.match(text):
            what = "an address of a kind that is not read; expected a data URI or base64"
            raise Problem(400, what, "invalid_image", param=param)
        size = (len(text) - start) * 3 // 4
        if size > self.limits.max_image_bytes + 2:
            what = f"the picture has about {size:,} bytes; expected at most {self.limits.max_image_bytes:,}"
            raise Problem(400, what, "image_too_large", param=param)
        try:
            data = binascii.a2b_base64(text[start:].encode("ascii"), strict_mode=True)
        except (binascii.Error, UnicodeEncodeError):
            raise Problem(400, "the picture is not valid base64", "invalid_base64", param=param) from None
        if not data:
            raise Problem(400, "the picture is empty", "invalid_image", param=param)
        return data

    def picture(self, text: str, param: str) -> np.ndarray:
        """The picture's pixels (3, S, S) as the model takes them before normalisation, in bytes.

        Raises:
            Problem: with the reason.
        """
        data = self.picture_bytes(text, param)
        try:
            return self.transform.pixels(data, name="the picture").numpy()
        except OstensionError as error:
            raise of_input(error, param) from None
        except MemoryError:
            raise Problem(503, "there is not enough memory to decode the picture", "out_of_memory", retry_after_s=5) from None

    def tokens(self, text: str, param: str, *, truncate: bool = False) -> list[int]:
        """The text's token ids with start and end.

        Raises:
            Problem: for a text that is too long, or holds what is no character.
        """
        self.check_text(text, param)
        try:
            return list(self.tokenizer.ragged([text], truncate=truncate)[0])
        except (DataError, LimitError) as error:
            code = "text_too_long" if isinstance(error, LimitError) else "invalid_text"
            raise Problem(400, of_input(error, param).message, code, param=param) from None

    def check_text(self, text: str, param: str) -> None:
        """Refuse a text that is too long, empty, or holds half a character (a lone surrogate).

        Raises:
            Problem: with the reason.
        """
        if len(text) > self.limits.max_text_length:
            what = f"the text has {len(text):,} characters; expected at most {self.limits.max_text_length:,}"
            raise Problem(400, what, "text_too_long", param=param)
        if not text:
            raise Problem(400, "the text is empty", "invalid_text", param=param)
        try:
            text.encode()
        except UnicodeEncodeError:
            what = "the text holds half a surrogate pair, which is no character"
            raise Problem(400, what, "invalid_text", param=param) from None

    def _after_header(self, text: str, param: str) -> int:
        found = DATA_URI.match(text[:600].replace("DATA:", "data:", 1))
        if found is None:
            raise Problem(400, "the data URI has no header that ends in a comma", "invalid_image", param=param)
        kind = (found["type"] or "text/plain").lower()
        if not kind.startswith("image/"):
            raise Problem(400, f"the data URI holds {kind!r}; expected image/...", "invalid_image", param=param)
        if not found["parameters"].lower().endswith(";base64"):
            raise Problem(400, "the data URI is not base64; expected data:image/...;base64,...", "invalid_image", param=param)
        return found.end()

    def _fetched(self, url: str, param: str) -> bytes:
        if self.fetch is None:
            what = "addresses are not fetched by this service; expected a data URI or base64"
            raise Problem(400, what, "url_not_allowed", param=param)
        try:
            return self.fetch(url)
        except OstensionError as error:
            raise Problem(400, of_input(error, param).message, "url_refused", param=param) from None


def as_base64(row: np.ndarray) -> str:
    """A row as OpenAI's clients read it: little-endian float32 in base64."""
    return base64.b64encode(row.astype("<f4", copy=False).tobytes()).decode("ascii")
