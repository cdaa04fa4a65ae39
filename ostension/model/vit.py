"""The vision transformer, in CLIP's form (class token, LayerNorm before the blocks) and in SigLIP's (attention-pool head).

Departures from ViT as published: `ln_pre` on the summed embeddings, no bias in the patch convolution and a projection
without bias (CLIP); no class token and a learned query that reads all patches (SigLIP). Where only the class token is
read, the last block computes that token alone.

Letters: B batch, P patches (with the class token where there is one), N inserted tokens, W width, E embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ostension.model.config import VitConfig
from ostension.model.fused import linear
from ostension.model.insert import VisualInsert
from ostension.model.layers import MLP, Attention, Transformer
from ostension.model.taps import Taps
from ostension.shapes import Float


class AttentionPool(nn.Module):
    """SigLIP's head: one learned query attends to all patches, then a residual MLP."""

    def __init__(self, config: VitConfig):
        super().__init__()
        self.probe = nn.Parameter(torch.empty(1, 1, config.width))
        self.attn = Attention(config.width, config.heads)
        self.ln = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = MLP(config.width, config.mlp_width, config.activation)

    def forward(self, x: Float[Tensor, "B P W"]) -> Float[Tensor, "B W"]:
        x = self.attn(x, query=self.probe.expand(x.shape[0], 1, -1))
        return self.mlp.residual(x, self.ln)[:, 0]


class VisionTransformer(nn.Module):
    """An image as one vector."""

    def __init__(self, config: VitConfig, embed_dim: int):
        super().__init__()
        self.config = config
        width, patches = config.width, config.grid**2
        self.conv1 = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size, bias=config.patch_bias)
        self.class_embedding = nn.Parameter(torch.empty(width)) if config.class_token else None
        self.positional_embedding = nn.Parameter(torch.empty(patches + config.class_token, width))
        self.ln_pre = nn.LayerNorm(width, eps=config.norm_eps) if config.ln_pre else nn.Identity()
        self.transformer = Transformer(width, config.layers, config.heads, config.mlp_width, config.activation, config.norm_eps)
        self.ln_post = nn.LayerNorm(width, eps=config.norm_eps)
        self.attn_pool = AttentionPool(config) if config.pool == "map" else None
        self.proj = nn.Parameter(torch.empty(width, embed_dim)) if config.projection else None

    def tap_names(self) -> tuple[str, ...]:
        """The intermediates that `taps` may name."""
        blocks = (f"blocks.{index}" for index in range(self.config.layers))
        return ("embedded", *blocks, "patches", "pooled", "embedding")

    def forward(
        self, images: Float[Tensor, "B 3 S S"], *, insert: VisualInsert | None = None, taps: Taps | None = None
    ) -> Float[Tensor, "B E"]:
        x, kept = self._embed(images, insert)
        if taps is not None:
            taps.put("embedded", x)
        hooked = insert is not None and insert.hook is not None
        whole = self.config.pool != "class" or hooked or (taps is not None and taps.inner)
        x = self.transformer(
            x, before=_replacer(insert, kept), after=_observer(insert, taps) if whole else None, position=None if whole else 0
        )
        pooled = self._pool(x[:, :kept], taps) if whole else self.ln_post(x)
        embedding = pooled if self.proj is None else pooled @ self.proj
        if insert is not None and insert.adapter is not None:
            embedding = insert.adapter(embedding)
        if taps is not None:
            taps.put("pooled", pooled)
            taps.put("embedding", embedding)
        return embedding

    def _embed(self, images: Tensor, insert: VisualInsert | None) -> tuple[Tensor, int]:
        """What enters the first block (B, P + N, W), and P."""
        x = self._patches(images)
        if self.class_embedding is not None:
            x = torch.cat([self.class_embedding.expand(x.shape[0], 1, -1), x], dim=1)
        x = x + self.positional_embedding
        kept = x.shape[1]
        tokens = None if insert is None else insert.first(len(x), x)
        if tokens is None:
            return self.ln_pre(x), kept
        assert insert is not None
        if insert.place == "before_ln_pre":
            return self.ln_pre(torch.cat([x, tokens], dim=1)), kept
        return torch.cat([self.ln_pre(x), tokens], dim=1), kept

    def _patches(self, images: Tensor) -> Tensor:
        """The patch convolution as one matrix product (B, P, W): 1 to 1.4 times as fast on a processor."""
        grid, size = self.config.grid, self.config.patch_size
        images = images[:, :, : grid * size, : grid * size]
        pixels = images.unflatten(3, (grid, size)).unflatten(2, (grid, size)).permute(0, 2, 4, 1, 3, 5)  # B g g 3 p p
        return linear(pixels.flatten(3).flatten(1, 2), self.conv1.weight.flatten(1), self.conv1.bias)

    def _pool(self, x: Tensor, taps: Taps | None) -> Tensor:
        """The feature (B, W) of all tokens' last states (B, P, W)."""
        x = self.ln_post(x)
        if taps is not None:
            taps.put("patches", x[:, int(self.config.class_token) :])
        if self.attn_pool is not None:
            return self.attn_pool(x)
        return x[:, 0] if self.config.pool == "class" else x[:, int(self.config.class_token) :].mean(dim=1)


def _replacer(insert: VisualInsert | None, kept: int):
    """The function that puts deep tokens before a block, or None."""
    if insert is None or insert.deep is None:
        return None

    def replace(index: int, x: Tensor) -> Tensor:
        tokens = insert.replacement(index, x[:, :kept])
        return x if tokens is None else torch.cat([x[:, :kept], tokens], dim=1)

    return replace


def _observer(insert: VisualInsert | None, taps: Taps | None):
    """The function that hooks and records a block's output, or None."""
    hook = None if insert is None else insert.hook
    if hook is None and taps is None:
        return None

    def observe(index: int, x: Tensor) -> Tensor:
        if hook is not None:
            x = hook(index, x)
        if taps is not None:
            taps.put(f"blocks.{index}", x)
        return x

    return observe
