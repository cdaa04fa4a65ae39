"""Labelled pictures as pairs: each with one prompt of its class, drawn anew in every epoch, for the loss of pre-training.

    L = the symmetric contrastive loss of f(x_i) and g(prompt_i)          over a batch

Several pictures of a class in a batch are each other's negatives unless `duplicates` says otherwise, so the loss has a floor:
no model tells equal prompts apart. Of n_i equal prompts, or of g_i pairs that share their target,

    L >= mean_i log n_i  ("separate"),      L >= mean_i log g_i  ("share"),      0  ("ignore")

Only different prompts are encoded, cut to the longest; what follows a prompt's end cannot reach it.

Letters: B batch, C classes, E embedding.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ostension.adapt._tuning import Tuned
from ostension.adapt.base import TEMPLATE
from ostension.losses import contrastive_loss
from ostension.model.clip import CLIP
from ostension.shapes import Float, Int
from ostension.text.prompts import compose
from ostension.text.tokenizer import pack


class PromptPairs(Tuned):
    """Towers tuned on pictures and prompts; W are the prompts' rows by the tuned text tower, for any class names."""

    def __init__(self, model: CLIP, config: Any, class_names: Sequence[str], *, seed: int = 0):
        super().__init__(model, config, class_names, seed=seed)
        self.templates = tuple(config.templates or (TEMPLATE,))
        self._rows: Tensor | None = None  # of the tower as it is, while it does not change

    @functools.cached_property
    def grid(self) -> list[list[list[int]]]:
        """Token ids by class and template."""
        return compose(self.live.tokenizer, self.templates, list(self.class_names))

    def scale(self) -> Float[Tensor, ""]:
        return self.live.scale().detach()

    def weights(self, features: Tensor | None = None) -> Tensor:
        if self._rows is None:
            self._rows = self.live.class_embeddings(list(self.class_names), self.templates)
        return self._rows

    def train(self, mode: bool = True) -> PromptPairs:
        self._rows = None
        super().train(mode)
        return self

    def settle(self) -> None:
        self._rows = None

    def loss(self, batch: Any) -> Float[Tensor, ""]:
        drawn = torch.randint(len(self.templates), batch.targets.shape, generator=batch.generator)
        number = batch.targets.cpu() * len(self.templates) + drawn
        batch.notes["floor"] = floor(number, batch.targets, self.config.duplicates)
        features = self.image(batch.images) if self.needs_images else batch.features
        groups = batch.targets if self.config.duplicates != "separate" else None
        return contrastive_loss(
            features, self.prompt_rows(number), self.live.scale(), groups=groups, duplicates=self.config.duplicates
        ).loss  # fmt: skip

    def prompt_rows(self, number: Int[Tensor, " B"]) -> Float[Tensor, "B E"]:
        """Unit rows of prompts by their numbers (class * templates + template); each different one is encoded once."""
        places: dict[int, int] = {}
        for value in number.tolist():
            places.setdefault(value, len(places))
        ids = [self.grid[value // len(self.templates)][value % len(self.templates)] for value in places]
        text = self.live.config.text
        tokens = pack(ids, self.live.tokenizer.pad_id, text.context_length if text.sees_padding else None)
        rows = self.live.encode_text(tokens, normalize=True)
        return rows[torch.tensor([places[value] for value in number.tolist()], device=rows.device)]


def floor(number: Int[Tensor, " B"], targets: Int[Tensor, " B"], duplicates: str) -> float:
    """The least that the loss of a batch can be."""
    if duplicates == "ignore":
        return 0.0
    alike = number if duplicates == "separate" else targets
    _, members, counts = torch.unique(alike, return_inverse=True, return_counts=True)
    return float(counts[members].double().log().mean())
