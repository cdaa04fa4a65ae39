"""CAR-FT: fine-tuning that keeps what the model sees of a picture's context: its style, background and viewpoint.

    L = CE(f(x) W' + b, y) + weight KL(p_0(x) || p(x))       p = softmax(exp(logit_scale) f(x) V'),  p_0 the same of the model

V (M, E) has a row for each context template: the unit mean over the classes of its prompts' unit rows. W, b and the image tower
are trained; V, the temperature and the model's f are not. Without the temperature the second term would do nothing: the cosines
of all contexts are nearly the same.
Source: Mao, Chen, Jia, Zhang, Xue, Li 2024, "Context-aware robust fine-tuning" (arXiv:2211.16175), whose code is not published;
V's form is that of a later paper's comparison (lipsum-ft). The rest is derived, and what could not be checked is a setting.
Letters: B batch, M context templates, C classes, E embedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ostension.adapt._fit import Recipe, fitting
from ostension.adapt._tuning import TunedHead, tuning
from ostension.adapt.base import TEMPLATE, Spec
from ostension.config import require
from ostension.model.clip import CLIP
from ostension.text.prompts import as_templates

SPEC = Spec(
    title="CAR-FT",
    paper='Mao, Chen, Jia, Zhang, Xue, Li. "Context-Aware Robust Fine-Tuning". IJCV 2024, arXiv:2211.16175',
    trains="the image tower and a head W (C, E), b (C)",
    neutral={},
    neutral_template=TEMPLATE,
    departures=(
        "weight, direction and learning rate could not be checked against the paper",
        "the warm-up of 500 steps is a quarter of all steps at most",
        "names that the head does not have are read with the hand-written prompts before the tuned tower",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        templates: of the head's first rows; none takes the task's.
        contexts: the context templates, two or more, or the name of a set of them.
        weight: of the divergence; 0 is plain fine-tuning, to the bit.
        direction: "forward" is KL(p_0 || p), "reverse" KL(p || p_0).
        groups: train only so many of the image tower's last groups; None trains all of it.
        recipe: how it is trained; without views the model's rows, of which p_0 is made, are the kept ones.
    """

    templates: tuple[str, ...] = ()
    contexts: str | tuple[str, ...] = "openai_imagenet"
    weight: float = 1.0
    direction: Literal["forward", "reverse"] = "forward"
    groups: int | None = None
    recipe: Recipe = dataclasses.field(default_factory=lambda: tuning(lr=1e-5))

    def __post_init__(self):
        require(self.weight >= 0, "weight", self.weight, "0 or more")
        require(len(as_templates(self.contexts)) >= 2, "contexts", self.contexts, "two templates or more")


class CarFT(TunedHead):
    """The tuned tower with its head, and the contexts that it is held to while it is trained."""

    kind, config_type = "car-ft", Config

    def __init__(self, model: CLIP, config: Config, class_names: Sequence[str], *, seed: int = 0):
        super().__init__(model, config, class_names, seed=seed)
        self._contexts: Tensor | None = None
        self.compares = bool(config.weight)

    @property
    def contexts(self) -> Tensor:
        """exp(logit_scale) V' (E, M) of the model, made when it is first asked for."""
        if self._contexts is None:
            rows = [
                F.normalize(self.model.class_embeddings(list(self.class_names), [template]).mean(0), dim=0)
                for template in as_templates(self.config.contexts)
            ]
            self._contexts = torch.stack(rows).T * self.model.scale().detach()
        return self._contexts

    def settle(self) -> None:
        self._contexts = None

    def loss(self, batch: Any) -> Tensor:
        features = self.image(batch.images)
        loss = F.cross_entropy(self.logits(features), batch.targets)
        if not self.config.weight:
            return loss
        now = (features @ self.contexts.to(features.dtype)).log_softmax(dim=1)
        before = self._before(batch).to(now.dtype)
        first, second = (before, now) if self.config.direction == "forward" else (now, before)
        divergence = F.kl_div(second, first, reduction="batchmean", log_target=True)
        batch.notes["divergence"] = float(divergence.detach())
        return loss + self.config.weight * divergence

    @torch.no_grad()
    def _before(self, batch: Any) -> Tensor:
        """log p_0 (B, M) of the model for the same pictures."""
        rows = self.model.encode_image(batch.images, normalize=True) if batch.features is None else batch.features
        return (rows @ self.contexts.to(rows.dtype)).log_softmax(dim=1)


fit = fitting(CarFT)
