"""The vision transformer, in CLIP's form (class token, LayerNorm before the blocks) and in SigLIP's (attention-pool head).

Departures from ViT as published: `ln_pre` on the summed embeddings, no bias in the patch convolution and a projection
without bias (CLIP); no class token and a learned query that reads all patches (SigLIP). Where only the class token is
read, the last block computes that token alone.

In training a share of the patches can be left out at random (FLIP, Li et al. 2023): `patch_dropout`, switched on by the
training loop and never saved. Each picture loses others; the class token always stays.

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
from ostension.shapes import Float, Int


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
    """An image as one vector.

    Attributes:
        patch_dropout: share p of the patches that is left out in training: int(P (1 - p)) are kept, drawn from torch's
            random state, after the positions are added and before `ln_pre`.
    """

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
        self.patch_dropout = 0.0

    def groups(self) -> list[tuple[str, ...]]:
        """Its parts from the input to the embedding, as beginnings of parameter names; a run may train the last ones only.

        As open_clip groups them: the last block goes with the LayerNorm after it.
        """
        first = ("conv1.", "class_embedding", "positional_embedding", "ln_pre.")
        blocks = [(f"transformer.resblocks.{index}.",) for index in range(self.config.layers)]
        parts = [first, *blocks[:-1], (*blocks[-1], "ln_post.", "attn_pool.")]
        return parts if self.proj is None else [*parts, ("proj",)]

    def project(self, pooled: Float[Tensor, "B W"]) -> Float[Tensor, "B E"]:
        """The embeddings of features."""
        return pooled if self.proj is None else pooled @ self.proj

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
        embedding = self.project(pooled)
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
        if self.training and self.patch_dropout > 0:
            x = some_patches(x, self.patch_dropout, int(self.config.class_token))
        kept = x.shape[1]
        tokens = None if insert is None else insert.first(x)
        if tokens is None:
            return self.ln_pre(x), kept
        assert insert is not None
        if insert.place == "before_ln_pre":
            return self.ln_pre(torch.cat([x, tokens], dim=1)), kept
        return torch.cat([self.ln_pre(x), tokens], dim=1), kept

    def pixels(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B P D"]:
        """The pixels of each patch, colour by colour."""
        grid, size = self.config.grid, self.config.patch_size
        images = images[:, :, : grid * size, : grid * size]
        pixels = images.unflatten(3, (grid, size)).unflatten(2, (grid, size)).permute(0, 2, 4, 1, 3, 5)  # B g g 3 p p
        return pixels.flatten(3).flatten(1, 2)

    def visible_states(self, images: Float[Tensor, "B 3 S S"], places: Int[Tensor, "B K"]) -> Float[Tensor, "B K W"]:
        """The last states, after the last LayerNorm, of some patches of each picture, where the tower sees no others."""
        first = int(self.config.class_token)
        x = self._patches(images) + self.positional_embedding[first:]
        x = x.gather(1, places[..., None].expand(-1, -1, x.shape[2]))
        if self.class_embedding is not None:
            own = (self.class_embedding + self.positional_embedding[0]).expand(x.shape[0], 1, -1)
            x = torch.cat([own, x], dim=1)
        return self.ln_post(self.transformer(self.ln_pre(x)))[:, first:]

    def _patches(self, images: Tensor) -> Tensor:
        """The patch convolution as one matrix product (B, P, W): 1 to 1.4 times as fast on a processor."""
        return linear(self.pixels(images), self.conv1.weight.flatten(1), self.conv1.bias)

    def _pool(self, x: Tensor, taps: Taps | None) -> Tensor:
        """The feature (B, W) of all tokens' last states (B, P, W)."""
        x = self.ln_post(x)
        if taps is not None:
            taps.put("patches", x[:, int(self.config.class_token) :])
        if self.attn_pool is not None:
            return self.attn_pool(x)
        return x[:, 0] if self.config.pool == "class" else x[:, int(self.config.class_token) :].mean(dim=1)


def some_patches(x: Float[Tensor, "B P W"], share: float, first: int) -> Float[Tensor, "B K W"]:
    """The first `first` tokens and, for each picture, int(P (1 - share)) of its P others at random, one at least."""
    count = x.shape[1] - first
    kept = max(1, int(count * (1 - share)))
    places = torch.rand(x.shape[0], count, device=x.device).topk(kept, dim=1).indices + first  # (B, K)
    patches = x.gather(1, places[..., None].expand(-1, -1, x.shape[2]))
    return patches if first == 0 else torch.cat([x[:, :first], patches], dim=1)


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
