"""A polite stop: the first SIGTERM or Ctrl-C ends the run after the step, the second ends the process at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType


class StopSignals:
    """While entered, notes the first SIGTERM or SIGINT in `received` and leaves at the second.

    Outside the main thread, where Python does not allow handlers, nothing is noted.

    Attributes:
        received: the signal's number, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
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
            # Not sys.exit: whatever is being written is left as a kill would leave it, which every reader can stand.
            os._exit(128 + number)
        self.received = number
        name = signal.Signals(number).name
        print(f"ostension: {name}: saving after this step; once more to stop at once", file=sys.stderr, flush=True)
