"""What a service has to know of a model without its weights: the configuration, the preprocessing, the tokenizer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ostension.errors import CheckpointError, OstensionError


@dataclasses.dataclass(frozen=True)
class ModelFiles:
    """A model's configuration and what it does to inputs.

    Attributes:
        config: `model.config.ModelConfig`.
        tokenizer: of the model.
    """

    config: Any
    tokenizer: Any

    @property
    def name(self) -> str:
        """The model's name, or what kind of towers it has."""
        return self.config.name or "model"

    def transform(self, max_pixels: int) -> Any:
        """The model's preprocessing, for pictures of at most so many pixels."""
        from ostension.image.transforms import Transform

        preprocess = self.config.preprocess
        return Transform(dataclasses.replace(preprocess, max_pixels=min(max_pixels, preprocess.max_pixels)))

    @staticmethod
    def of(model: Any) -> ModelFiles:
        """Those of a model in memory."""
        return ModelFiles(model.config, model.tokenizer)


def read_model_files(model: str | Path) -> ModelFiles:
    """Those of a model's files, or of exported graphs; the weights are looked at and not read.

    Raises:
        CheckpointError: if there is no model, something about it is not known, or it has no tokenizer.
    """
    import torch

    from ostension.export.folder import is_export, open_export, tokenizer_of
    from ostension.formats.load import attach_tokenizer
    from ostension.formats.reader import open_weights
    from ostension.model.clip import CLIP

    if is_export(model):
        exported = open_export(model, check=False)  # the process that opens the graphs compares them with their sums
        try:
            return ModelFiles(exported.config, tokenizer_of(exported))
        except OstensionError as error:
            raise CheckpointError(f"has no tokenizer that can be used: {error}", source=model) from None
    opened = open_weights(model)
    with torch.device("meta"):
        shell = CLIP(opened.config, seed=None)
    attach_tokenizer(shell, opened)
    try:
        return ModelFiles(opened.config, shell.tokenizer)
    except Exception as error:
        raise CheckpointError(f"has no tokenizer that can be used: {error}", source=model) from None
