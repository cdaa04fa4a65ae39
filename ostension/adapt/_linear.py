"""Linear heads on rows of the frozen tower, fitted to the optimum: without epochs or random numbers.

    logits = x W' + b          x (B, D) rows of the tower's level, W (C, D), b (C)

Rows of W have lengths of their own, so the scale is 1. What was learned belongs to its classes; fewer of them, or another order
of them, are other rows of the same head.

Letters: B batch, N samples, M validation samples, C classes, D width of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ostension.adapt.base import Addition, Labelled
from ostension.errors import ConfigError
from ostension.model.clip import CLIP
from ostension.shapes import Float
from ostension.train.strength_search import Choice, PathProbe


class Head(Addition):
    """W and b, zero until they are fitted."""

    binds = False

    def __init__(self, model: CLIP, config: Any, class_names: Sequence[str], *, seed: int = 0):
        super().__init__(model, config, class_names, seed=seed)
        self.level = getattr(config, "level", "post")
        self.weight = nn.Parameter(torch.zeros(self.num_classes, width_of(model, self.level), device=model.device))
        self.bias = nn.Parameter(torch.zeros(self.num_classes, device=model.device))

    def scale(self) -> Float[Tensor, ""]:
        return torch.ones(())

    def weights(self, features: Tensor | None = None) -> Tensor:
        return self.weight

    def logits(self, features: Tensor) -> Tensor:
        # In float64, as every constant head: the result then depends on neither the batch nor the order of classes.
        found = self.wide_logits(features.double())
        return found if features.dtype == torch.float64 else found.float()

    def wide_logits(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """The logits of rows in float64, in float64."""
        return features @ self.weight.double().T + self.bias.double()

    def put(self, weight: Float[Tensor, "C D"], bias: Float[Tensor, " C"]) -> None:
        """Take over W and b."""
        with torch.no_grad():
            self.weight.copy_(weight)
            self.bias.copy_(bias)

    def bound(self, class_names: Sequence[str]) -> Head:
        """The head for some of its classes, in any order.

        Raises:
            ConfigError: for a name that is none of them.
        """
        places = {name: place for place, name in enumerate(self.class_names)}
        if unknown := [name for name in class_names if name not in places]:
            what = f"what {self.kind} has learned belongs to its {self.num_classes} classes, and {unknown[0]!r} is none of them"
            raise ConfigError(what, fix="adapt it again")
        chosen = torch.tensor([places[name] for name in class_names], device=self.weight.device)
        other = type(self)(self.model, self.config, class_names).to(self.model.device)
        other.receive({name: value[chosen] for name, value in self.state_dict().items()})
        return other


@torch.no_grad()
def width_of(model: CLIP, level: str) -> int:
    """D: numbers of a row of that level."""
    if level == "post":
        return model.config.embed_dim
    side = model.config.vision.image_size
    return model.image_features(torch.zeros(1, 3, side, side))["pooled"].shape[1]


def rows_of(data: Labelled, model: CLIP, level: str) -> Float[np.ndarray, "N D"]:
    """The rows of pictures under the model's own preprocessing."""
    return data.features(model, level=level)[0].numpy()  # type: ignore[arg-type]


def validation(kind: str, val: Labelled | None) -> Labelled:
    """The pictures that a strength is chosen by.

    Raises:
        ConfigError: if there are none.
    """
    if val is None:
        raise ConfigError(f"{kind} chooses its strength by validation pictures, and there are none", fix="give the strength")
    return val


def judge(
    probe: PathProbe, rows: Float[np.ndarray, "M D"], targets: np.ndarray, offset: Float[np.ndarray, "M C"] | None = None
) -> Callable[[float], float]:
    """The accuracy on validation pictures as a function of the strength."""

    def score(strength: float) -> float:
        return right(probe.logits(strength, rows, offset), targets)

    return score


def right(logits: Float[np.ndarray, "M C"], targets: np.ndarray) -> float:
    """The accuracy."""
    return float((logits.argmax(axis=1) == targets).mean())


def told(choice: Choice) -> dict[str, Any]:
    """A choice for the record."""
    return {
        "search": choice.how, "curve": [list(point) for point in choice.curve], "validation": choice.score,
        "at_end": choice.at_end,
    }  # fmt: skip
