"""TPT: for each picture, without labels, one gradient step on the contexts so that confident views of it agree.

    H_i = entropy of softmax(s f_i T'),  i = 0 .. V - 1;   S = the k views with the lowest H,  k = int(rho V)
    L = entropy of 1/k sum_{i in S} softmax(s f_i T');     V* = one step of AdamW on L from V_0;    answer: view 0 with V*

Many pictures share the way there. T, the classes' rows at V_0, is the same for all; per picture only dL/dT differs, so a block
of pictures needs one graph and one batched product with its Jacobian. AdamW's first step from nothing is
V_0 (1 - lr wd) - lr g / (|g| + eps), so no optimiser is needed; further steps go picture by picture in a batch. All of it is
equal to the plain loop (tested in float64). Contexts that a net makes of the picture (CoCoOp's) differ from the beginning and
take the way of further steps.

Source: Shu et al. 2022, "Test-Time Prompt Tuning for Zero-Shot Generalization in Vision-Language Models" (arXiv:2209.07511),
and its code.
Letters: B pictures, V views, C classes, E embedding, N contexts, W width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ostension.adapt._conditional import Shift
from ostension.adapt._examples import Examples
from ostension.adapt._fit import frozen
from ostension.adapt._text import ClassTokens, word_context
from ostension.adapt._views import Views
from ostension.adapt.base import Addition, AdditionPredictor, Spec
from ostension.config import require
from ostension.errors import ConfigError
from ostension.model.clip import CLIP
from ostension.model.predictor import Predictor
from ostension.runtime import torch_generator
from ostension.shapes import Float

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # AdamW's usual ones
BLOCK = 16  # pictures whose gradients are found together

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
        "views that features are kept of are crops alone, as the paper says; pictures are also flipped, as the code does",
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
        require(self.steps >= 0, "steps", self.steps, "0 or more")
        require(self.lr > 0, "lr", self.lr, "more than 0")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")

    def kept(self, views: int) -> int:
        """How many of so many views count."""
        return max(1, int(self.keep * views))


class TPT(Addition):
    """The contexts that every picture begins with."""

    kind, config_type, depends = "tpt", Config, "views"

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
            parts = [self._tuned(part) for part in views.split(BLOCK)]
        return torch.cat(parts)

    def _tuned(self, views: Tensor) -> Tensor:
        tuned, state, chosen = self.first(views), AdamW(self.config), None
        for step in range(self.config.steps):
            if step == 0 and self.shift is None:
                chosen, gradient = self._shared_step(views)
            else:
                moving = tuned.requires_grad_()
                rows = self.prompts.encode(moving[:, None])  # (B, C, E)
                chosen = self.confident(views, rows.detach()) if chosen is None else chosen
                (gradient,) = torch.autograd.grad(self.entropy(chosen, rows).sum(), moving)
            tuned = state.step(tuned.detach(), gradient)
        return tuned

    def _shared_step(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """The views that count, and the gradients (B, N, W) at the V_0 that all pictures share."""
        shared = self.context.detach().clone().requires_grad_()
        rows = self.prompts.encode(shared)  # (C, E)
        chosen = self.confident(views, rows.detach())
        cotangents = self._cotangents(chosen, rows.detach())
        (gradient,) = torch.autograd.grad(rows, shared, cotangents, is_grads_batched=True)
        return chosen, gradient

    def confident(self, views: Float[Tensor, "B V E"], rows: Float[Tensor, "*_B C E"]) -> Float[Tensor, "B k E"]:
        """The views with the lowest entropies at V_0; the choice stays for all steps."""
        logs = (self.scale() * views @ rows.mT).log_softmax(-1)
        entropies = -(logs.exp() * logs).sum(-1)
        best = entropies.sort(dim=1, stable=True).indices[:, : self.config.kept(views.shape[1])]
        return views.gather(1, best[..., None].expand(-1, -1, views.shape[2]))

    def entropy(self, chosen: Float[Tensor, "B k E"], rows: Float[Tensor, "*_B C E"]) -> Float[Tensor, " B"]:
        """The entropy of each picture's mean prediction over its chosen views, from the mean's logarithm."""
        logs = (self.scale() * chosen @ rows.mT).log_softmax(-1)
        mean = logs.logsumexp(1) - math.log(chosen.shape[1])
        return -(mean.exp() * mean).sum(-1)

    def _cotangents(self, chosen: Tensor, rows: Tensor) -> Tensor:
        """dL/dT of each picture (B, C, E)."""
        own = rows.expand(len(chosen), *rows.shape).clone().requires_grad_()
        return torch.autograd.grad(self.entropy(chosen, own).sum(), own)[0]


class AdamW:
    """AdamW of one tensor, from nothing: m and v are those of the steps so far."""

    def __init__(self, config: Config):
        self.config, self.steps = config, 0
        self.first: Tensor | float = 0.0
        self.second: Tensor | float = 0.0

    def step(self, value: Tensor, gradient: Tensor) -> Tensor:
        self.steps += 1
        self.first = BETA1 * self.first + (1 - BETA1) * gradient
        self.second = BETA2 * self.second + (1 - BETA2) * gradient * gradient
        mean = self.first / (1 - BETA1**self.steps)
        spread = (self.second / (1 - BETA2**self.steps)) ** 0.5
        return value * (1 - self.config.lr * self.config.weight_decay) - self.config.lr * mean / (spread + EPS)


class TPTPredictor(AdditionPredictor):
    """Predicts pictures through their views; embeddings of one view alone cannot be tuned on."""

    kind, addition, depends = "tpt", TPT, "views"
    module: TPT

    @torch.no_grad()
    def logits_of_views(self, views: Float[Tensor, "B V E"]) -> Float[Tensor, "B C"]:
        """Logits from unit rows of views, view 0 first."""
        found = []
        for part in views.split(BLOCK):
            rows = self.module.prompts.encode(self.module.tuned(part)[:, None])  # (B, C, E)
            found.append(self.scale * torch.einsum("be,bce->bc", part[:, 0].double(), rows.double()))
        return torch.cat(found).float()

    def logits(self, embeddings: Float[Tensor, "B E"]) -> Float[Tensor, "B C"]:
        """Logits without tuning, from one view: allowed where there are no steps.

        Raises:
            ConfigError: otherwise.
        """
        if self.module.config.steps:
            raise ConfigError(
                "tpt tunes on several views of a picture", fix="give pictures, or rows of views to logits_of_views"
            )
        return self.logits_of_views(embeddings[:, None])

    def pixels(self, pictures: Sequence[Any], *, workers: int = 0) -> Float[Tensor, "B V 3 S S"]:
        views = Views(self.encoder, self.module.config.views, self.module.config.mix)
        return torch.stack([views.pixels(picture) for picture in pictures])

    def forward(self, images: Float[Tensor, "B *V 3 S S"]) -> Float[Tensor, "B C"]:
        """Logits of views of preprocessed images; without a place for views, each image counts as its only one."""
        views = images if images.ndim == 5 else images[:, None]
        return self.logits_of_views(torch.stack([self.module.image(own) for own in views]))

    def predict(self, images: Sequence[Any] | Tensor, *, batch_size: int = 32, workers: int = 0) -> Float[Tensor, "N C"]:
        return super().predict(images, batch_size=1 if isinstance(images, Sequence) else batch_size, workers=workers)


def fit(
    model: CLIP,
    examples: Examples,
    config: Config,
    *,
    seed: int = 0,
    folder: Path | None = None,
    progress: Callable[[dict[str, float]], None] | None = None,
    start: Predictor | None = None,
) -> AdditionPredictor:
    """The predictor, which needs no training; `start` gives it another method's contexts to begin with.

    CoOp's are the same for every picture; CoCoOp's net makes them of view 0, and stays as it is while they are tuned.

    Raises:
        ConfigError: for a method without such contexts.
    """
    if start is None:
        return TPTPredictor(TPT(model, config, examples.class_names, seed=seed))
    module = getattr(start, "module", None)
    net = getattr(module, "conditional", None)
    own = module if net is None else net
    context, prompts = getattr(own, "context", None), getattr(own, "prompts", None)
    if context is None or context.ndim != 2 or prompts is None or start.own_images:
        raise ConfigError(f"a {start.kind!r} predictor has no contexts (N, W) to begin with", expected="coop's or cocoop's")
    config = dataclasses.replace(config, position=prompts.position, conditional=net is not None)
    addition = TPT(model, config, examples.class_names, seed=seed)
    given = {"context": context} if net is None else {"context": context, **net.shift.state_dict(prefix="shift.")}
    addition.receive({name: value.detach().float() for name, value in given.items()})
    return TPTPredictor(addition)


def plain_tuned(addition: TPT, views: Float[Tensor, "V E"]) -> Float[Tensor, "N W"]:
    """One picture's contexts by the plain loop, with an optimiser: the reference of `TPT.tuned`."""
    with frozen(addition.model), torch.enable_grad():
        context = addition.first(views[None])[0].clone().requires_grad_()
        config = addition.config
        optimizer = torch.optim.AdamW([context], lr=config.lr, weight_decay=config.weight_decay, eps=EPS)
        chosen = addition.confident(views[None], addition.prompts.encode(context.detach()))
        for _ in range(config.steps):
            optimizer.zero_grad()
            probabilities = F.softmax(addition.scale() * chosen[0] @ addition.prompts.encode(context).T, dim=-1).mean(0)
            loss = -(probabilities * probabilities.log()).sum()
            (context.grad,) = torch.autograd.grad(loss, context)
            optimizer.step()
        return context.detach()
