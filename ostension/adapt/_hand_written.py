"""Additions that keep the hand-written prompts' rows as W and change what stands beside them.

Letters: B batch, C classes, E embedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Tensor

from ostension.adapt.base import TEMPLATE, Addition, Examples
from ostension.model.clip import CLIP

T = TypeVar("T")


class HandWritten(Addition):
    """W is the prompt ensemble of `config.templates`, computed once; it is made anew from other names."""

    rows: Tensor

    def __init__(self, model: CLIP, config: Any, class_names: Sequence[str], *, seed: int = 0):
        super().__init__(model, config, class_names, seed=seed)
        made = model.classifier(self.class_names, list(config.templates or (TEMPLATE,))).weights
        self.register_buffer("rows", made, persistent=False)

    def weights(self, features: Tensor | None = None) -> Tensor:
        return self.rows


def with_templates(config: T, examples: Examples) -> T:
    """The settings with the task's templates where they name none."""
    return config if config.templates else dataclasses.replace(config, templates=tuple(examples.templates))  # type: ignore
