"""EfficientNet-Lite: inverted bottlenecks of depthwise convolutions, ReLU6, and the mean of the last map.

It is EfficientNet without squeeze-and-excitation and with ReLU6 in place of swish; stem and last convolution keep their
widths in every size. Convolutions are padded as TensorFlow's "SAME" does: with an even number of pixels and stride 2 the
odd one out is on the right and at the bottom.

Letters: B batch, W width, E embedding.

Source: efficientnet_lite_builder.py of tensorflow/tpu for the shape; the package `efficientnet-lite-pytorch` 0.1.0 for
the padding and the batch norm's settings, and as the oracle of the tests.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ostension.errors import ConfigError
from ostension.model.insert import VisualInsert
from ostension.model.taps import Taps
from ostension.model.towers.config import EfficientNetConfig
from ostension.shapes import Float

# TensorFlow's momentum 0.99 and epsilon 1e-3; torch counts the momentum from the other side.
MOMENTUM, EPSILON = 0.01, 1e-3


class ConvNorm(nn.Module):
    """A convolution without bias, padded as "SAME", its batch norm, and ReLU6 where wanted."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, *, depthwise: bool = False, relu: bool = True
    ):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=inputs if depthwise else 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=EPSILON, momentum=MOMENTUM)
        self.kernel, self.stride, self.relu = kernel, stride, relu

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D G G2"]:
        height, width = (same_padding(size, self.kernel, self.stride) for size in x.shape[2:])
        if height == width and height[0] == height[1]:
            x = F.conv2d(x, self.conv.weight, None, self.stride, height[0], 1, self.conv.groups)
        else:
            x = F.conv2d(F.pad(x, (*width, *height)), self.conv.weight, None, self.stride, 0, 1, self.conv.groups)
        x = self.bn(x)
        return F.relu6(x) if self.relu else x


class InvertedBottleneck(nn.Module):
    """1 x 1 to more channels, depthwise, 1 x 1 back, and the shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = inputs * expansion
        self.expand = ConvNorm(inputs, inner) if expansion > 1 else None
        self.depthwise = ConvNorm(inner, inner, kernel, stride, depthwise=True)
        self.project = ConvNorm(inner, outputs, relu=False)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D G G2"]:
        y = x if self.expand is None else self.expand(x)
        y = self.project(self.depthwise(y))
        return x + y if self.shortcut else y


class EfficientNetLite(nn.Module):
    """An image as one vector: the mean of the last map, and its projection where there is one."""

    def __init__(self, config: EfficientNetConfig, embed_dim: int):
        super().__init__()
        self.config = config
        self.stem = ConvNorm(3, config.stem, 3, 2)
        channels, blocks = config.stem, []
        for stage in config.stages:
            for index in range(stage.blocks):
                stride = stage.stride if index == 0 else 1
                blocks.append(InvertedBottleneck(channels, stage.channels, stage.kernel, stride, stage.expansion))
                channels = stage.channels
        self.blocks = nn.ModuleList(blocks)
        self.last = ConvNorm(channels, config.width)
        self.proj = nn.Parameter(torch.empty(config.width, embed_dim)) if config.projection else None
        self.checkpointing = False

    def tap_names(self) -> tuple[str, ...]:
        """The intermediates that `taps` may name."""
        return ("embedded", *(f"blocks.{index}" for index in range(len(self.blocks))), "patches", "pooled", "embedding")

    def groups(self) -> list[tuple[str, ...]]:
        """Its parts from the input to the embedding, as beginnings of parameter names; a run may train the last ones only."""
        parts: list[tuple[str, ...]] = [("stem.",), *((f"blocks.{index}.",) for index in range(len(self.blocks))), ("last.",)]
        return parts if self.proj is None else [*parts, ("proj",)]

    def project(self, pooled: Float[Tensor, "B W"]) -> Float[Tensor, "B E"]:
        """The embeddings of features."""
        return pooled if self.proj is None else pooled @ self.proj

    def forward(
        self, images: Float[Tensor, "B 3 S S"], *, insert: VisualInsert | None = None, taps: Taps | None = None
    ) -> Float[Tensor, "B E"]:
        """The embedding.

        Raises:
            ConfigError: when the insert brings visual tokens, which a convolution cannot take.
        """
        if insert is not None and (insert.tokens is not None or insert.deep is not None):
            raise ConfigError("visual tokens are for a vision transformer and this image tower is an EfficientNet")
        x = self.stem(images.contiguous(memory_format=torch.channels_last))
        if taps is not None:
            taps.put("embedded", x)
        for index, block in enumerate(self.blocks):
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointing and torch.is_grad_enabled() else block(x)
            if insert is not None and insert.hook is not None:
                x = insert.hook(index, x)
            if taps is not None:
                taps.put(f"blocks.{index}", x)
        x = self.last(x)
        pooled = x.mean(dim=(2, 3))
        embedding = self.project(pooled)
        if insert is not None and insert.adapter is not None:
            embedding = insert.adapter(embedding)
        if taps is not None:
            taps.put("patches", x.flatten(2).transpose(1, 2))
            taps.put("pooled", pooled)
            taps.put("embedding", embedding)
        return embedding


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Pixels before and after, so that ceil(size / stride) positions come out; the odd one comes after."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2
