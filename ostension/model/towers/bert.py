"""BERT as a text tower: every token sees every token of its own text, padding is masked, and the mean is the feature.

Departures from BERT as published: no pooler, no second token type (a caption is one sentence), no dropout. Parameters
have the names of CLIP's text tower where the parts are the same. LayerNorm comes after each half of a block (post-LN).

Nothing depends on how far a row is padded, so rows are cut to the longest text; without gradients they are taken in groups
of similar length as well.

Letters: B batch, T tokens, W width, E embedding.

Source: Devlin et al. 2019; transformers 5 (models/bert/modeling_bert.py) as the oracle of the tests.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ostension.errors import ConfigError, DataError
from ostension.model.fused import linear, traced
from ostension.model.insert import TextInsert
from ostension.model.layers import MLP, Attention
from ostension.model.taps import Taps
from ostension.model.towers.config import BertConfig
from ostension.shapes import Bool, Float, Int

# Rows of similar length that pass the blocks together without gradients.
GROUP_ROWS = 64


class PostBlock(nn.Module):
    """x = LN(x + attention(x)), then x = LN(x + MLP(x))."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.attn = Attention(config.width, config.heads)
        self.ln_1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = MLP(config.width, config.mlp_width, config.activation)
        self.ln_2 = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(self, x: Float[Tensor, "B T W"], mask: Bool[Tensor, "B 1 1 T"]) -> Float[Tensor, "B T W"]:
        x = self.ln_1(x + self.attn(x, mask=mask))
        inner, outer = self.mlp.c_fc, self.mlp.c_proj
        hidden = linear(x, inner.weight, inner.bias, self.mlp.activation)
        return self.ln_2(x + linear(hidden, outer.weight, outer.bias))


class PostTransformer(nn.Module):
    """A stack of post-LN blocks.

    Attributes:
        checkpointing: recompute each block in the backward pass instead of keeping its activations.
    """

    def __init__(self, config: BertConfig):
        super().__init__()
        self.resblocks = nn.ModuleList(PostBlock(config) for _ in range(config.layers))
        self.checkpointing = False

    def run(self, block: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
        """One block, through a checkpoint where that is switched on and gradients are wanted."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, mask, use_reentrant=False)
        return block(x, mask)


class BertTower(nn.Module):
    """A text as one vector."""

    def __init__(self, config: BertConfig, embed_dim: int):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding.from_pretrained(torch.empty(config.vocab_size, config.width), freeze=False)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, config.width))
        self.type_embedding = nn.Parameter(torch.empty(config.width))
        self.ln_embedding = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.transformer = PostTransformer(config)
        self.text_projection = nn.Parameter(torch.empty(config.width, embed_dim)) if config.projection else None

    def tap_names(self) -> tuple[str, ...]:
        """The intermediates that `taps` may name."""
        return ("embedded", *(f"blocks.{index}" for index in range(self.config.layers)), "tokens", "pooled", "embedding")

    def groups(self) -> list[tuple[str, ...]]:
        """Its parts from the input to the embedding, as beginnings of parameter names; a run may train the last ones only."""
        first = ("token_embedding.", "positional_embedding", "type_embedding", "ln_embedding.")
        parts = [first, *((f"transformer.resblocks.{index}.",) for index in range(self.config.layers))]
        return parts if self.text_projection is None else [*parts, ("text_projection",)]

    def project(self, pooled: Float[Tensor, "B W"]) -> Float[Tensor, "B E"]:
        """The embeddings of features."""
        return pooled if self.text_projection is None else pooled @ self.text_projection

    def forward(
        self, tokens: Int[Tensor, "B T"], *, insert: TextInsert | None = None, taps: Taps | None = None, plain: bool = False
    ) -> Float[Tensor, "B E"]:
        """Embeddings (B, E).

        Args:
            plain: all rows together at their full length; the result is the same, and this is the reference.

        Raises:
            ConfigError: when the insert brings soft contexts, which this tower does not take.
            DataError: for more positions than the context length, or an id outside the vocabulary.
        """
        if insert is not None and insert.context is not None:
            raise ConfigError("soft text contexts are for CLIP's text tower and this one is a BERT")
        check_ids(tokens, self.config.context_length, self.config.vocab_size)
        hook = None if insert is None else insert.hook
        whole = plain or hook is not None or (taps is not None and taps.inner) or traced() or tokens.shape[0] == 0
        if whole or torch.is_grad_enabled():
            rows = tokens if whole else shortened(tokens, self.config.pad_id)
            pooled = self._features(rows, hook, taps)
        else:
            pooled = by_length(tokens, self.config.pad_id, lambda rows: self._features(rows, None, None))
        embedding = self.project(pooled)
        if insert is not None and insert.adapter is not None:
            embedding = insert.adapter(embedding)
        if taps is not None:
            taps.put("pooled", pooled)
            taps.put("embedding", embedding)
        return embedding

    def _features(self, tokens: Tensor, hook, taps: Taps | None) -> Tensor:
        """The features (B, W) before the projection."""
        real = tokens != self.config.pad_id
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]] + self.type_embedding
        x = self.ln_embedding(x)
        if taps is not None:
            taps.put("embedded", x)
        for index, block in enumerate(self.transformer.resblocks):
            x = self.transformer.run(block, x, real[:, None, None])
            if hook is not None:
                x = hook(index, x)
            if taps is not None:
                taps.put(f"blocks.{index}", x)
        if taps is not None:
            taps.put("tokens", x)
        return x[:, 0] if self.config.pool == "class" else masked_mean(x, real)


def masked_mean(x: Float[Tensor, "B T W"], real: Bool[Tensor, "B T"]) -> Float[Tensor, "B W"]:
    """The mean over the positions that are real, summed in float32 or wider; zeros where none is."""
    wide = x if x.dtype == torch.float64 else x.float()
    weights = real.to(wide.dtype)
    total = torch.einsum("btw,bt->bw", wide, weights)
    return (total / weights.sum(dim=1, keepdim=True).clamp(min=1)).to(x.dtype)


def shortened(tokens: Int[Tensor, "B T"], pad_id: int) -> Int[Tensor, "B T2"]:
    """The rows without the columns at the end that are padding in all of them; one column at least is left."""
    used = (tokens != pad_id).any(dim=0).nonzero()
    return tokens[:, : int(used.max()) + 1 if len(used) else 1]


def by_length(tokens: Tensor, pad_id: int, features) -> Tensor:
    """`features` of all rows, called with `GROUP_ROWS` of similar length at a time."""
    order = (tokens != pad_id).sum(dim=1).argsort(descending=True, stable=True)
    parts = [features(shortened(tokens[part], pad_id)) for part in order.split(GROUP_ROWS)]
    return torch.cat(parts)[order.argsort()]


def check_ids(tokens: Int[Tensor, "B T"], context_length: int, vocab_size: int) -> None:
    """Raise a `DataError` for rows that are too long, or ids that the vocabulary does not have."""
    if tokens.shape[1] > context_length:
        raise DataError(f"the tokens have {tokens.shape[1]} positions", expected=f"at most the context length {context_length}")
    if not traced() and tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
        raise DataError(
            f"the token ids run from {int(tokens.min())} to {int(tokens.max())}",
            expected=f"ids from 0 to {vocab_size - 1}",
            fix="use the tokenizer that belongs to the model",
        )
