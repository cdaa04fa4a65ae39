"""A polite stop: the first SIGTERM or Ctrl-C ends the run after the step, the second ends the process at once.

Ctrl-C under `torchrun` reaches a process twice within moments, from the terminal and from `torchrun` itself. So of several
processes a second signal counts only after a second.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType


class StopSignals:
    """While entered, notes the first SIGTERM or SIGINT in `received` and leaves at the second.

    Outside the main thread, where Python does not allow handlers, nothing is noted.

    Attributes:
        received: the signal's number, or None.

    Args:
        patience_s: how soon after the first a signal still counts as the same one.
    """

    def __init__(self, patience_s: float = 0.0) -> None:
        self.received: int | None = None
        self._patience_s, self._first_at = patience_s, 0.0
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if time.monotonic() - self._first_at < self._patience_s:
                return
            # Not sys.exit: whatever is being written is left as a kill would leave it, which every reader can stand.
            os._exit(128 + number)
        self.received, self._first_at = number, time.monotonic()
        name = signal.Signals(number).name
        print(f"ostension: {name}: saving after this step; once more to stop at once", file=sys.stderr, flush=True)
