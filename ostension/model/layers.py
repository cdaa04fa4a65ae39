"""What both transformers are made of: the one attention function, activations, blocks.

Departures from a textbook transformer: LayerNorm before each half (pre-LN), fused query-key-value weights under the names
of `torch.nn.MultiheadAttention`, and a last block that can be asked for single tokens only. torch's LayerNorm accumulates
in float32 for half-precision inputs, so no cast is written out.

Letters: B batch, T tokens, Q queries, H heads, D head width, W width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ostension.shapes import Bool, Float, Int


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), OpenAI's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": quick_gelu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


def attention(
    q: Float[Tensor, "B H Q D"], k: Float[Tensor, "B H T D"], v: Float[Tensor, "B H T D"], *,
    causal: bool = False, mask: Bool[Tensor, "*mask"] | None = None,
) -> Float[Tensor, "B H Q D"]:
    """softmax(q kᵀ / sqrt(D)) v, the only attention in Ostension.

    Args:
        causal: query i sees the keys 0 to i.
        mask: true where a query may see a key, broadcast to (B, H, Q, T); not together with `causal`.
    """
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


class Attention(nn.Module):
    """Multi-head attention with parameters named as in `torch.nn.MultiheadAttention`."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.width, self.heads = width, heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def split(self, x: Float[Tensor, "B T W"]) -> Float[Tensor, "B H T D"]:
        """The heads of a projection."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(
        self, x: Float[Tensor, "B T W"], *, query: Float[Tensor, "B Q W"] | None = None, causal: bool = False,
        mask: Bool[Tensor, "*mask"] | None = None,
    ) -> Float[Tensor, "B Q W"]:
        """What the tokens `query` (all of `x` when None) read from the tokens `x`."""
        if query is None:
            q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        else:
            own, rest = (self.width, 2 * self.width)
            query_weight, weight = self.in_proj_weight.split((own, rest))
            query_bias, bias = self.in_proj_bias.split((own, rest))
            q = F.linear(query, query_weight, query_bias)
            k, v = F.linear(x, weight, bias).chunk(2, dim=-1)
        out = attention(self.split(q), self.split(k), self.split(v), causal=causal, mask=mask)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, width: int, hidden: int, activation: str):
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.c_proj = nn.Linear(hidden, width)
        self.activation = ACTIVATION_FUNCTIONS[activation]

    def forward(self, x: Float[Tensor, "... W"]) -> Float[Tensor, "... W"]:
        return self.c_proj(self.activation(self.c_fc(x)))


class Block(nn.Module):
    """x + attention(LN(x)), then x + MLP(LN(x))."""

    def __init__(self, width: int, heads: int, mlp_width: int, activation: str, norm_eps: float):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = MLP(width, mlp_width, activation)

    def forward(self, x: Float[Tensor, "B T W"], causal: bool = False) -> Float[Tensor, "B T W"]:
        x = x + self.attn(self.ln_1(x), causal=causal)
        return x + self.mlp(self.ln_2(x))

    def single(
        self, x: Float[Tensor, "B T W"], position: Int[Tensor, " B"] | int, causal: bool = False
    ) -> Float[Tensor, "B W"]:
        """The block's output at one position of each row: its keys and values are those of all tokens, its query is one."""
        normed = self.ln_1(x)
        rows = torch.arange(len(x), device=x.device)
        mask = None
        if causal:
            assert isinstance(position, Tensor)
            mask = (torch.arange(x.shape[1], device=x.device) <= position[:, None])[:, None, None]  # B 1 1 T
        token = x[rows, position][:, None] + self.attn(normed, query=normed[rows, position][:, None], mask=mask)
        return (token + self.mlp(self.ln_2(token)))[:, 0]


BlockFunction = Callable[[int, Tensor], Tensor]


class Transformer(nn.Module):
    """A stack of blocks, with a place before and after each for what methods insert.

    Attributes:
        checkpointing: recompute each block in the backward pass instead of keeping its activations.
    """

    def __init__(self, width: int, layers: int, heads: int, mlp_width: int, activation: str, norm_eps: float):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, mlp_width, activation, norm_eps) for _ in range(layers))
        self.checkpointing = False

    def blocks(self) -> list[Block]:
        """The blocks in order."""
        return list(self.resblocks)  # type: ignore[arg-type]

    def run(self, function: Callable[..., Tensor], *arguments) -> Tensor:
        """Call a block's function, through a checkpoint where that is switched on and gradients are wanted."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(function, *arguments, use_reentrant=False)
        return function(*arguments)

    def forward(
        self, x: Float[Tensor, "B T W"], *, causal: bool = False, before: BlockFunction | None = None,
        after: BlockFunction | None = None, position: Int[Tensor, " B"] | int | None = None,
    ) -> Float[Tensor, "B *T W"]:
        """Hidden states (B, T, W) after the last block, or with `position` only those of one token a row (B, W).

        Args:
            before: called with the number of a block and its input, gives the input to use.
            after: called with the number of a block and its output, gives the output to use; it sees all tokens, so it
                excludes `position`.
        """
        assert position is None or after is None
        last = len(self.resblocks) - 1
        for index, block in enumerate(self.blocks()):
            if before is not None:
                x = before(index, x)
            if index == last and position is not None:
                return self.run(block.single, x, position, causal)
            x = self.run(block, x, causal)
            if after is not None:
                x = after(index, x)
        return x
