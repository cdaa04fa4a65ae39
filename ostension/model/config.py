"""What a model is made of, as data: both towers, preprocessing and tokenizer in one tree, saved as `config.json`.

Nothing here is guessed from weights: activation, preprocessing, tokenizer mode and the cap of the logit scale are facts
of the file (see `formats`). Letters: W width, L layers, H heads, P patches, E embedding, T tokens.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Literal

from ostension.config import require
from ostension.image.transforms import PreprocessConfig
from ostension.model.towers.config import (
    BagConfig,
    BertConfig,
    EfficientNetConfig,
    TransformersImageConfig,
    TransformersTextConfig,
)
from ostension.text.config import FastTokenizerConfig, SentencePieceConfig, TokenizerConfig, WordPieceConfig

Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]
ACTIVATIONS: tuple[str, ...] = ("quick_gelu", "gelu", "gelu_tanh")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VitConfig:
    """A vision transformer.

    Attributes:
        image_size: pixels a side. Where `patch_size` does not divide it, the pixels left over on the right and at the
            bottom are not seen (SigLIP So400m/14 at 384 px was trained so).
        head_width: width of one attention head; H = W / head_width (64 in every OpenAI model, 80/88/104 in H/g/bigG).
        mlp_ratio: hidden width of the MLP over W.
        class_token: prepend a learned class token (CLIP) or not (SigLIP).
        ln_pre: LayerNorm on the summed embeddings before the first block (CLIP).
        pool: "class" reads the class token, "map" is SigLIP's attention-pool head, "mean" averages the patches.
        patch_bias: a bias in the patch convolution (SigLIP).
        projection: a W x E matrix without bias after pooling (CLIP); without it W must equal E (SigLIP).
        norm_eps: epsilon of every LayerNorm (1e-5 CLIP, 1e-6 SigLIP).
    """

    kind: Literal["vit"] = "vit"
    image_size: int
    patch_size: int
    width: int
    layers: int
    head_width: int = 64
    mlp_ratio: float = 4.0
    activation: Activation
    class_token: bool = True
    ln_pre: bool = True
    pool: Literal["class", "map", "mean"] = "class"
    patch_bias: bool = False
    projection: bool = True
    norm_eps: float = 1e-5

    def __post_init__(self):
        for key in ("image_size", "patch_size", "width", "layers", "head_width"):
            require(getattr(self, key) >= 1, f"vision.{key}", getattr(self, key), "1 or more")
        require(
            self.image_size >= self.patch_size, "vision.image_size", self.image_size, f"patch_size {self.patch_size} or more"
        )
        require(0 < self.mlp_ratio < math.inf, "vision.mlp_ratio", self.mlp_ratio, "a positive number")
        require(self.width % self.head_width == 0, "vision.width", self.width, f"a multiple of head_width {self.head_width}")
        require(self.pool != "class" or self.class_token, "vision.pool", self.pool, "'map' or 'mean' without a class token")

    @property
    def heads(self) -> int:
        return self.width // self.head_width

    @property
    def depth(self) -> int:
        """Blocks."""
        return self.layers

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def mlp_width(self) -> int:
        return int(self.width * self.mlp_ratio)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """CLIP's residual network: three-convolution stem, blur-pooled bottlenecks, attention pool.

    Attributes:
        layers: bottlenecks in each stage; CLIP has four stages. Each stage after the first halves the map.
        width: channels W of the stem's output; the last map has W * 4 * 2^(stages - 1) channels, 32 W in CLIP.
        head_width: width of one head of the attention pool (64; H = channels / head_width).
        pool: "attention" is CLIP's head; "flatten" projects the whole last map at once, position by position. It suits
            small pictures of one thing in the middle, where a place in the picture means something.
        stem_pool: halve the map once more after the stem (CLIP); without it small pictures keep a map worth reading.
    """

    kind: Literal["resnet"] = "resnet"
    image_size: int
    layers: tuple[int, ...]
    width: int
    head_width: int = 64
    pool: Literal["attention", "flatten"] = "attention"
    stem_pool: bool = True

    def __post_init__(self):
        require(len(self.layers) >= 1 and min(self.layers) >= 1, "vision.layers", self.layers, "1 or more in each stage")
        require(
            self.image_size % self.stride == 0 and self.image_size > 0,
            "vision.image_size",
            self.image_size,
            f"a multiple of {self.stride}",
        )
        require(self.head_width >= 1, "vision.head_width", self.head_width, "1 or more")
        require(
            self.width % 2 == 0 and self.channels % self.head_width == 0,
            "vision.width",
            self.width,
            "an even number that the heads divide",
        )

    @property
    def projection(self) -> bool:
        """Every head of this tower ends in one."""
        return True

    @property
    def depth(self) -> int:
        """Bottlenecks."""
        return sum(self.layers)

    @property
    def channels(self) -> int:
        """Of the last map."""
        return 4 * self.width * 2 ** (len(self.layers) - 1)

    @property
    def heads(self) -> int:
        return self.channels // self.head_width

    @property
    def stride(self) -> int:
        """Pixels a side of one position of the last map (32 in CLIP)."""
        return 2 * (1 + self.stem_pool) * 2 ** (len(self.layers) - 1)

    @property
    def grid(self) -> int:
        """Positions along one side of the last map."""
        return self.image_size // self.stride


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """A text transformer.

    Attributes:
        pool: which position is the feature: "argmax" the highest id (OpenAI), "eos" the first `eos_id` (Hugging Face),
            "last" the last position (SigLIP).
        causal: additive -inf above the diagonal (CLIP); SigLIP attends both ways.
        projection_bias: a bias after the W x E projection (SigLIP).
    """

    kind: Literal["transformer"] = "transformer"
    context_length: int = 77
    vocab_size: int = 49408
    width: int = 512
    layers: int = 12
    head_width: int = 64
    mlp_ratio: float = 4.0
    activation: Activation
    causal: bool = True
    pool: Literal["argmax", "eos", "last"] = "argmax"
    eos_id: int | None = None
    projection_bias: bool = False
    norm_eps: float = 1e-5

    def __post_init__(self):
        for key in ("context_length", "vocab_size", "width", "layers", "head_width"):
            require(getattr(self, key) >= 1, f"text.{key}", getattr(self, key), "1 or more")
        require(0 < self.mlp_ratio < math.inf, "text.mlp_ratio", self.mlp_ratio, "a positive number")
        require(self.width % self.head_width == 0, "text.width", self.width, f"a multiple of head_width {self.head_width}")
        require(
            (self.pool == "eos") == (self.eos_id is not None), "text.eos_id", self.eos_id, "an id exactly if text.pool is 'eos'"
        )

    @property
    def projection(self) -> bool:
        """This tower always ends in one."""
        return True

    @property
    def depth(self) -> int:
        """Blocks."""
        return self.layers

    @property
    def sees_padding(self) -> bool:
        """Whether what stands after a text changes its embedding: it does where all positions see all."""
        return not self.causal

    @property
    def heads(self) -> int:
        return self.width // self.head_width

    @property
    def mlp_width(self) -> int:
        return int(self.width * self.mlp_ratio)


if TYPE_CHECKING:
    # A layout or a method that knows some kinds only says so with one check at its door; the type checker would ask for it
    # at every setting that it reads.
    ImageTowerConfig = Any
    TextTowerConfig = Any
    AnyTokenizerConfig = Any
else:
    ImageTowerConfig = VitConfig | ResNetConfig | EfficientNetConfig | TransformersImageConfig
    TextTowerConfig = TextConfig | BagConfig | BertConfig | TransformersTextConfig
    AnyTokenizerConfig = TokenizerConfig | SentencePieceConfig | WordPieceConfig | FastTokenizerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A contrastive language-image model with everything that belongs to its weights.

    Attributes:
        init_logit_scale: initial log of the logit multiplier (ln(1/0.07) CLIP, ln 10 SigLIP).
        init_logit_bias: initial bias added to the logits, or None where the model has none (SigLIP -10).
        init_token_std: spread of the initial token embeddings (0.02 OpenAI; a small tower trained briefly wants more).
        logit_scale_cap: largest multiplier, i.e. exp(logit_scale) <= cap; None means no cap (SigLIP).
        layout: the on-disk layout that the weights came from ("ostension", "openai", "open_clip", "hf_clip", ...).
    """

    name: str = "unnamed"
    embed_dim: int
    vision: ImageTowerConfig
    text: TextTowerConfig
    preprocess: PreprocessConfig
    tokenizer: AnyTokenizerConfig
    init_logit_scale: float = math.log(1 / 0.07)
    init_logit_bias: float | None = None
    init_token_std: float = 0.02
    logit_scale_cap: float | None = 100.0
    layout: str = "ostension"

    def __post_init__(self):
        require(self.embed_dim >= 1, "embed_dim", self.embed_dim, "1 or more")
        require(
            self.preprocess.image_size == self.vision.image_size,
            "preprocess.image_size",
            self.preprocess.image_size,
            f"the tower's image size {self.vision.image_size}",
        )
        require(
            self.tokenizer.context_length == self.text.context_length,
            "tokenizer.context_length",
            self.tokenizer.context_length,
            f"the text tower's context length {self.text.context_length}",
        )
        for name, tower in (("vision", self.vision), ("text", self.text)):
            if not tower.projection:
                require(
                    tower.width == self.embed_dim,
                    "embed_dim",
                    self.embed_dim,
                    f"the {name} width {tower.width}, as there is no projection",
                )
