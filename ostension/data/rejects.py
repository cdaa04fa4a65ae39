"""Samples that could not be used: counted by reason, written down, and an end to it when they are too many."""

from __future__ import annotations

import json
import re
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ostension.errors import DataError

WINDOW = 10_000
LIMIT = 0.01  # a cluster of bad samples is an incident, not noise
_VALUES = re.compile(r"'[^']*'|\"[^\"]*\"|\d[\d,.]*")


def without_values(reason: str) -> str:
    """A reason to count by: numbers and quoted names are left out."""
    return _VALUES.sub("…", reason)


class Rejects:
    """Counts rejected samples, appends them to a JSON lines file, and stops past a limit.

    Args:
        path: file to append to, one object a line with step, key and reason; None keeps counts only.
        limit: largest share of the last `window` samples that may be rejected.

    Attributes:
        counts: rejected samples by reason, with the values in a reason (numbers, quoted names) left out.
    """

    def __init__(self, path: Path | None = None, *, limit: float = LIMIT, window: int = WINDOW):
        self.path, self.limit, self.window = path, limit, window
        self.counts: Counter[str] = Counter()
        self._recent: deque[tuple[int, int]] = deque()  # samples seen before the batch, rejects in it
        self._seen = 0

    def state(self) -> dict[str, Any]:
        """All that it carries, as JSON."""
        return {"counts": dict(self.counts), "seen": self._seen, "recent": [list(entry) for entry in self._recent]}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`: the window of a resumed run is that of one that was not stopped."""
        self.counts = Counter(state["counts"])
        self._seen, self._recent = state["seen"], deque((seen, count) for seen, count in state["recent"])

    def add(self, step: int, num_samples: int, rejects: Sequence[tuple[str, str]]) -> None:
        """Take in the rejects (key, reason) of one batch of `num_samples`.

        Raises:
            DataError: if more than the limit of the last `window` samples were rejected.
        """
        self._seen += num_samples
        if not rejects:
            return
        self.counts.update(without_values(reason) for _, reason in rejects)
        if self.path is not None:
            with open(self.path, "a", encoding="utf-8") as handle:
                for key, reason in rejects:
                    handle.write(json.dumps({"step": step, "key": key, "reason": reason}, ensure_ascii=False) + "\n")
        self._recent.append((self._seen, len(rejects)))
        while self._recent[0][0] <= self._seen - self.window:
            self._recent.popleft()
        count = sum(rejected for _, rejected in self._recent)
        if count > self.limit * self.window:
            key, reason = rejects[-1]
            raise DataError(
                f"{count} of the last {min(self._seen, self.window)} samples could not be used, the last {key} ({reason})",
                source=self.path,
                expected=f"at most {self.limit:.0%} of {self.window}",
                fix="see: ostension data inspect",
            )
