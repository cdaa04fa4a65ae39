"""Towers that the package `transformers` builds (extra `towers`), for families that have no module of their own here.

The module comes from the settings that are saved with our model and the weights from our file, so that neither the source
folder nor the network is needed again; only the package is. What a tower of this kind cannot do, inserted tokens and
block outputs, it refuses.

Letters: B batch, T tokens, W width, E embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ostension.errors import ConfigError, require_extra
from ostension.model.insert import TextInsert, VisualInsert
from ostension.model.taps import Taps
from ostension.model.towers.bert import by_length, check_ids, masked_mean, shortened
from ostension.model.towers.config import TransformersImageConfig, TransformersTextConfig
from ostension.runtime import seed_for
from ostension.shapes import Float, Int


class _TransformersTower(nn.Module):
    """What both sides share: the wrapped module `hf`, pooling, projection."""

    config: TransformersImageConfig | TransformersTextConfig
    proj: nn.Parameter | None

    def __init__(self, config: Any, embed_dim: int):
        super().__init__()
        self.config = config
        self.hf = build(config.settings, 0)
        self.proj = nn.Parameter(torch.empty(config.width, embed_dim)) if config.projection else None

    def redraw(self, seed: int) -> None:
        """Random weights by the family's own initialisation."""
        self.hf.load_state_dict(build(self.config.settings, seed).state_dict())

    def tap_names(self) -> tuple[str, ...]:
        """The intermediates that `taps` may name."""
        return ("pooled", "embedding")

    def groups(self) -> list[tuple[str, ...]]:
        """Its parts from the input to the embedding: the wrapped module is one of them."""
        return [("hf.",)] if self.proj is None else [("hf.",), ("proj",)]

    def project(self, pooled: Float[Tensor, "B W"]) -> Float[Tensor, "B E"]:
        """The embeddings of features."""
        return pooled if self.proj is None else pooled @ self.proj

    def _finish(self, pooled: Tensor, insert: VisualInsert | TextInsert | None, taps: Taps | None) -> Tensor:
        embedding = self.project(pooled)
        if insert is not None and insert.adapter is not None:
            embedding = insert.adapter(embedding)
        if taps is not None:
            taps.put("pooled", pooled)
            taps.put("embedding", embedding)
        return embedding

    def _refuse(self, insert: VisualInsert | TextInsert | None, *tokens: object) -> None:
        if insert is not None and (insert.hook is not None or any(value is not None for value in tokens)):
            family = self.config.settings["model_type"]
            raise ConfigError(f"tokens and hooks cannot be inserted into a {family!r} of the package transformers")


class TransformersImageTower(_TransformersTower):
    """An image as one vector."""

    config: TransformersImageConfig

    def forward(
        self, images: Float[Tensor, "B 3 S S"], *, insert: VisualInsert | None = None, taps: Taps | None = None
    ) -> Float[Tensor, "B E"]:
        """The embedding.

        Raises:
            ConfigError: for an insert of tokens or a hook.
        """
        self._refuse(insert, None if insert is None else insert.tokens, None if insert is None else insert.deep)
        found = self.hf(pixel_values=images)
        if self.config.pool == "pooler":
            pooled = found.pooler_output.flatten(1)
        elif self.config.pool == "class":
            pooled = found.last_hidden_state[:, 0]
        else:
            states = found.last_hidden_state  # (B, T, W), or (B, W, H, W') of a convolutional family
            pooled = states.mean(dim=1) if states.ndim == 3 else states.mean(dim=(2, 3))
        return self._finish(pooled, insert, taps)


class TransformersTextTower(_TransformersTower):
    """A text as one vector."""

    config: TransformersTextConfig

    def forward(
        self, tokens: Int[Tensor, "B T"], *, insert: TextInsert | None = None, taps: Taps | None = None, plain: bool = False
    ) -> Float[Tensor, "B E"]:
        """The embedding; `plain` takes all rows together at their full length.

        Raises:
            ConfigError: for an insert of contexts or a hook.
            DataError: for more positions than the context length, or an id outside the vocabulary.
        """
        self._refuse(insert, None if insert is None else insert.context)
        check_ids(tokens, self.config.context_length, self.config.vocab_size)
        if plain or tokens.shape[0] == 0:
            pooled = self._features(tokens)
        elif torch.is_grad_enabled():
            pooled = self._features(shortened(tokens, self.config.pad_id))
        else:
            pooled = by_length(tokens, self.config.pad_id, self._features)
        return self._finish(pooled, insert, taps)

    def _features(self, tokens: Tensor) -> Tensor:
        real = tokens != self.config.pad_id
        found = self.hf(input_ids=tokens, attention_mask=real.long())
        if self.config.pool == "pooler":
            return found.pooler_output
        states = found.last_hidden_state
        return states[:, 0] if self.config.pool == "class" else masked_mean(states, real)


def build(settings: dict[str, Any], seed: int) -> nn.Module:
    """The module that `settings` describe, on the processor, with random weights of its family's initialisation.

    Raises:
        ConfigError: if the package does not know the family.
        MissingExtraError: without the package.
    """
    transformers = require_extra("transformers", "towers")
    family = settings["model_type"]
    if family not in transformers.CONFIG_MAPPING:
        raise ConfigError(f"the package transformers {transformers.__version__} does not know the family {family!r}")
    config = transformers.AutoConfig.for_model(**settings)
    # Real tensors even while the model around it is built without any: its tables of positions are not in its state.
    with torch.random.fork_rng([]), torch.device("cpu"):
        torch.manual_seed(seed_for(seed, "transformers", str(family)))
        module = transformers.AutoModel.from_config(config)
    return module.to(torch.float32)
