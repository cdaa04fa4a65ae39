"""What of a model is not trained: whole towers, all but their last parts, or weights by the beginning of their names.

LiT (Zhai et al. 2022) names a run by two letters, the image tower's first: L a pre-trained tower that is locked, U one
that is trained on, u one of random weights. Lu is LiT. A letter is a `TowerLock` here and, for L and U, a source of weights
in `TowersConfig`; `lit_settings` makes both from the letters.

A frozen weight gets no gradient, no moments and no second copy for the optimiser, and leaves a run with the bits that it
entered with. What is frozen computes in evaluation mode: no dropout, no patch dropout, batch norm by its stored statistics.
A tower that is frozen up to its projection also runs without recording a graph, as for inference.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ostension.config import require
from ostension.errors import ConfigError, unknown_name
from ostension.formats.towers import HEADS
from ostension.model.clip import CLIP, Frozen
from ostension.train.towers import TowersConfig

_NORMS = (nn.LayerNorm, nn.GroupNorm, _BatchNorm)
# What is trained even where both towers stand still; alone it would be no training.
_TEMPERATURE = ("logit_scale", "logit_bias")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerLock:
    """Whether and how far one tower is frozen.

    Attributes:
        locked: freeze it.
        unlocked_groups: its last parts that are trained nevertheless, counted from the embedding: the projection where there
            is one, the last block with the LayerNorm after it, the block before, ... (open_clip's
            lock-image-unlocked-groups; `groups()` of a tower lists them).
        norms: gains and biases of LayerNorm and batch norm in frozen parts; open_clip trains those of a locked text tower
            unless it is told otherwise.
        statistics: running statistics of batch norm in frozen parts; "moving" adapts them to the data.
    """

    locked: bool = False
    unlocked_groups: int = 0
    norms: Literal["locked", "trained"] = "locked"
    statistics: Literal["locked", "moving"] = "locked"

    def __post_init__(self):
        require(self.unlocked_groups >= 0, "freeze.unlocked_groups", self.unlocked_groups, "0 or more")
        if not self.locked and (self.unlocked_groups or self.norms != "locked" or self.statistics != "locked"):
            raise ConfigError("a tower that is not locked has settings of a lock", expected="locked = true with them")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FreezeConfig:
    """What is frozen.

    Attributes:
        image, text: the towers.
        names: for every weight whose name begins with the key, whether it is trained; the longest key wins, and wins over the
            towers' locks. For example {"logit_scale": false}.
    """

    image: TowerLock = dataclasses.field(default_factory=TowerLock)
    text: TowerLock = dataclasses.field(default_factory=TowerLock)
    names: dict[str, bool] = dataclasses.field(default_factory=dict)

    def apply(self, model: CLIP) -> None:
        """Freeze that much of `model`, and nothing else.

        Raises:
            ConfigError: for more groups than the tower has, a name that no weight begins with, a setting that has no effect
                on this model, or if nothing were trained.
        """
        rules = {"": True} | _rules(model.visual, self.image, "visual.") | _rules(model.text, self.text, "text.")
        for prefix in self.names:
            if not any(name.startswith(prefix) for name, _ in model.named_parameters()):
                raise unknown_name("beginning of a weight's name", prefix, (name for name, _ in model.named_parameters()))
        for name, weight in model.named_parameters():
            table = self.names if name.startswith(tuple(self.names)) else rules
            weight.requires_grad_(table[max((prefix for prefix in table if name.startswith(prefix)), key=len)])
        if not any(weight.requires_grad for name, weight in model.named_parameters() if name not in _TEMPERATURE):
            raise ConfigError(
                "nothing would be trained: both towers are locked and neither has a new projection",
                fix="unlock a tower, or its last group (freeze.image.unlocked_groups=1)",
            )
        model.frozen = Frozen(
            modules=(*_still(model.visual, self.image, "visual"), *_still(model.text, self.text, "text")),
            image=self.image.statistics == "locked" and _trunk_frozen(model.visual),
            text=self.text.statistics == "locked" and _trunk_frozen(model.text),
        )
        model.train(model.training)


def frozen_names(model: nn.Module) -> list[str]:
    """Which weights are frozen, as a short list of names: `visual.` stands for all of that tower."""
    frozen = [name for name, weight in model.named_parameters() if not weight.requires_grad]
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    found: dict[str, None] = {}
    for name in frozen:
        parts = name.split(".")
        beginnings = (".".join(parts[:depth]) + "." for depth in range(1, len(parts)))
        found[next((start for start in beginnings if not any(other.startswith(start) for other in trained)), name)] = None
    return list(found)


def lit_settings(
    letters: str, *, image: str | None = None, text: str | None = None, new_image_head: bool = False, new_text_head: bool = True
) -> tuple[TowersConfig, FreezeConfig]:
    """Sources and locks for LiT's two letters, such as "Lu".

    Args:
        image, text: where the weights of an L or U tower come from.
        new_image_head, new_text_head: whether the tower got a projection that its weights do not have; it is trained then.

    Raises:
        ConfigError: for other letters, or sources that do not go with them.
    """
    if len(letters) != 2 or any(letter not in "LUu" for letter in letters):
        raise ConfigError(f"{letters!r} are no letters of LiT", expected="two of L (locked), U (pre-trained) and u (random)")
    for side, letter, source in (("image", letters[0], image), ("text", letters[1], text)):
        if (letter == "u") != (source is None):
            state = "weights to start from" if source is not None else "no weights to start from"
            raise ConfigError(f"the {side} tower's letter is {letter!r}, with {state}", expected="L or U with, u without")
    image_lock, text_lock = (
        TowerLock(locked=True, unlocked_groups=int(new_head)) if letter == "L" else TowerLock()
        for letter, new_head in zip(letters, (new_image_head, new_text_head), strict=True)
    )
    return TowersConfig(image=image, text=text), FreezeConfig(image=image_lock, text=text_lock)


def letters_of(towers: TowersConfig, freeze: FreezeConfig) -> str:
    """LiT's two letters for a run's settings."""

    def letter(source: object, lock: TowerLock) -> str:
        return "u" if source is None else "L" if lock.locked else "U"

    return letter(towers.image, freeze.image) + letter(towers.text, freeze.text)


def _rules(tower: Any, lock: TowerLock, prefix: str) -> dict[str, bool]:
    """Beginnings of names, and whether what begins so is trained."""
    if not lock.locked:
        return {}
    groups = tower.groups()
    side = "image" if prefix == "visual." else "text"
    if lock.unlocked_groups >= len(groups):
        raise ConfigError(
            f"freeze.{side}.unlocked_groups is {lock.unlocked_groups}",
            expected=f"less than {len(groups)}, of which the tower is made",
        )
    if lock.statistics == "moving" and not any(isinstance(module, _BatchNorm) for module in tower.modules()):
        raise ConfigError(f"freeze.{side}.statistics is 'moving', but the {side} tower has no batch norm")
    locked = groups[: len(groups) - lock.unlocked_groups]
    rules = {prefix + start: False for group in locked for start in group}
    if lock.norms == "trained":
        for name, module in tower.named_modules():
            if isinstance(module, _NORMS):
                rules |= {f"{prefix}{name}.{leaf}": True for leaf, _ in module.named_parameters(recurse=False)}
    return rules


def _trunk_frozen(tower: Any) -> bool:
    """Whether all of a tower before its projection is frozen."""
    return not any(weight.requires_grad for name, weight in tower.named_parameters() if name not in HEADS)


def _still(tower: Any, lock: TowerLock, side: str) -> list[str]:
    """Submodules that stay in evaluation mode: those all of whose weights are frozen, with all that is in them.

    Batch norm in frozen groups follows `statistics`, whether its gains are trained or not.
    """
    groups = tower.groups()
    starts = tuple(start for group in groups[: len(groups) - lock.unlocked_groups] for start in group) if lock.locked else ()
    whole = _trunk_frozen(tower)
    found: list[str] = []
    for name, module in tower.named_modules():
        weights = list(module.parameters())
        frozen = whole or (bool(weights) and not any(weight.requires_grad for weight in weights))
        frozen = frozen or any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, _BatchNorm) and f"{name}.".startswith(starts):
            frozen = lock.statistics == "locked"
        if frozen:
            found.append(name)
    return [f"{side}.{name}" if name else side for name in found]
