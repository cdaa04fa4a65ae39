"""What the log says of an interval of steps: means of the measurements, speed, idle share, time left."""

from __future__ import annotations

import time
from collections import defaultdict

import torch

from ostension import runtime


class Meter:
    """Collects the steps since the last report."""

    def __init__(self, batch_size: int, num_samples: int, steps: int):
        self.batch_size, self.num_samples, self.steps = batch_size, num_samples, steps
        self._seconds_per_step: float | None = None
        self._reset()

    @property
    def empty(self) -> bool:
        """Whether no step was added since the last report."""
        return self._count == 0

    def add(self, waited_s: float, values: dict[str, float]) -> None:
        """One step: seconds spent waiting for its batch, and its measurements."""
        self._count += 1
        self._waited += waited_s
        for name, value in values.items():
            self._sums[name] += value

    def report(self, step: int) -> dict[str, float | int]:
        """The interval that ends after `step` steps, in the units that the names give; then starts the next one.

        `idle_share` is the part of the time in which the towers waited for data. The time left follows the recent steps,
        older ones weighing half as much with each report.
        """
        count = max(1, self._count)
        elapsed = time.perf_counter() - self._started
        recent = elapsed / count
        self._seconds_per_step = recent if self._seconds_per_step is None else (self._seconds_per_step + recent) / 2
        samples = step * self.batch_size
        report: dict[str, float | int] = {
            **{name: total / count for name, total in self._sums.items()},
            "samples_seen": samples,
            "epoch": round(samples / self.num_samples, 4),
            "step_s": recent,
            "data_s": self._waited / count,
            "idle_share": min(1.0, self._waited / elapsed) if elapsed > 0 else 0.0,
            "pairs_per_s": self._count * self.batch_size / elapsed if elapsed > 0 else 0.0,
            "eta_s": self._seconds_per_step * (self.steps - step),
            "peak_memory_mb": peak_memory_mb(),
        }
        self._reset()
        return report

    def _reset(self) -> None:
        self._count, self._waited = 0, 0.0
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._started = time.perf_counter()


def peak_memory_mb() -> int:
    """The largest memory so far: of the GPU where one is used, else of the process."""
    used = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return round((used or runtime.peak_memory_bytes()) / 1e6)
