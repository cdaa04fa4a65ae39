"""How an addition is trained: passes, batches, the optimiser, the learning rate of every step, the views, what is kept.

Source of the defaults: CoOp's trainer on Dassl (SGD, momentum 0.9, weight decay 5e-4 on the contexts, one warm-up epoch at
1e-5, then a cosine over the epochs that never reaches zero).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from ostension.adapt._examples import CROPS
from ostension.config import require
from ostension.errors import ConfigError
from ostension.image.augment import CropConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How an addition is trained.

    Attributes:
        epochs: passes over the pictures; None is for a method that has a rule for it.
        batch_size: pictures a step; the last batch of an epoch is left out if it is smaller, as long as there is another.
        optimizer: "sgd" or "adamw".
        momentum: of "sgd".
        eps: of "adamw".
        lr: the peak learning rate; None is for a method that has a rule for it.
        weight_decay: on everything that is trained.
        clip_norm: largest norm of all gradients together; None does not clip.
        warmup_epochs, warmup_lr: first epochs at a constant low rate, whatever the schedule.
        schedule: "cosine": lr (1 + cos(pi (e - w) / T)) / 2 in epoch e of T with w of warm-up; "cosine_by_step": the same with
            steps for epochs, w = `warmup_steps` of them rising evenly to lr, down to zero at the last; or "constant".
        warmup_steps: of "cosine_by_step"; a quarter of all steps at most.
        rates: factors of the learning rate by the beginning of a parameter's name; the longest beginning counts.
        views: random crops of each picture that features are computed for, and for a method that looks at pictures whether
            they are cropped anew in every epoch; 0 takes the model's own preprocessing.
        crop: what is drawn in a crop.
        select: "last" takes what the last epoch ends in, "best" the epoch (or the beginning) with the best score on validation
            pictures, the first of equal ones.
    """

    epochs: int | None = 50
    batch_size: int = 32
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    eps: float = 1e-8
    lr: float | None = 0.002
    weight_decay: float = 5e-4
    clip_norm: float | None = None
    warmup_epochs: int = 1
    warmup_lr: float = 1e-5
    schedule: Literal["cosine", "cosine_by_step", "constant"] = "cosine"
    warmup_steps: int = 0
    rates: dict[str, float] = dataclasses.field(default_factory=dict)
    views: int = 8
    crop: CropConfig = CROPS
    select: Literal["last", "best"] = "last"

    def __post_init__(self):
        require(self.epochs is None or self.epochs >= 0, "recipe.epochs", self.epochs, "0 or more, or nothing")
        require(self.batch_size >= 1, "recipe.batch_size", self.batch_size, "1 or more")
        require(self.lr is None or self.lr > 0, "recipe.lr", self.lr, "more than 0")
        require(0 <= self.momentum < 1, "recipe.momentum", self.momentum, "0 up to, not including, 1")
        require(self.weight_decay >= 0, "recipe.weight_decay", self.weight_decay, "0 or more")
        require(self.eps > 0, "recipe.eps", self.eps, "more than 0")
        require(self.clip_norm is None or self.clip_norm > 0, "recipe.clip_norm", self.clip_norm, "more than 0, or nothing")
        require(self.warmup_epochs >= 0, "recipe.warmup_epochs", self.warmup_epochs, "0 or more")
        require(self.warmup_steps >= 0, "recipe.warmup_steps", self.warmup_steps, "0 or more")
        if self.warmup_steps and self.schedule != "cosine_by_step":
            raise ConfigError("recipe.warmup_steps has no effect with this schedule", expected="schedule cosine_by_step, or 0")
        for prefix, factor in self.rates.items():
            require(factor > 0, f"recipe.rates[{prefix!r}]", factor, "more than 0")
        require(self.views >= 0, "recipe.views", self.views, "0 or more")

    def factor(self, name: str) -> float:
        """What the learning rate of a parameter is multiplied by."""
        prefixes = [prefix for prefix in self.rates if name.startswith(prefix)]
        return self.rates[max(prefixes, key=len)] if prefixes else 1.0

    def rate(self, epoch: int, step: int = 0, steps: int = 1) -> float:
        """The learning rate in step `step` of the `steps` of an epoch, all counted from 0.

        The cosine by epochs runs over all epochs and not over those after the warm-up, so the last of 10 is at 9.5 % of the
        peak (CoOp). The one by steps runs over the steps after the warm-up (WiSE-FT, CLIP).
        """
        if epoch < self.warmup_epochs:
            return self.warmup_lr
        if self.lr is None:
            raise ConfigError("recipe.lr is not given, and the method has no rule for it", expected="a number")
        if self.schedule == "constant" or self.epochs is None:
            return self.lr
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * (epoch - self.warmup_epochs) / self.epochs))
        whole, done = (self.epochs - self.warmup_epochs) * steps, (epoch - self.warmup_epochs) * steps + step
        warmup = min(self.warmup_steps, whole // 4)
        if done < warmup:
            return self.lr * (done + 1) / warmup
        return self.lr * 0.5 * (1 + math.cos(math.pi * (done - warmup) / (whole - warmup)))
