"""TPT: for each picture, without labels, one gradient step on the contexts so that confident views of it agree.

    H_i = entropy of softmax(s f_i T'),  i = 0 .. V - 1;   S = the k views with the lowest H,  k = int(rho V)
    L = entropy of 1/k sum_{i in S} softmax(s f_i T');     V* = one step of AdamW on L from V_0;    answer: view 0 with V*

The first step of many pictures goes through one graph, without an optimiser (`_agreement`), further ones in a batch, equal to
the plain loop (tested in float64). Contexts that a net makes of view 0 (CoCoOp's) take the way of further steps from the
beginning; the net stays as it is.

Source: Shu et al. 2022, "Test-Time Prompt Tuning for Zero-Shot Generalization in Vision-Language Models" (arXiv:2209.07511),
and its code.
Letters: B pictures, V views, C classes, E embedding, N contexts, W width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ostension.adapt._agreement import AdamW, confident, entropy, gradients_through
from ostension.adapt._by_views import ViewsPredictor
from ostension.adapt._conditional import Shift, contexts_of
from ostension.adapt._examples import Examples
from ostension.adapt._fit import frozen
from ostension.adapt._text import ClassTokens, word_context
from ostension.adapt.base import Addition, Spec
from ostension.config import require
from ostension.model.clip import CLIP
from ostension.model.predictor import Predictor
from ostension.runtime import torch_generator
from ostension.shapes import Float

SPEC = Spec(
    title="TPT",
    paper='Shu, Nie, Huang, Yu, Goldstein, Anandkumar, Xiao. "Test-Time Prompt Tuning for Zero-Shot Generalization in '
    'Vision-Language Models". NeurIPS 2022, arXiv:2209.07511',
    trains="the contexts (N, W) anew for each picture; nothing is kept",
    labels=False,
    test_gradients=True,
    depends="views",
    neutral={"steps": 0},
    departures=(
        "exactly int(rho V) views are kept, as the code does; the paper divides by rho V and speaks of a percentile",
        "crops are mirrored by chance, as the code does; the paper speaks of crops alone",
        "crops are resized as the model's preprocessing does (bicubic); the code's are bilinear",
        "float32 without loss scaling, which a step by signs does not see",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; the defaults are the paper's.

    Attributes:
        words: words that the contexts begin with, unless another method's contexts are given.
        views: of a picture, the first of which is the model's own preprocessing.
        keep: share of the views that counts.
        steps: steps of AdamW.
        lr, weight_decay: of AdamW.
        mix: what besides cropping makes views: "none", or "augmix" (the ten fine-grained sets).
        position, conditional: where contexts stand, and whether a net makes them of view 0; a `start` sets both.
    """

    words: str = "a photo of a"
    views: int = 64
    keep: float = 0.1
    steps: int = 1
    lr: float = 0.005
    weight_decay: float = 0.01
    mix: Literal["none", "augmix"] = "none"
    position: Literal["end", "middle", "front"] = "end"
    conditional: bool = False

    def __post_init__(self):
        require(self.views >= 1, "views", self.views, "1 or more")
        require(0 < self.keep <= 1, "keep", self.keep, "above 0, at most 1")
        require(self.lr > 0, "lr", self.lr, "more than 0")
        for key in ("steps", "weight_decay"):
            require(getattr(self, key) >= 0, key, getattr(self, key), "0 or more")


class TPT(Addition):
    """The contexts that every picture begins with."""

    kind, config_type, depends = "tpt", Config, "views"
    block = 16  # pictures whose gradients are found together

    def __init__(self, model: CLIP, config: Config, class_names: Sequence[str], *, seed: int = 0):
        super().__init__(model, config, class_names, seed=seed)
        self.context = nn.Parameter(word_context(model, config.words))
        self.shift = Shift(model, self.context, torch_generator(seed, "tpt", "shift")) if config.conditional else None
        self.prompts = ClassTokens(model, self.class_names, config.position)

    def weights(self, features: Tensor | None = None) -> Tensor:
        """The rows at V_0, the same for all; without a net's shift."""
        return self.prompts.encode(self.context)

    def receive(self, tensors: Mapping[str, Tensor]) -> None:
        # Contexts of another method may have another length than the words.
        if "context" in tensors and tensors["context"].ndim == 2:
            self.context = nn.Parameter(torch.empty_like(tensors["context"]))
        super().receive(tensors)

    def first(self, views: Float[Tensor, "B V E"]) -> Float[Tensor, "B N W"]:
        """V_0 of each picture."""
        context = self.context.detach().expand(len(views), *self.context.shape)
        return context if self.shift is None else (context + self.shift(views[:, 0])[:, None]).detach()

    def tuned(self, views: Float[Tensor, "B V E"]) -> Float[Tensor, "B N W"]:
        """The contexts of each picture after the steps."""
        with frozen(self.model), torch.enable_grad():
            return torch.cat([self._tuned(part) for part in views.split(self.block)])

    def _tuned(self, views: Tensor) -> Tensor:
        tuned, state, scale, chosen = self.first(views), AdamW(self.config.lr, self.config.weight_decay), self.scale(), None
        for step in range(self.config.steps):
            shared = step == 0 and self.shift is None  # one V_0, and one graph, for all pictures
            moving = (self.context.detach().clone() if shared else tuned).requires_grad_()
            rows = self.prompts.encode(moving if shared else moving[:, None])  # (C, E), or (B, C, E)
            chosen = confident(views, rows.detach(), scale, self.config.keep) if chosen is None else chosen
            if shared:
                gradient = gradients_through(rows, moving, chosen, scale)
            else:
                (gradient,) = torch.autograd.grad(entropy(chosen, rows, scale).sum(), moving)
            tuned = state.step(tuned.detach(), gradient)
        return tuned

    def rows_of_views(self, views: Float[Tensor, "B V E"]) -> Float[Tensor, "B C E"]:
        """The classes' rows of each picture."""
        return self.prompts.encode(self.tuned(views)[:, None])


class TPTPredictor(ViewsPredictor):
    """Tunes the contexts on each picture's views."""

    kind, addition = "tpt", TPT


def fit(
    model: CLIP, examples: Examples, config: Config, *, seed: int = 0, start: Predictor | None = None, **run: Any
) -> Predictor:
    """The predictor, which needs no training; `start` gives it another method's contexts to begin with."""
    if start is None:
        return TPTPredictor(TPT(model, config, examples.class_names, seed=seed))
    given, position, conditional = contexts_of(start)
    config = dataclasses.replace(config, position=position, conditional=conditional)
    addition = TPT(model, config, examples.class_names, seed=seed)
    addition.receive(given)
    return TPTPredictor(addition)
