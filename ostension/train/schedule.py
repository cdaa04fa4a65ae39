"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from ostension.config import require


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate moves.

    Attributes:
        kind: "cosine" to `final_fraction` at the end; "constant"; "constant-cooldown" holds and falls at the end.
        warmup_steps: steps of linear rise; None takes the smaller of 2,000 (the paper's) and a tenth of the run.
        cooldown_steps: length of the fall; only with "constant-cooldown".
        cooldown_power: 1 falls in a straight line, more falls sooner; only with "constant-cooldown".
        final_fraction: what is left of the peak at the end; not with "constant".
    """

    kind: Literal["cosine", "constant", "constant-cooldown"] = "cosine"
    warmup_steps: int | None = None
    cooldown_steps: int = 0
    cooldown_power: float = 1.0
    final_fraction: float = 0.0

    def __post_init__(self):
        require(self.warmup_steps is None or self.warmup_steps >= 0, "schedule.warmup_steps", self.warmup_steps, "0 or more")
        require(0 <= self.final_fraction <= 1, "schedule.final_fraction", self.final_fraction, "0 to 1")
        if self.kind == "constant":
            require(self.final_fraction == 0, "schedule.final_fraction", self.final_fraction, "0 with 'constant'")
        if self.kind == "constant-cooldown":
            require(self.cooldown_steps >= 1, "schedule.cooldown_steps", self.cooldown_steps, "1 or more")
            require(self.cooldown_power > 0, "schedule.cooldown_power", self.cooldown_power, "more than 0")
        else:
            require(self.cooldown_steps == 0, "schedule.cooldown_steps", self.cooldown_steps, f"0 with {self.kind!r}")
            require(self.cooldown_power == 1, "schedule.cooldown_power", self.cooldown_power, f"1 with {self.kind!r}")

    def resolved(self, steps: int) -> ScheduleConfig:
        """The schedule with its warm-up as a number, checked against the length of the run."""
        warmup = min(2000, steps // 10) if self.warmup_steps is None else self.warmup_steps
        require(warmup + self.cooldown_steps <= steps, "schedule.warmup_steps", warmup, f"at most the run's {steps} steps")
        return dataclasses.replace(self, warmup_steps=warmup)


def rate_factor(config: ScheduleConfig, step: int, steps: int) -> float:
    """What the peak learning rate is multiplied by at `step` of `steps` (0 is the first step).

    Warm-up over W steps is (s + 1) / W; the cosine after it f + (1 - f) (1 + cos(pi (s - W) / (T - W))) / 2 for the final
    fraction f; the cool-down over its last D steps f + (1 - f) (1 - (s - (T - D)) / D)^power.
    """
    warmup = config.warmup_steps
    assert warmup is not None, "resolve the schedule first"
    if step < warmup:
        return (step + 1) / warmup
    floor = config.final_fraction
    if config.kind == "cosine":
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
    start = steps - config.cooldown_steps
    if config.kind == "constant-cooldown" and step >= start:
        return floor + (1 - floor) * (1 - (step - start) / config.cooldown_steps) ** config.cooldown_power
    return 1.0
