"""Stages that look at pictures and captions with a model: its settings' names, its identity, and where rows are kept."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

from ostension.curate.base import Part, Stage
from ostension.errors import DataError

if TYPE_CHECKING:
    from ostension.curate.embeddings import Embedder


class ModelStage(Stage):
    """A stage whose settings have `model`, `store`, `batch_size`, `device` and `dtype`."""

    def check(self) -> None:
        """Load the model."""
        _ = self.embedder

    def inputs(self) -> dict[str, Any]:
        """The model's weights, preprocessing, tokenizer and type."""
        return dataclasses.asdict(self.embedder.made)

    @functools.cached_property
    def embedder(self) -> Embedder:
        from ostension.curate.embeddings import embedder_of

        config = self.config
        return embedder_of(config.model, config.store, config.batch_size, config.device, config.dtype)

    def need_pictures(self, part: Part) -> None:
        """Refuse a source of captions alone."""
        if not part.has_pictures:
            what = f"{self.name} needs pictures, and the source holds captions alone"
            raise DataError(what, source=part.name, fix="get the pictures first")
