"""A causal decoder that reads an image: blocks of self-attention, cross-attention and an MLP, and the next token's logits.

Captioners put it on the states of a text tower (`captioner`), a language model on token embeddings (`word_models`).

Departures from a textbook decoder: LayerNorm before each part; what is read of the image is projected once to the decoder's
width and normalised, for all blocks; the matrix of the logits is its own and has no bias.

Letters: B batch, I images (B, or 1), T tokens, P places in the image, F features of a place, W width, V vocabulary, R tokens
of a whole batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ostension.config import require
from ostension.model.config import Activation, ModelConfig, ResNetConfig
from ostension.model.layers import Attention, Block
from ostension.runtime import torch_generator
from ostension.shapes import Bool, Float, Int

LOGITS = 2**25  # logits held at a time: 128 MB, and as much again on the way back


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A decoder; its width is that of what it is put on.

    Attributes:
        layers: blocks.
        head_width: of each attention head.
        mlp_ratio: hidden width of the MLP over W.
        reads: what a captioner sees of an image: all its places, or the one pooled feature, which may be stored for a frozen
            tower.
    """

    layers: int = 2
    head_width: int = 64
    mlp_ratio: float = 4.0
    activation: Activation = "gelu"
    norm_eps: float = 1e-5
    reads: Literal["patches", "pooled"] = "patches"

    def __post_init__(self):
        for key in ("layers", "head_width"):
            require(getattr(self, key) >= 1, f"decoder.{key}", getattr(self, key), "1 or more")
        require(self.mlp_ratio > 0, "decoder.mlp_ratio", self.mlp_ratio, "more than 0")


class CrossBlock(Block):
    """x + attention(LN(x)) over the tokens so far, + attention(LN(x), image), + MLP(LN(x))."""

    def __init__(self, width: int, heads: int, mlp_width: int, activation: str, norm_eps: float):
        super().__init__(width, heads, mlp_width, activation, norm_eps)
        self.ln_cross = nn.LayerNorm(width, eps=norm_eps)
        self.cross = Attention(width, heads)

    def read(self, x: Float[Tensor, "B T W"], image: Float[Tensor, "I P W"]) -> Float[Tensor, "B T W"]:
        """The block's output; one image (I = 1) is read by all rows, and its keys and values are made once."""
        x = x + self.attn(self.ln_1(x), causal=True)
        keys_values = self.cross.keys_values(image).expand(len(x), -1, -1)
        return self.mix(x + self.cross.project(self.cross.read(self.cross.queries(self.ln_cross(x)), keys_values)))


class Decoder(nn.Module):
    """States of tokens, which may read an image, and the logits of the token after each.

    Attributes:
        checkpointing: recompute each block in the backward pass instead of keeping its activations.
    """

    def __init__(self, config: DecoderConfig, *, width: int, features: int, vocab_size: int):
        super().__init__()
        require(width % config.head_width == 0, "decoder.head_width", config.head_width, f"a divisor of the width {width}")
        self.config = config
        self.image_proj = nn.Linear(features, width)
        self.ln_image = nn.LayerNorm(width, eps=config.norm_eps)
        heads, hidden = width // config.head_width, int(width * config.mlp_ratio)
        self.resblocks = nn.ModuleList(
            CrossBlock(width, heads, hidden, config.activation, config.norm_eps) for _ in range(config.layers)
        )
        self.ln_final = nn.LayerNorm(width, eps=config.norm_eps)
        self.head = nn.Parameter(torch.empty(vocab_size, width))
        self.checkpointing = False

    def forward(self, x: Float[Tensor, "B T W"], places: Float[Tensor, "I P F"]) -> Float[Tensor, "B T W"]:
        """The states of tokens that came as `x`, each row with its image, or all with one."""
        image = self.ln_image(self.image_proj(places))
        for block in self.resblocks:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block.read, x, image, use_reentrant=False)
            else:
                x = block.read(x, image)  # type: ignore[operator]
        return self.ln_final(x)

    def logits(self, states: Float[Tensor, "*R W"]) -> Float[Tensor, "*R V"]:
        """Of the token that follows each state, in float32 or wider."""
        logits = F.linear(states, self.head)
        return logits if logits.dtype == torch.float64 else logits.float()


def image_features(config: ModelConfig) -> int:
    """F, the width of the tap "patches" of a model's image tower."""
    return config.vision.channels if isinstance(config.vision, ResNetConfig) else config.vision.width


def target_mask(
    tokens: Int[Tensor, "B T"], ends: Int[Tensor, " B"], firsts: Int[Tensor, " B"] | None = None
) -> Bool[Tensor, "B T1"]:
    """Which of the tokens 1..T-1 are to be predicted: those up to the end token, by position.

    Not by the padding's id, as is usual: CLIP pads with 0, which is the exclamation mark.

    Args:
        firsts: the first token of each row that is to be predicted, behind what is only read (concepts).
    """
    places = torch.arange(1, tokens.shape[1], device=tokens.device)
    mask = places <= ends[:, None]
    return mask if firsts is None else mask & (places >= firsts[:, None])


def next_token_loss(
    decoder: Decoder, states: Float[Tensor, "B T W"], tokens: Int[Tensor, "B T"], ends: Int[Tensor, " B"],
    firsts: Int[Tensor, " B"] | None = None,
) -> Float[Tensor, " B"]:  # fmt: skip
    """For each row the mean over its tokens of -log p(next token), the end token being the last to be predicted.

    What stands before `firsts` is read and not predicted. Only tokens that are asked for become logits, `LOGITS` numbers at a
    time, computed anew on the way back.
    """
    mask = target_mask(tokens, ends, firsts)
    targets, rows = tokens[:, 1:][mask], mask.nonzero()[:, 0]
    losses = _cross_entropies(decoder.logits, states[:, :-1][mask], targets, LOGITS // len(decoder.head))
    sums = torch.zeros(len(tokens), dtype=losses.dtype, device=losses.device).index_add(0, rows, losses)
    return sums / mask.sum(dim=1)


def _cross_entropies(
    logits: Callable[[Tensor], Tensor], states: Float[Tensor, "R W"], targets: Int[Tensor, " R"], rows: int
) -> Float[Tensor, " R"]:
    def of(states: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits(states), targets, reduction="none")

    rows = max(1, rows)
    if len(states) <= rows:
        return of(states, targets)
    pieces = zip(states.split(rows), targets.split(rows), strict=True)
    return torch.cat([checkpoint(of, *piece, use_reentrant=False) for piece in pieces])


def materialise(module: nn.Module) -> None:
    """Give a module that was built on the meta device its memory, with nothing in it yet."""
    module._apply(lambda value: torch.empty(value.shape, dtype=value.dtype, device=torch.get_default_device()))


@torch.no_grad()
def initialise_decoder(module: nn.Module, seed: int, *, width: int, layers: int, token_std: float = 0.02) -> None:
    """Fill every parameter, by the rules of the text tower (`model.init`) and a seed of its own for each.

    Matrices N(0, 1 / W); those that end a residual branch N(0, 1 / 2LW); the inner one of an MLP N(0, 1 / 2W); token
    embeddings N(0, token_std^2), positions N(0, 0.01^2); the projection of the image N(0, 1 / F); gains 1, biases 0.
    """
    for name, tensor in module.named_parameters():
        generator = torch_generator(seed, "init decoder", name)
        if tensor.ndim == 1:
            tensor.fill_(1.0 if name.endswith("weight") else 0.0)
        elif name.endswith(("out_proj.weight", "c_proj.weight")):
            tensor.normal_(0, (2 * layers * width) ** -0.5, generator=generator)
        elif name.endswith("c_fc.weight"):
            tensor.normal_(0, (2 * width) ** -0.5, generator=generator)
        elif name.endswith("token_embedding"):
            tensor.normal_(0, token_std, generator=generator)
        elif name.endswith("positional_embedding"):
            tensor.normal_(0, 0.01, generator=generator)
        else:
            tensor.normal_(0, tensor.shape[1] ** -0.5, generator=generator)
