"""Learned tokens of the image tower: where they go and what they begin with, in which five code bases differ.

Where the tokens stand among the others does not matter, as attention does not see an order; whether `ln_pre` sees them does.

    vpt     after ln_pre,  uniform within sqrt(6 / (3 p^2 + W)) for patches of p pixels (the original)
    mvlpt   the same, deep
    maple   before ln_pre, normal with spread 0.02 (also IVLP's)
    dpt     after ln_pre,  normal with spread 0.02
    tecoa   before ln_pre, normal with spread 1
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from ostension.adapt._init import normal, uniform
from ostension.errors import ConfigError
from ostension.model.clip import CLIP
from ostension.model.config import VitConfig
from ostension.model.insert import VisualInsert
from ostension.runtime import torch_generator

Like = Literal["vpt", "mvlpt", "maple", "dpt", "tecoa"]
BEFORE_LN_PRE = ("maple", "tecoa")


def vit_of(model: CLIP, kind: str) -> VitConfig:
    """The image tower's configuration.

    Raises:
        ConfigError: for a tower without tokens.
    """
    vision = model.config.vision
    if not isinstance(vision, VitConfig):
        raise ConfigError(f"{kind} adds tokens, and the image tower is of the kind {vision.kind!r}", expected="a ViT")
    return vision


def first_tokens(shape: tuple[int, ...], like: Like, vision: VitConfig, seed: int) -> Tensor:
    """First values of visual tokens, as the named code base draws them."""
    generator = torch_generator(seed, "visual tokens")
    if like in ("vpt", "mvlpt"):
        return uniform(shape, math.sqrt(6 / (3 * vision.patch_size**2 + vision.width)), generator)
    return normal(shape, generator, 1.0 if like == "tecoa" else 0.02)


def visual_insert(tokens: Tensor, like: Like) -> VisualInsert | None:
    """Tokens (J, N, W): the first before block 0, each further one in the place of the one before; None for none."""
    if tokens.shape[1] == 0:
        return None
    deep = tokens[1:] if len(tokens) > 1 else None
    return VisualInsert(tokens=tokens[0], deep=deep, place="before_ln_pre" if like in BEFORE_LN_PRE else "after_ln_pre")
