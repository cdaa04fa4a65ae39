"""Towers that are trained: copies of the model's, beside a model that stays as it is.

    logits = f(x) W' + b      f the tuned tower's unit embedding, W (C, E) = exp(logit_scale) times the prompts' rows at first

Tensors have the names that they have in a model (`visual.*`, `text.*`, `logit_scale`) with `head.weight` and `head.bias`, so
that the arithmetic on weights treats a tuned predictor like a model. Weights train in float32 where the model's are short.

Letters: B batch, C classes, E embedding, S pixels a side.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ostension.adapt._recipe import Recipe
from ostension.adapt.base import TEMPLATE, Addition
from ostension.config import require
from ostension.files import sha256_json
from ostension.image.augment import CropConfig
from ostension.model.clip import CLIP
from ostension.model.fingerprint import fingerprint
from ostension.shapes import Float

# The train transform of WiSE-FT, FLYP, PAINT and task vectors: a large part of the picture, neither mirrored nor recoloured.
CROP = CropConfig(kind="resized", scale=(0.9, 1.0))


def tuning(**changes: Any) -> Recipe:
    """The recipe that WiSE-FT, PAINT and task vectors share: AdamW, weight decay 0.1 on everything, 500 steps of warm-up (a
    quarter of all steps at most), a cosine by steps, gradients clipped to a norm of 1."""
    shared: dict[str, Any] = {
        "epochs": 10, "batch_size": 512, "optimizer": "adamw", "lr": 3e-5, "weight_decay": 0.1, "clip_norm": 1.0,
        "warmup_epochs": 0, "schedule": "cosine_by_step", "warmup_steps": 500, "views": 1, "crop": CROP,
    }  # fmt: skip
    return Recipe(**{**shared, **changes})


class Tuned(Addition):
    """Parts of the model that are trained: `parts` of it, as own copies.

    `config.groups` keeps all but the last so many groups of the image tower as they are (open_clip's unlocked groups: the
    projection, the last block, the one before, ...); None trains all. Towers compute in evaluation mode throughout, so running
    statistics of batch normalisation stay the model's.

    Attributes:
        parts: which parts of a model are copied: "visual", "text", "logit_scale".
        live: the model with its own parts in their places.
    """

    needs_images = True
    parts: ClassVar[tuple[str, ...]] = ("visual",)
    live: CLIP

    def __init__(self, model: CLIP, config: Any, class_names: Sequence[str], *, seed: int = 0):
        super().__init__(model, config, class_names, seed=seed)
        live = copy.copy(model)
        live._modules, live._parameters = dict(model._modules), dict(model._parameters)
        live.provenance = {}
        wide = torch.promote_types(model.dtype, torch.float32)
        for name in self.parts:
            part = copy.deepcopy(getattr(model, name))
            part = part.to(wide) if isinstance(part, nn.Module) else nn.Parameter(part.detach().to(wide))
            setattr(live, name, part.requires_grad_(True))
            setattr(self, name, part)
        self.__dict__["live"] = live
        if "visual" in self.parts and getattr(config, "groups", None) is not None:
            self._lock(config.groups)

    def _lock(self, groups: int) -> None:
        tower = self.live.visual
        known = tower.groups()
        require(1 <= groups <= len(known), "groups", groups, f"1 to {len(known)}, of which the image tower is made")
        starts = tuple(start for group in known[: len(known) - groups] for start in group)
        for name, parameter in tower.named_parameters():
            parameter.requires_grad_(not (starts and name.startswith(starts)))

    def untrained(self) -> Tuned:
        """The same before its first step."""
        return type(self)(self.model, self.config, self.class_names).to(self.model.device)

    def train(self, mode: bool = True) -> Tuned:
        super().train(mode)
        for name in self.parts:
            if isinstance(part := getattr(self, name), nn.Module):
                part.eval()
        return self

    def image(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B E"]:
        return self.live.encode_image(images, normalize=True)

    def tuned_model(self) -> CLIP:
        """The model with what was trained in it; it shares memory with this, and knows what it comes from."""
        model = self.model
        start = {"fingerprint": fingerprint(model), "source": model.provenance.get("source")}
        self.live.provenance = {"start": start, "method": self.kind, **self.lists()}
        return self.live.eval()

    def lists(self) -> dict[str, str]:
        """Hashes of what a model's weights are bound to besides its start; an open vocabulary binds to nothing."""
        return {}


class TunedHead(Tuned):
    """A tuned image tower with a linear head that begins as the hand-written classifier of `config.templates`.

    Step 0 is zero-shot. Names that the head does not have are read with the hand-written prompts before the tuned tower.
    """

    def __init__(self, model: CLIP, config: Any, class_names: Sequence[str], *, seed: int = 0):
        super().__init__(model, config, class_names, seed=seed)
        zero_shot = model.classifier(self.class_names, list(config.templates or (TEMPLATE,)))
        self.head = nn.Linear(zero_shot.weights.shape[1], self.num_classes, device=model.device)
        with torch.no_grad():
            self.head.weight.copy_(zero_shot.weights * zero_shot.scale)
            self.head.bias.zero_()

    def scale(self) -> Float[Tensor, ""]:
        return torch.ones((), device=self.head.weight.device)  # the head has it

    def weights(self, features: Tensor | None = None) -> Tensor:
        """The head's rows, as long as training made them."""
        return self.head.weight

    def logits(self, features: Float[Tensor, "B E"]) -> Float[Tensor, "B C"]:
        if self.head.weight.requires_grad:
            return self.head(features.to(self.head.weight.dtype))
        # In float64, as every constant head: the result then depends on neither the batch nor the order of classes.
        found = features.double() @ self.head.weight.double().T + self.head.bias.double()
        return found if features.dtype == torch.float64 else found.float()

    def lists(self) -> dict[str, str]:
        prompts = [list(self.config.templates or (TEMPLATE,)), list(self.class_names)]
        return {"class_list_sha256": sha256_json(list(self.class_names)), "prompts_sha256": sha256_json(prompts)}

    def bound(self, class_names: Sequence[str]) -> Addition:
        """The head's own columns where it has all names; else the tuned tower before the names' hand-written prompts."""
        known = {name: place for place, name in enumerate(self.class_names)}
        other = type(self)(self.model, self.config, class_names).to(self.model.device)
        state = self.state_dict()
        if all(name in known for name in class_names):
            places = torch.tensor([known[name] for name in class_names], device=self.head.weight.device)
            heads = {name: state[name][places] for name in ("head.weight", "head.bias")}
        else:
            heads = {name: value for name, value in other.state_dict().items() if name.startswith("head.")}
        other.receive({**state, **heads})
        return other
