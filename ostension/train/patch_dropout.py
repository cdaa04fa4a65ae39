"""Patch dropout over a run (FLIP, Li et al. 2023): a share of the patches is left out of every picture, but not at the end.

Fewer patches make a step cheaper, so that more pairs are seen in the same time; a last phase with all of them closes the
gap to what the model is used with. The tower does the leaving out (`model.vit`), from the step's random state.
"""

from __future__ import annotations

import dataclasses

from ostension.config import require
from ostension.errors import ConfigError
from ostension.model.clip import CLIP
from ostension.model.vit import VisionTransformer


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchDropoutConfig:
    """How many patches are left out, and until when.

    Attributes:
        share: p; int(P (1 - p)) of P patches are kept. 0 switches it off.
        unmasked_steps: at the end of the run, in which all patches are kept.
    """

    share: float = 0.0
    unmasked_steps: int = 0

    def __post_init__(self):
        require(0 <= self.share < 1, "train.patch_dropout.share", self.share, "from 0 up to, not including, 1")
        require(self.unmasked_steps >= 0, "train.patch_dropout.unmasked_steps", self.unmasked_steps, "0 or more")
        if self.unmasked_steps and not self.share:
            raise ConfigError("train.patch_dropout.unmasked_steps has no effect without a share")

    def check(self, model: CLIP, steps: int) -> None:
        """Raise a `ConfigError` if the setting has no effect on this model in so many steps."""
        if not self.share:
            return
        if not isinstance(model.visual, VisionTransformer):
            raise ConfigError("train.patch_dropout leaves out patches", expected="one of our vision transformers")
        if model.frozen.image:
            raise ConfigError("train.patch_dropout has no effect on a locked image tower")
        require(self.unmasked_steps < steps, "train.patch_dropout.unmasked_steps", self.unmasked_steps, f"less than {steps}")

    def set(self, model: CLIP, step: int, steps: int) -> None:
        """The tower's share at a step, counted from 0."""
        if isinstance(model.visual, VisionTransformer):
            model.visual.patch_dropout = self.share if step < steps - self.unmasked_steps else 0.0
