"""The text transformer: CLIP's (causal, read at the end token) and SigLIP's (both ways, read at the last position).

`forward` has a fast path and a plain one with equal results. Under a causal mask a position's state depends on the
positions before it only, so the fast path computes each distinct prefix of the batch once (`prefix_tree`), nothing after
the end token, and in the last block only the position that is read. The plain path runs all positions of all rows through
all blocks; it is the reference, and what hooks and taps of single positions use. A tower without the mask runs all
positions too, and saves in the last block only.

Letters: B batch, C prompts, T tokens, W width, E embedding, R rows (B, or B x C with contexts per image).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ostension.errors import DataError
from ostension.model.config import TextConfig
from ostension.model.fused import traced
from ostension.model.insert import Hook, Layout, TextInsert, lay_out
from ostension.model.layers import BlockFunction, Transformer
from ostension.model.prefix_tree import plan, run_tree
from ostension.model.taps import Taps
from ostension.shapes import Float, Int

# Nodes (tokens that are computed) that pass the blocks together without gradients, which bounds the memory.
MAX_NODES = 4096


class TextTransformer(nn.Module):
    """A token sequence as one vector."""

    def __init__(self, config: TextConfig, embed_dim: int):
        super().__init__()
        self.config = config
        # Not nn.Embedding(...): its normal_ on the meta device imports torch's compiler, 1.5 to 2 s of every start.
        table = torch.empty(config.vocab_size, config.width)
        self.token_embedding = nn.Embedding.from_pretrained(table, freeze=False)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, config.width))
        self.transformer = Transformer(
            config.width, config.layers, config.heads, config.mlp_width, config.activation, config.norm_eps
        )
        self.ln_final = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.text_projection = nn.Parameter(torch.empty(config.width, embed_dim))
        self.text_projection_bias = nn.Parameter(torch.empty(embed_dim)) if config.projection_bias else None

    def groups(self) -> list[tuple[str, ...]]:
        """Its parts from the input to the embedding, as beginnings of parameter names; a run may train the last ones only."""
        blocks = [(f"transformer.resblocks.{index}.",) for index in range(self.config.layers)]
        first = ("token_embedding.", "positional_embedding")
        return [first, *blocks[:-1], (*blocks[-1], "ln_final."), ("text_projection",)]

    def project(self, pooled: Float[Tensor, "*B W"]) -> Float[Tensor, "*B E"]:
        """The embeddings of features."""
        embedding = pooled @ self.text_projection
        return embedding if self.text_projection_bias is None else embedding + self.text_projection_bias

    def tap_names(self) -> tuple[str, ...]:
        """The intermediates that `taps` may name."""
        blocks = (f"blocks.{index}" for index in range(self.config.layers))
        return ("embedded", *blocks, "tokens", "pooled", "embedding")

    def ends(self, tokens: Int[Tensor, "B T"]) -> Int[Tensor, " B"]:
        """The position of each row that is read: the highest id, the first `eos_id`, or the last."""
        if self.config.pool == "argmax":
            return tokens.argmax(dim=1)
        if self.config.eos_id is not None:
            return tokens.eq(self.config.eos_id).int().argmax(dim=1)
        return torch.full((tokens.shape[0],), tokens.shape[1] - 1, device=tokens.device)

    def forward(
        self, tokens: Int[Tensor, "B T"], *, insert: TextInsert | None = None, taps: Taps | None = None, plain: bool = False
    ) -> Float[Tensor, "*B E"]:
        """Embeddings (B, E), or (B images, C prompts, E) with contexts per image.

        Raises:
            DataError: for more positions than the context length, or an id outside the vocabulary.
        """
        self._check(tokens)
        layout = lay_out(tokens, self.ends(tokens), insert, self.config.context_length)
        hook = None if insert is None else insert.hook
        whole = plain or hook is not None or (taps is not None and taps.inner) or tokens.shape[0] == 0
        if self.config.causal and not whole:
            read = self._read_tree(layout)
        else:
            read = self._read_all(layout, hook, taps, whole)
        pooled = self.ln_final(read)
        embedding = self.project(pooled)
        embedding = embedding.view(*layout.shape, embedding.shape[-1])
        if insert is not None and insert.adapter is not None:
            embedding = insert.adapter(embedding)
        if taps is not None:
            taps.put("pooled", pooled)
            taps.put("embedding", embedding)
        return embedding

    def _check(self, tokens: Tensor) -> None:
        if tokens.shape[1] > self.config.context_length:
            raise DataError(
                f"the tokens have {tokens.shape[1]} positions",
                expected=f"at most the context length {self.config.context_length}",
            )
        if not traced() and tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.config.vocab_size:
            raise DataError(
                f"the token ids run from {int(tokens.min())} to {int(tokens.max())}",
                expected=f"ids from 0 to {self.config.vocab_size - 1}",
                fix="use the tokenizer that belongs to the model",
            )

    def _read_tree(self, layout: Layout) -> Tensor:
        """The last block's output (R, W) at the position of each row that is read, each distinct prefix computed once."""
        most = None if torch.is_grad_enabled() else MAX_NODES
        trees = plan(layout.keys, layout.ends, most, width=self.config.width)
        read = []
        for tree, _ in trees:
            x = self._embed(tree.keys, layout.bank) + self.positional_embedding[tree.positions]
            read.append(run_tree(self.transformer, x, tree, _replacer(layout, tree.keys)))
        rows = torch.cat([covered for _, covered in trees])
        return torch.cat(read)[rows.argsort()]

    def _read_all(self, layout: Layout, hook: Hook | None, taps: Taps | None, whole: bool) -> Tensor:
        """The same with all positions of all rows computed; unless `whole`, the last block computes a last position alone."""
        x = self._embed(layout.keys, layout.bank) + self.positional_embedding[: layout.keys.shape[1]]
        before = _replacer(layout, layout.keys)
        if not whole and self.config.pool == "last":
            return self.transformer(x, before=before, position=x.shape[1] - 1)

        def after(index: int, x: Tensor) -> Tensor:
            if hook is not None:
                x = hook(index, x)
            if taps is not None:
                taps.put(f"blocks.{index}", x)
            return x

        if taps is not None:
            taps.put("embedded", x)
        x = self.transformer(x, causal=self.config.causal, before=before, after=after)
        if taps is not None and "tokens" in taps.found:
            taps.put("tokens", self.ln_final(x))
        return x[torch.arange(x.shape[0], device=x.device), layout.ends]

    def _embed(self, keys: Tensor, bank: Tensor | None) -> Tensor:
        """Token embeddings, with rows of the context bank where a key is negative."""
        x = self.token_embedding(keys.clamp(min=0))
        return x if bank is None else torch.where((keys < 0)[..., None], _bank_rows(bank, keys, x), x)


def _replacer(layout: Layout, keys: Tensor) -> BlockFunction | None:
    """The function that puts deep contexts before a block, or None."""
    deep = layout.deep
    if deep is None:
        return None

    def replace(index: int, x: Tensor) -> Tensor:
        if not 1 <= index <= len(deep):
            return x
        return torch.where((keys < 0)[..., None], _bank_rows(deep[index - 1], keys, x), x)

    return replace


def _bank_rows(bank: Tensor, keys: Tensor, like: Tensor) -> Tensor:
    return F.embedding((-1 - keys).clamp(min=0), bank.to(like))
