"""CLIP's residual network: a three-convolution stem, anti-aliased bottlenecks, and attention instead of a mean at the end.

Departures from ResNet-50 as published: three 3 x 3 convolutions before an average pool (no max pool); strides by average
pooling before a 1 x 1 convolution, in the residual path and in the shortcut; the map is read by multi-head attention whose
query is its mean. Submodule names are OpenAI's; the shortcut's pool has no weights, so it is applied in `forward`.

Letters: B batch, W width of the stem, P positions of the last map, E embedding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ostension.errors import ConfigError
from ostension.model.config import ResNetConfig
from ostension.model.fused import conv_norm, linear
from ostension.model.insert import VisualInsert
from ostension.model.layers import attention, split_heads
from ostension.model.taps import Taps
from ostension.shapes import Float

EXPANSION = 4  # channels that leave a bottleneck over those inside it


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, pool, 1 x 1, plus the shortcut; every convolution has stride 1."""

    def __init__(self, channels: int, planes: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * EXPANSION, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * EXPANSION)
        self.stride = stride
        self.downsample = None
        if stride > 1 or channels != planes * EXPANSION:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, planes * EXPANSION, 1, bias=False), nn.BatchNorm2d(planes * EXPANSION)
            )

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D G G2"]:
        out = conv_norm(conv_norm(x, self.conv1, self.bn1), self.conv2, self.bn2)
        if self.stride > 1:
            out, x = F.avg_pool2d(out, self.stride), F.avg_pool2d(x, self.stride)
        if self.downsample is not None:
            x = conv_norm(x, self.downsample[0], self.downsample[1], relu=False)  # type: ignore[arg-type]
        return conv_norm(out, self.conv3, self.bn3, shortcut=x)


class MapAttentionPool(nn.Module):
    """One attention whose query is the mean of the map, and the projection to the embedding."""

    def __init__(self, config: ResNetConfig, embed_dim: int):
        super().__init__()
        width = config.channels
        self.heads = config.heads
        self.positional_embedding = nn.Parameter(torch.empty(config.grid**2 + 1, width))
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, embed_dim)

    def forward(self, x: Float[Tensor, "B P W"]) -> tuple[Float[Tensor, "B W"], Float[Tensor, "B E"]]:
        """The feature before and after the projection."""
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.positional_embedding
        q, k, v = (
            split_heads(linear(part, projection.weight, projection.bias), self.heads)
            for projection, part in ((self.q_proj, x[:, :1]), (self.k_proj, x), (self.v_proj, x))
        )
        pooled = attention(q, k, v).flatten(1)
        return pooled, linear(pooled, self.c_proj.weight, self.c_proj.bias)


class ResNet(nn.Module):
    """An image as one vector; the head is `attnpool`, or the matrix `proj` of the flattened map."""

    def __init__(self, config: ResNetConfig, embed_dim: int):
        super().__init__()
        self.config = config
        width = config.width
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        channels = width
        for stage, depth in enumerate(config.layers):
            planes = width * 2**stage
            blocks = [Bottleneck(channels, planes, 1 if stage == 0 else 2)]
            channels = planes * EXPANSION
            blocks += [Bottleneck(channels, planes, 1) for _ in range(1, depth)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        flat = config.pool == "flatten"
        self.attnpool = None if flat else MapAttentionPool(config, embed_dim)
        self.proj = nn.Parameter(torch.empty(config.grid**2 * config.channels, embed_dim)) if flat else None
        self.checkpointing = False

    def groups(self) -> list[tuple[str, ...]]:
        """Its parts from the input to the embedding, as beginnings of parameter names; a run may train the last ones only.

        The attention pool is one part: its queries, keys and values belong to its projection.
        """
        stem = ("conv1.", "bn1.", "conv2.", "bn2.", "conv3.", "bn3.")
        stages = [(f"layer{stage + 1}.",) for stage in range(len(self.config.layers))]
        return [stem, *stages, ("attnpool.", "proj")]

    def project(self, pooled: Float[Tensor, "B W"]) -> Float[Tensor, "B E"]:
        """The embeddings of features."""
        if self.attnpool is not None:
            return linear(pooled, self.attnpool.c_proj.weight, self.attnpool.c_proj.bias)
        assert self.proj is not None
        return pooled @ self.proj

    def tap_names(self) -> tuple[str, ...]:
        """The intermediates that `taps` may name."""
        return ("embedded", *(f"blocks.{stage}" for stage in range(len(self.config.layers))), "patches", "pooled", "embedding")

    def forward(
        self, images: Float[Tensor, "B 3 S S"], *, insert: VisualInsert | None = None, taps: Taps | None = None
    ) -> Float[Tensor, "B E"]:
        """The embedding.

        Raises:
            ConfigError: when the insert brings visual tokens, which a convolution cannot take.
        """
        if insert is not None and (insert.tokens is not None or insert.deep is not None):
            raise ConfigError("visual tokens are for a vision transformer and this image tower is a ResNet")
        x = images.contiguous(memory_format=torch.channels_last)
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = conv_norm(x, conv, norm)
        if self.config.stem_pool:
            x = F.avg_pool2d(x, 2)
        if taps is not None:
            taps.put("embedded", x)
        for stage in range(len(self.config.layers)):
            for block in getattr(self, f"layer{stage + 1}"):
                x = _recomputed(block, x) if self.checkpointing and torch.is_grad_enabled() else block(x)
            if insert is not None and insert.hook is not None:
                x = insert.hook(stage, x)
            if taps is not None:
                taps.put(f"blocks.{stage}", x)
        x = x.flatten(2).transpose(1, 2)  # B P W
        pooled, embedding = self._head(x)
        if insert is not None and insert.adapter is not None:
            embedding = insert.adapter(embedding)
        if taps is not None:
            taps.put("patches", x)
            taps.put("pooled", pooled)
            taps.put("embedding", embedding)
        return embedding

    def _head(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The feature of the last map (B, P, W) before and after the projection."""
        if self.attnpool is not None:
            return self.attnpool(x)
        pooled = x.flatten(1)  # (B, P * channels)
        return pooled, self.project(pooled)


def _recomputed(block: Bottleneck, x: Tensor) -> Tensor:
    """The block's output, its activations computed again on the way back."""
    return checkpoint(block, x, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), _buffers_kept(block)))


@contextlib.contextmanager
def _buffers_kept(block: Bottleneck) -> Iterator[None]:
    """While entered, batch norm moves its statistics in vain: they have seen this batch already."""
    buffers = [(buffer, buffer.clone()) for buffer in block.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
