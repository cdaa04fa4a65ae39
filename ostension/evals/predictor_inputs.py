"""A saved predictor as what is measured: protocols that look at logits alone take it like a model.

It has answers for classes, bound to the names of each task, and neither rows of texts nor, where it changes the image side,
rows before the projection.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import safetensors.torch

from ostension.data.task import Task
from ostension.data.task_data import TaskData
from ostension.errors import ConfigError
from ostension.evals.answers import bound, logits_of, names_of, rows_of
from ostension.evals.identity import method_sha256
from ostension.evals.inputs import Names
from ostension.evals.store_inputs import Embedder, StoreInputs
from ostension.evals.task_splits import TaskSplits
from ostension.files import sha256_bytes, sha256_json
from ostension.model.predictor import Predictor, unique_labels
from ostension.shapes import Float
from ostension.store import Features, Store
from ostension.store.key import Level


class PredictorEmbedder(Embedder):
    """A predictor with the store of its encoder's embeddings.

    Args:
        name: under which its results stand; by default its kind.
        options: of `Embedder`.
    """

    def __init__(self, predictor: Predictor, store: Store, *, name: str | None = None, **options: Any):
        super().__init__(predictor.encoder, store, name=name or predictor.kind, **options)
        self.predictor, self.scale = predictor, predictor.scale
        self._pictured: dict[str, Features] = {}

    def inputs(self, splits: TaskSplits, others: Callable[[Task], TaskSplits] | None = None) -> PredictorInputs:
        return PredictorInputs(self, splits, others=others)

    def hashes(self, task: Task) -> dict[str, str]:
        return {**super().hashes(task), "predictor": self._sha256}

    @functools.cached_property
    def _sha256(self) -> str:
        """Of its settings and tensors, and of the code that makes answers of them."""
        settings, tensors = self.predictor.state()
        data = safetensors.torch.save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
        kind = self.predictor.kind
        return sha256_json([kind, settings, sha256_bytes(data), method_sha256(kind)])

    def rows(self, data: TaskData, level: Level) -> Features:
        if not self.predictor.own_images:
            return super().rows(data, level)
        if level == "pre" != self.predictor.level:
            raise ConfigError(
                f"a {self.predictor.kind!r} predictor changes the image side and has no rows before the projection",
                fix="leave out what is learned from rows, such as --set groups.probe=false",
            )
        place = f"{data.samples.fingerprint()} {sha256_json(data.task.preprocess)}"
        if place not in self._pictured:
            self._pictured[place] = rows_of(self.predictor, data, self)
        return self._pictured[place]


class PredictorInputs(StoreInputs):
    """A task and a predictor, with the task's class names."""

    embedder: PredictorEmbedder
    answers_alone = "a saved predictor answers with classes, and this looks at rows of texts or of pictures"

    def __init__(self, embedder: PredictorEmbedder, splits: TaskSplits, **options: Any):
        super().__init__(embedder, splits, **options)
        self._logits: dict[tuple[str, tuple[str, ...]], np.ndarray] = {}

    def logits(
        self, split: str = "test", names: Names | None = None, templates: Sequence[str] | None = None
    ) -> Float[np.ndarray, "N C"]:
        """The answers for a split's samples.

        Raises:
            ConfigError: for templates, or names that the predictor does not take.
        """
        if templates is not None:
            raise ConfigError("a saved predictor has its own prompts, and others have no effect", expected="the setting own")
        if not self.has(split):
            raise ConfigError(self.splits.missing(split) or f"no samples of {split!r}")
        wanted = names_of(self.task) if names is None else unique_labels(list(names.values()))
        return np.concatenate([
            self._whole_logits(name, wanted)[slice(None) if chosen is None else chosen] for name, chosen in self._parts(split)
        ])  # fmt: skip

    def _whole_logits(self, split: str, names: tuple[str, ...]) -> np.ndarray:
        if (split, names) not in self._logits:
            predictor, data = bound(self.embedder.predictor, names), self.splits.split(split)
            rows = None if predictor.depends == "views" else self._whole(split, predictor.level)
            self._logits[split, names] = logits_of(predictor, data, self.embedder, rows)
        return self._logits[split, names]

    def texts(self, prompts: Sequence[str], *, truncate: bool = False) -> np.ndarray:
        raise ConfigError(f"a {self.embedder.predictor.kind!r} predictor has answers for classes and no rows of texts")

    def classifier(self, names: Names | None = None, templates: Sequence[str] | None = None) -> np.ndarray:
        raise ConfigError(f"a {self.embedder.predictor.kind!r} predictor has answers for classes and no rows of them")
