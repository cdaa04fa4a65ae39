"""A model and a list of names as the inputs of an audit: texts are embedded as they are asked for, and nothing is stored.

Prompts that are too long are cut here, because the audit reports them as a finding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ostension.data.task import Task
from ostension.errors import ConfigError, DataError
from ostension.evals.inputs import Inputs
from ostension.shapes import Float
from ostension.store import Features
from ostension.store.key import Level, ModelKey
from ostension.text.prompts import fill


class ModelInputs(Inputs):
    """A task's words and a model; no pictures. The model is a CLIP, or embeds texts as one does."""

    def __init__(self, model: Any, task: Task):
        self.model, self.task = model, task
        self.model_name, self.scale = model.config.name or "model", float(model.scale().detach())
        self._rows: dict[str, np.ndarray] = {}

    def has(self, split: str) -> bool:
        return False

    def features(self, split: str = "test", level: Level = "post") -> Features:
        raise ConfigError(f"there are no pictures of a split {split!r}", fix="give pictures to the audit itself")

    def texts(self, prompts: Sequence[str], *, truncate: bool = True) -> Float[np.ndarray, "M E"]:
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._rows]
        if new:
            rows = self.model.embed_texts(new, truncate=truncate).cpu().numpy()
            self._rows.update(zip(new, rows, strict=True))
        return np.stack([self._rows[prompt] for prompt in prompts])

    def hashes(self) -> dict[str, str]:
        made = ModelKey.of(self.model)
        return {"weights": f"{made.weights}-{made.computed}", "class_list": self.task.class_list_sha256}


def task_of_names(names: Sequence[str], templates: Sequence[str], title: str) -> Task:
    """A task of class names and nothing else.

    Raises:
        DataError: for names that no classifier can be made of: fewer than two, one twice, an empty one.
    """
    try:
        return Task(
            title=title, name=title, version=1, classes={name: (name,) for name in names}, templates=tuple(templates),
            licence="not stated", citation="not stated",
        )  # fmt: skip
    except ConfigError as error:
        raise DataError(error.what, source=title, expected=error.expected, fix=error.fix) from None


def prompt_lengths(model: Any, task: Task) -> tuple[list[int], int]:
    """Tokens of the longest prompt of each class, with start and end, and the room that there is."""
    tokenizer = model.tokenizer
    extra = 2 if tokenizer.start_id is not None else 1
    lengths = [
        max(len(tokenizer.encode(fill(template, name))) for name in names for template in task.prompt_templates()) + extra
        for names in task.label_names().values()
    ]
    return lengths, tokenizer.context_length
