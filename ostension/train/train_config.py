"""Everything about a run that is neither the model nor the data nor what is minimised, and what of it may change on the way."""

from __future__ import annotations

import dataclasses
from typing import Literal

from ostension import runtime
from ostension.config import require
from ostension.errors import ConfigError
from ostension.train.checkpoint import CheckpointConfig
from ostension.train.health import allowed_skips
from ostension.train.optim import OptimConfig
from ostension.train.parallel import Parallel
from ostension.train.patch_dropout import PatchDropoutConfig
from ostension.train.schedule import ScheduleConfig
from ostension.world import TIMEOUT_S

Towers = Literal["none", "image", "text", "both"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything about a run that is neither the model nor the data nor what is minimised.

    Attributes:
        steps: optimiser steps of the whole run; or
        epochs: passes over the data, from which the steps follow.
        seed: of everything random in a step (the batches have their own).
        micro_batch: pairs that a process embeds at a time, for batches whose activations do not fit (see `train.step`); None
            embeds all at once.
        checkpointing: towers whose blocks are computed again on the way back instead of kept: less memory, one more forward.
        precision: of the weights; "auto" is bf16 where the device has units for it. Masters are float32 in any case.
        stochastic_rounding: towers whose matrices have no masters: they are bf16, and every update is rounded at random (see
            `train.rounding`).
        patch_dropout: share of the patches that is left out of every picture, and for how long (FLIP).
        average: decay of a running average of the weights, which then is what the run gives; None takes the last weights.
        non_finite: "stop" at the first loss or gradient that is not finite, or "skip:N" such steps in any 100.
        workers: processes or threads that make batches ahead; 0 makes them in between the steps.
        log_every, evaluate_every: steps between two records, two calls of the evaluation (0: none).
        evaluate_at: steps at which the evaluation is called besides, such as 10, 100, 1000.
        best: the measurement of the evaluation whose best checkpoint is kept: the highest, or the lowest of a loss
            (`LOWER_IS_BETTER`).
        device: "auto", "cpu", "cuda", "cuda:N"; several processes on one machine take a GPU each.
        parallel: what several processes share: "ddp" the work, "fsdp" the weights and the optimiser's state as well.
        timeout_s: how long a process waits for the others before it gives up.
    """

    steps: int | None = None
    epochs: float | None = None
    seed: int = 0
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    micro_batch: int | None = None
    checkpointing: Towers = "none"
    precision: Literal["auto", "bf16", "fp32", "fp64"] = "auto"
    stochastic_rounding: Towers = "none"
    patch_dropout: PatchDropoutConfig = dataclasses.field(default_factory=PatchDropoutConfig)
    average: float | None = None
    non_finite: str = "stop"
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    workers: int = 0
    log_every: int = 10
    evaluate_every: int = 0
    evaluate_at: tuple[int, ...] = ()
    best: str | None = None
    device: str = "auto"
    parallel: Parallel = "ddp"
    timeout_s: float = TIMEOUT_S

    def __post_init__(self):
        if (self.steps is None) == (self.epochs is None):
            raise ConfigError(f"train.steps is {self.steps} and train.epochs is {self.epochs}", expected="one of the two")
        require(self.steps is None or self.steps >= 1, "train.steps", self.steps, "1 or more")
        require(self.epochs is None or self.epochs > 0, "train.epochs", self.epochs, "more than 0")
        require(self.micro_batch is None or self.micro_batch >= 1, "train.micro_batch", self.micro_batch, "1 or more")
        require(self.average is None or 0 < self.average < 1, "train.average", self.average, "between 0 and 1, or nothing")
        require(self.workers >= 0, "train.workers", self.workers, "0 or more")
        require(self.log_every >= 1, "train.log_every", self.log_every, "1 or more")
        require(self.evaluate_every >= 0, "train.evaluate_every", self.evaluate_every, "0 or more")
        require(all(step >= 1 for step in self.evaluate_at), "train.evaluate_at", self.evaluate_at, "steps from 1")
        require(self.best is None or self.evaluates, "train.best", self.best, "nothing without train.evaluate_every")
        require(self.timeout_s > 0, "train.timeout_s", self.timeout_s, "more than 0")
        allowed_skips(self.non_finite)
        if self.stochastic_rounding != "none":
            what = f"train.stochastic_rounding is {self.stochastic_rounding!r}, but train.precision is {self.precision!r}"
            if self.precision not in ("auto", "bf16"):
                raise ConfigError(what, expected="precision 'bf16', which is what is rounded to, or 'auto'")

    @property
    def evaluates(self) -> bool:
        """Whether the run is evaluated on the way."""
        return bool(self.evaluate_every or self.evaluate_at)

    def evaluates_after(self, step: int) -> bool:
        """Whether it is after so many steps."""
        return step in self.evaluate_at or (self.evaluate_every > 0 and step % self.evaluate_every == 0)

    def resolved(self, steps_per_epoch: float) -> TrainConfig:
        """The configuration with everything automatic decided for this machine and this amount of data."""
        device = runtime.pick_device(self.device)
        precision = self.precision
        if precision == "auto":
            wanted = self.stochastic_rounding != "none" or runtime.has_bfloat16_units(device)
            precision = "bf16" if wanted else "fp32"
        steps = self.steps if self.epochs is None else max(1, round(self.epochs * steps_per_epoch))
        assert steps is not None
        return dataclasses.replace(
            self, steps=steps, epochs=None, device=str(device), precision=precision, schedule=self.schedule.resolved(steps)
        )


# What may change from one sitting to the next, because the result of the run does not depend on it.
FREE = ("checkpoint", "workers", "log_every", "evaluate_every", "evaluate_at", "best", "device", "parallel", "timeout_s")
