"""Contexts that a small net shifts by the picture's feature, as CoCoOp has them.

v_m(x) = v_m + h(f(x)),    h = Linear(E -> E / 16), ReLU, Linear(E / 16 -> W)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ostension.adapt._init import linear
from ostension.adapt._text import ClassTokens, word_context
from ostension.errors import ConfigError
from ostension.model.clip import CLIP
from ostension.model.insert import Position
from ostension.model.predictor import Predictor
from ostension.runtime import torch_generator
from ostension.shapes import Float

BOTTLENECK = 16  # the width of the net is the embedding's over this


class Shift(nn.Module):
    """The net h."""

    def __init__(self, model: CLIP, context: torch.Tensor, generator: torch.Generator):
        super().__init__()
        width = model.config.embed_dim
        self.first = linear(width, max(1, width // BOTTLENECK), generator).to(model.device)
        self.second = linear(max(1, width // BOTTLENECK), context.shape[-1], generator).to(model.device)

    def forward(self, features: Float[torch.Tensor, "B E"]) -> Float[torch.Tensor, "B W"]:
        """What is added to every context of each picture."""
        return self.second(self.first(features.to(self.first.weight.dtype)).relu())


class ConditionalContext(nn.Module):
    """The contexts, the net, and the prompts around class names."""

    def __init__(self, model: CLIP, words: str, class_names: Sequence[str], seed: int):
        super().__init__()
        self.context = nn.Parameter(word_context(model, words))
        self.shift = Shift(model, self.context, torch_generator(seed, "conditional context"))
        self.prompts = ClassTokens(model, class_names)

    def forward(self, features: Float[torch.Tensor, "B E"]) -> Float[torch.Tensor, "B C E"]:
        """Unit rows of the classes for each picture."""
        return self.prompts.encode((self.context + self.shift(features)[:, None])[:, None])  # contexts (B, 1, N, W)


def silence(addition: Any) -> None:
    """A net that shifts nothing."""
    with torch.no_grad():
        for value in addition.conditional.shift.second.parameters():
            value.zero_()


def contexts_of(start: Predictor) -> tuple[dict[str, Tensor], Position, bool]:
    """What another method's predictor has for contexts: tensors, where they stand, and whether a net shifts them.

    Raises:
        ConfigError: for a method without contexts (N, W).
    """
    module = getattr(start, "module", None)
    net = getattr(module, "conditional", None)
    own = module if net is None else net
    context, prompts = getattr(own, "context", None), getattr(own, "prompts", None)
    if context is None or context.ndim != 2 or prompts is None or start.own_images:
        raise ConfigError(f"a {start.kind!r} predictor has no contexts (N, W) to begin with", expected="coop's or cocoop's")
    given = {"context": context} if net is None else {"context": context, **net.shift.state_dict(prefix="shift.")}
    return {name: value.detach().float() for name, value in given.items()}, prompts.position, net is not None
