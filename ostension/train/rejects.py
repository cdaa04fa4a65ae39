"""Pairs that could not be used: each one written down, and the run stopped when they come in a crowd."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from ostension.errors import DataError
from ostension.train.batches import Batch

NAME = "rejects.jsonl"
WINDOW, LIMIT = 10_000, 100  # more than 1 % of the last 10,000 pairs is an incident, not noise


class Rejects:
    """Counts what the batches had to replace and writes it to `rejects.jsonl`.

    Attributes:
        reasons: how often each reason came up in the run.
    """

    def __init__(self, folder: Path):
        self.path = folder / NAME
        self.reasons: Counter[str] = Counter()
        self._recent: list[tuple[int, int]] = []  # sample number of the batch, rejects in it

    def add(self, step: int, batch: Batch) -> None:
        """Take in the rejects of one batch.

        Raises:
            DataError: if they are too many for the recent samples.
        """
        if not batch.rejects:
            return
        position = step * len(batch)
        self.reasons.update(reason for _, reason in batch.rejects)
        self._recent = [old for old in self._recent if old[0] > position - WINDOW] + [(position, len(batch.rejects))]
        lines = (json.dumps({"step": step, "key": key, "reason": reason}, ensure_ascii=False) for key, reason in batch.rejects)
        try:
            with open(self.path, "a", encoding="utf-8") as handle:
                handle.write("".join(line + "\n" for line in lines))
        except OSError as problem:
            print(f"ostension: warning: {NAME} cannot be written ({problem.strerror})", file=sys.stderr)
        count = sum(rejected for _, rejected in self._recent)
        if count > LIMIT:
            key, reason = batch.rejects[-1]
            raise DataError(
                f"{count} of the last {WINDOW:,} pairs could not be used, the last {key} ({reason})",
                source=self.path.parent,
                expected=f"at most {LIMIT}",
                fix=f"see {NAME}",
            )

    def state(self) -> dict[str, Any]:
        """What a resumed run has to know, as JSON."""
        return {"reasons": dict(self.reasons), "recent": [list(entry) for entry in self._recent]}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.reasons = Counter(state["reasons"])
        self._recent = [(position, count) for position, count in state["recent"]]
