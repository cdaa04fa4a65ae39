"""Logs: one JSON object a line on stderr. Never a body, a key, a query, an address from a request, or a path of this machine.

An unexpected error is logged with its types, files and lines, and those of what caused it. Its message is not, for it may
quote what a client sent (`KeyError: 'my words'`); clients get a sentence that is always the same, and the request's id.

{"time": 1795351501.123, "level": "info", "event": "request", "id": "...", "method": "POST", "route": "/v1/embeddings",
 "status": 200, "seconds": 0.0123, "client": "127.0.0.1", "bytes_in": 310, "bytes_out": 2900}
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

MAX_PLACES = 24
FOLDERS = re.compile(r"(?<![\w./~])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\'\":,;]+[/\\])+")
SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)


class Log:
    """Writes events as JSON lines.

    Args:
        stream: where to; stderr if None, or nothing at all with `quiet`.
    """

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False, clock: Callable[[], float] = time.time):
        self._stream, self._quiet, self._clock = stream, quiet, clock

    def __call__(self, event: str, /, level: str = "info", **facts: Any) -> None:
        """Write one event; a log that cannot be written stops nothing."""
        if self._quiet:
            return
        record = {"time": round(self._clock(), 3), "level": level, "event": event, **facts}
        stream = self._stream or sys.stderr
        try:
            stream.write(json.dumps(record, ensure_ascii=True, default=str) + "\n")
            stream.flush()
        except (OSError, ValueError):
            pass

    def take_over(self) -> None:
        """Write what other libraries log through `logging` in the same form: warnings, and the server's errors."""
        handler = _Handler(self)
        for name, level in (("uvicorn", logging.WARNING), ("ostension", logging.ERROR), ("asyncio", logging.ERROR)):
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = [handler], False
            logger.setLevel(level)


class _Handler(logging.Handler):
    """Turns records of `logging` into events, with the first line of what is said: others show values."""

    def __init__(self, log: Log):
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage().strip().partition("\n")[0]
        facts: dict[str, Any] = {"logger": record.name, "message": without_folders(said)[:1000]}
        if record.exc_info and record.exc_info[1] is not None:
            facts |= {"error": type(record.exc_info[1]).__name__, "trace": trace_of(record.exc_info[1])}
        self._log("log", level=record.levelname.lower(), **facts)


def trace_of(error: BaseException) -> list[str]:
    """Where an error came from, the last place last, and what caused it: types, files and lines; no values and no folders."""
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    found = [*trace_of(cause), f"{type(cause).__name__}, and then"] if cause is not None else []
    frames = traceback.extract_tb(error.__traceback__)
    found += [f"{'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno} {frame.name}" for frame in frames]
    return found[-MAX_PLACES:]


def without_folders(text: str) -> str:
    """A text in which paths of this machine are only their last parts."""
    return FOLDERS.sub("", text)


def request_id(given: bytes | None) -> str:
    """The client's id if it is a sane one, else one of ours."""
    text = (given or b"").decode("latin-1")
    return text if SANE_ID.fullmatch(text) else uuid.uuid4().hex
