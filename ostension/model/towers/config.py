"""Towers that are not CLIP's own, as data: EfficientNet-Lite, BERT, and what the package `transformers` can build.

They are read from folders and packages of weights (`formats.towers`) and saved with the model like any other tower, so a
model that was put together from them loads without its sources. Letters: W width, L layers, H heads, E embedding.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from ostension.config import require


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of an EfficientNet-Lite: `blocks` inverted bottlenecks, the first of them with the stride.

    Attributes:
        kernel: side of the depthwise convolution.
        expansion: channels inside a bottleneck over those that enter it.
        channels: that leave it.
    """

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int

    def __post_init__(self):
        for key in ("blocks", "kernel", "stride", "expansion", "channels"):
            require(getattr(self, key) >= 1, f"vision.stages.{key}", getattr(self, key), "1 or more")


# efficientnet_lite_builder.py of tensorflow/tpu: kernel, stride, expansion, channels and blocks of each stage.
LITE0 = (
    Stage(blocks=1, kernel=3, stride=1, expansion=1, channels=16),
    Stage(blocks=2, kernel=3, stride=2, expansion=6, channels=24),
    Stage(blocks=2, kernel=5, stride=2, expansion=6, channels=40),
    Stage(blocks=3, kernel=3, stride=2, expansion=6, channels=80),
    Stage(blocks=3, kernel=5, stride=1, expansion=6, channels=112),
    Stage(blocks=4, kernel=5, stride=2, expansion=6, channels=192),
    Stage(blocks=1, kernel=3, stride=1, expansion=6, channels=320),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EfficientNetConfig:
    """EfficientNet-Lite, a convolutional network without squeeze-and-excitation; the defaults are Lite0.

    Attributes:
        stem: channels after the first convolution.
        stages: inverted bottlenecks.
        width: channels W of the last map, whose mean is the feature.
        projection: a W x E matrix after the mean; without it W must equal E.
    """

    kind: Literal["efficientnet_lite"] = "efficientnet_lite"
    image_size: int = 224
    stem: int = 32
    stages: tuple[Stage, ...] = LITE0
    width: int = 1280
    projection: bool = True

    def __post_init__(self):
        require(bool(self.stages), "vision.stages", self.stages, "one or more")
        require(self.image_size >= self.stride, "vision.image_size", self.image_size, f"{self.stride} or more")
        for key in ("stem", "width"):
            require(getattr(self, key) >= 1, f"vision.{key}", getattr(self, key), "1 or more")

    @property
    def stride(self) -> int:
        """Pixels a side of one position of the last map."""
        return 2 * math.prod(stage.stride for stage in self.stages)

    @property
    def depth(self) -> int:
        """Blocks."""
        return sum(stage.blocks for stage in self.stages)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertConfig:
    """A BERT text encoder: attends both ways over a text's own tokens, LayerNorm after each half of a block.

    Attributes:
        context_length: positions of the table (512 in BERT); texts may be cut shorter by the tokenizer.
        pad_id: the token that is not there: nothing attends to it.
        pool: the feature, "mean" of a text's tokens (sentence encoders) or "class", the first of them.
        projection: a W x E matrix after pooling; without it W must equal E.
    """

    kind: Literal["bert"] = "bert"
    context_length: int = 512
    vocab_size: int = 30522
    width: int
    layers: int
    head_width: int = 64
    mlp_ratio: float = 4.0
    activation: Literal["quick_gelu", "gelu", "gelu_tanh"] = "gelu"
    pad_id: int = 0
    pool: Literal["mean", "class"]
    projection: bool = True
    norm_eps: float = 1e-12

    def __post_init__(self):
        for key in ("context_length", "vocab_size", "width", "layers", "head_width"):
            require(getattr(self, key) >= 1, f"text.{key}", getattr(self, key), "1 or more")
        require(0 < self.mlp_ratio < math.inf, "text.mlp_ratio", self.mlp_ratio, "a positive number")
        require(self.width % self.head_width == 0, "text.width", self.width, f"a multiple of head_width {self.head_width}")
        require(0 <= self.pad_id < self.vocab_size, "text.pad_id", self.pad_id, "an id of the vocabulary")

    @property
    def heads(self) -> int:
        return self.width // self.head_width

    @property
    def mlp_width(self) -> int:
        return int(self.width * self.mlp_ratio)

    @property
    def depth(self) -> int:
        """Blocks."""
        return self.layers

    @property
    def sees_padding(self) -> bool:
        """Whether what stands after a text changes its embedding."""
        return False


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformersImageConfig:
    """An image encoder that the package `transformers` (extra `towers`) builds, for families without a module of our own.

    Attributes:
        settings: its `config.json`, with `model_type`.
        width: W, its `hidden_size`.
        pool: the feature: the "class" token's last state, the "mean" of all tokens, or the model's own "pooler" output.
        projection: a W x E matrix after pooling; without it W must equal E.
    """

    kind: Literal["transformers"] = "transformers"
    image_size: int
    settings: dict[str, Any]
    width: int
    pool: Literal["class", "mean", "pooler"]
    projection: bool = True

    def __post_init__(self):
        require(self.image_size >= 1, "vision.image_size", self.image_size, "1 or more")
        require("model_type" in self.settings, "vision.settings", sorted(self.settings), "a 'model_type' among them")

    @property
    def depth(self) -> int:
        """Blocks, as far as its settings say."""
        return int(self.settings.get("num_hidden_layers", 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformersTextConfig:
    """A text encoder that the package `transformers` (extra `towers`) builds; see `TransformersImageConfig`.

    Attributes:
        pad_id: the token that is not there: it is masked, and takes no part in the mean.
        pool: "class" is the first token's last state.
    """

    kind: Literal["transformers"] = "transformers"
    context_length: int
    vocab_size: int
    settings: dict[str, Any]
    width: int
    pad_id: int
    pool: Literal["class", "mean", "pooler"]
    projection: bool = True

    def __post_init__(self):
        require("model_type" in self.settings, "text.settings", sorted(self.settings), "a 'model_type' among them")
        require(0 <= self.pad_id < self.vocab_size, "text.pad_id", self.pad_id, "an id of the vocabulary")

    @property
    def depth(self) -> int:
        """Blocks, as far as its settings say."""
        return int(self.settings.get("num_hidden_layers", 1))

    @property
    def sees_padding(self) -> bool:
        """Whether what stands after a text changes its embedding."""
        return False


@dataclasses.dataclass(frozen=True, kw_only=True)
class BagConfig:
    """A text tower that knows no order: the mean of a text's token embeddings, and a projection (`towers.bag_of_words`)."""

    kind: Literal["bag_of_words"] = "bag_of_words"
    context_length: int = 77
    vocab_size: int = 49408
    width: int = 512

    def __post_init__(self):
        for key in ("context_length", "vocab_size", "width"):
            require(getattr(self, key) >= 1, f"text.{key}", getattr(self, key), "1 or more")

    @property
    def projection(self) -> bool:
        """This tower always ends in one."""
        return True

    @property
    def depth(self) -> int:
        """Blocks: none."""
        return 0

    @property
    def sees_padding(self) -> bool:
        """Whether what stands after a text changes its embedding."""
        return False
