"""Pillow's warnings, kept inside: what they say is either an error here or no concern of the caller."""

from __future__ import annotations

import threading
import warnings


class _PillowSilence:
    """Ignores warnings of Pillow's modules while at least one thread is inside the `with`.

    Filters belong to the process, and threads that save and restore them each for itself can leave them wrong: the first
    one in sets them, the last one out restores them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._inside += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._saved.__exit__(None, None, None)


pillow_silence = _PillowSilence()
