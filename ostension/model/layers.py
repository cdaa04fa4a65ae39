"""What both transformers are made of: the one attention function, the MLP, blocks.

Departures from a textbook transformer: LayerNorm before each half (pre-LN), fused query-key-value weights under the names
of `torch.nn.MultiheadAttention`, and a last block that can be asked for single tokens only. torch's LayerNorm accumulates
in float32 for half-precision inputs, so no cast is written out.

Letters: B batch, T tokens, Q queries, H heads, D head width, W width.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ostension.model.fused import linear, mlp, traced
from ostension.shapes import Bool, Float

# Rows of an MLP that are computed together without gradients: 512 x 3072 float32 stay in the cache, and temporaries over
# 32 MB would be mapped and unmapped by the C library at every call (docs/decisions/inference.md).
MLP_ROWS = 512


_fused_everywhere = False


@contextlib.contextmanager
def fused_attention() -> Iterator[None]:
    """While entered, half precision on a processor takes torch's kernel too: to see what a GPU keeps without having one."""
    global _fused_everywhere
    before, _fused_everywhere = _fused_everywhere, True
    try:
        yield
    finally:
        _fused_everywhere = before


def attention(
    q: Float[Tensor, "B H Q D"], k: Float[Tensor, "B H T D"], v: Float[Tensor, "B H T D"], *,
    causal: bool = False, mask: Bool[Tensor, "*mask"] | None = None,
) -> Float[Tensor, "B H Q D"]:
    """softmax(q kᵀ / sqrt(D)) v, the only attention in Ostension.

    In half precision on a processor the products are written out, which is 1.2 to 2.7 times as fast as torch's fused
    kernel forward and 2 to 7 times with its backward; everywhere else the fused kernel wins (docs/decisions/attention.md).

    Args:
        causal: the queries are the last Q of the T positions, and each sees the keys up to its own position.
        mask: true where a query may see a key, broadcast to (B, H, Q, T); not together with `causal`.
    """
    queries, keys = q.shape[-2], k.shape[-2]
    if causal and (queries < keys or q.dtype in (torch.bfloat16, torch.float16)):
        mask = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
        causal = False
    if _fused_everywhere or q.device.type != "cpu" or q.dtype not in (torch.bfloat16, torch.float16):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    scores = torch.baddbmm(
        q.new_zeros(1), q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), beta=0, alpha=1 / math.sqrt(q.shape[-1])
    ).view(*q.shape[:3], keys)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(dim=-1) @ v


def split_heads(x: Float[Tensor, "B T W"], heads: int) -> Float[Tensor, "B H T D"]:
    """The heads of a projection."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head attention with parameters named as in `torch.nn.MultiheadAttention`."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.width, self.heads = width, heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def queries_keys_values(self, x: Float[Tensor, "*B W"]) -> Float[Tensor, "*B W3"]:
        """All three projections side by side."""
        return linear(x, self.in_proj_weight, self.in_proj_bias)

    def queries(self, x: Float[Tensor, "*B W"]) -> Float[Tensor, "*B W"]:
        """The query projection alone."""
        return linear(x, self.in_proj_weight[: self.width], self.in_proj_bias[: self.width])

    def keys_values(self, x: Float[Tensor, "*B W"]) -> Float[Tensor, "*B W2"]:
        """The key and the value projection side by side."""
        return linear(x, self.in_proj_weight[self.width :], self.in_proj_bias[self.width :])

    def project(self, x: Float[Tensor, "*B W"]) -> Float[Tensor, "*B W"]:
        """The projection of what was read."""
        return linear(x, self.out_proj.weight, self.out_proj.bias)

    def read(
        self, q: Float[Tensor, "B Q W"], kv: Float[Tensor, "B T W2"], *, causal: bool = False,
        mask: Bool[Tensor, "*mask"] | None = None,
    ) -> Float[Tensor, "B Q W"]:
        """What queries read from keys and values, before the output projection."""
        k, v = kv.chunk(2, dim=-1)
        out = attention(*(split_heads(part, self.heads) for part in (q, k, v)), causal=causal, mask=mask)
        return out.transpose(1, 2).flatten(2)

    def forward(
        self, x: Float[Tensor, "B T W"], *, query: Float[Tensor, "B Q W"] | None = None, causal: bool = False,
        mask: Bool[Tensor, "*mask"] | None = None,
    ) -> Float[Tensor, "B Q W"]:
        """What the tokens `query` (all of `x` when None) read from the tokens `x`."""
        if query is None:
            q, kv = self.queries_keys_values(x).split((self.width, 2 * self.width), dim=-1)
        else:
            q, kv = self.queries(query), self.keys_values(x)
        return self.project(self.read(q, kv, causal=causal, mask=mask))


class MLP(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, width: int, hidden: int, activation: str):
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.c_proj = nn.Linear(hidden, width)
        self.activation = activation

    def residual(self, x: Float[Tensor, "*B W"], norm: nn.LayerNorm) -> Float[Tensor, "*B W"]:
        """x + MLP(norm(x)); without gradients some rows at a time."""
        rows = x.flatten(0, -2)
        parts = [rows] if torch.is_grad_enabled() or traced() else rows.split(MLP_ROWS)
        done = [mlp(part, norm, self.c_fc, self.c_proj, self.activation) for part in parts]
        return (done[0] if len(done) == 1 else torch.cat(done)).view(x.shape)


class Block(nn.Module):
    """x + attention(LN(x)), then x + MLP(LN(x))."""

    def __init__(self, width: int, heads: int, mlp_width: int, activation: str, norm_eps: float):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = MLP(width, mlp_width, activation)

    def forward(self, x: Float[Tensor, "B T W"], causal: bool = False) -> Float[Tensor, "B T W"]:
        return self.mix(x + self.attn(self.ln_1(x), causal=causal))

    def mix(self, x: Float[Tensor, "*B W"]) -> Float[Tensor, "*B W"]:
        """The second half of the block, which looks at each token alone."""
        return self.mlp.residual(x, self.ln_2)

    def single(self, x: Float[Tensor, "B T W"], position: int) -> Float[Tensor, "B W"]:
        """The block's output at one position: the keys and values are those of all tokens, the query is one."""
        normed = self.ln_1(x)
        return self.mix(x[:, position] + self.attn(normed, query=normed[:, position : position + 1])[:, 0])

    def through(self, function: Callable[..., Tensor], *arguments) -> Tensor:
        """function(self, *arguments), seen as a call of the block by whoever brings its weights together first (FSDP)."""
        return function(self, *arguments)


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
        after: BlockFunction | None = None, position: int | None = None,
    ) -> Float[Tensor, "B *T W"]:
        """Hidden states (B, T, W) after the last block, or with `position` only those of one token a row (B, W).

        Args:
            before: called with the number of a block and its input, gives the input to use.
            after: called with the number of a block and its output, gives the output to use; it sees all tokens, so it
                excludes `position`.
            position: not together with `causal`.
        """
        assert position is None or (after is None and not causal)
        last = len(self.resblocks) - 1
        for index, block in enumerate(self.blocks()):
            if before is not None:
                x = before(index, x)
            if index == last and position is not None:
                return self.run(block.single, x, position)
            x = self.run(block, x, causal)
            if after is not None:
                x = after(index, x)
        return x
