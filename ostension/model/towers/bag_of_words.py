"""A text tower that knows no order: the mean of a text's token embeddings, projected. The third curve of CLIP's Figure 2.

The paper says of it no more than "bag-of-words encoding of text". The mean is over the tokens between start and end; a text
without any is the zero vector. Letters: B batch, T tokens, W width, E embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ostension.errors import ConfigError, DataError
from ostension.model.fused import traced
from ostension.model.insert import TextInsert
from ostension.model.taps import Taps
from ostension.model.towers.config import BagConfig
from ostension.shapes import Bool, Float, Int


class BagOfWords(nn.Module):
    """A set of tokens, each as often as it occurs, as one vector."""

    def __init__(self, config: BagConfig, embed_dim: int):
        super().__init__()
        self.config = config
        table = torch.empty(config.vocab_size, config.width)
        self.token_embedding = nn.Embedding.from_pretrained(table, freeze=False)
        self.text_projection = nn.Parameter(torch.empty(config.width, embed_dim))

    def groups(self) -> list[tuple[str, ...]]:
        """Its parts from the input to the embedding, as beginnings of parameter names."""
        return [("token_embedding.",), ("text_projection",)]

    def tap_names(self) -> tuple[str, ...]:
        """The intermediates that `taps` may name."""
        return ("pooled", "embedding")

    def ends(self, tokens: Int[Tensor, "B T"]) -> Int[Tensor, " B"]:
        """The position of each row's end token, which has the highest id."""
        return tokens.argmax(dim=1)

    def project(self, pooled: Float[Tensor, "*B W"]) -> Float[Tensor, "*B E"]:
        """The embeddings of features."""
        return pooled @ self.text_projection

    def forward(
        self, tokens: Int[Tensor, "B T"], *, insert: TextInsert | None = None, taps: Taps | None = None, plain: bool = False
    ) -> Float[Tensor, "B E"]:
        """Embeddings.

        Raises:
            ConfigError: for an insert: there are no positions to put it at.
            DataError: for an id outside the vocabulary.
        """
        if insert is not None:
            raise ConfigError("a bag of words has no place for what a method inserts into a text tower")
        if not traced() and tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.config.vocab_size:
            raise DataError(
                f"the token ids run from {int(tokens.min())} to {int(tokens.max())}",
                expected=f"ids from 0 to {self.config.vocab_size - 1}",
                fix="use the tokenizer that belongs to the model",
            )
        inside = content_mask(tokens, self.ends(tokens)).to(self.text_projection.dtype)[..., None]
        pooled = (self.token_embedding(tokens) * inside).sum(dim=1) / inside.sum(dim=1).clamp(min=1)
        embedding = self.project(pooled)
        if taps is not None:
            taps.put("pooled", pooled)
            taps.put("embedding", embedding)
        return embedding


def content_mask(tokens: Int[Tensor, "B T"], ends: Int[Tensor, " B"]) -> Bool[Tensor, "B T"]:
    """Which tokens are words: those between the start token, which is first, and the end token."""
    places = torch.arange(tokens.shape[1], device=tokens.device)
    return (places > 0) & (places < ends[:, None])
