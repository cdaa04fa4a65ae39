"""The attention of one layer: torch's fused kernel against products written out, at the sizes that occur here.

Each row: microseconds of processor time for one head of one sequence, forward, and forward with backward; the last column
of each kind is what `ostension.model.layers.attention` takes. Queries, keys and values are views of one projection, as in
the towers. docs/decisions/attention.md draws the conclusion.

    python benchmarks/attention.py [--rounds 5] [--record FILE]
"""

from __future__ import annotations

import math
from functools import partial

import _measure
import torch
import torch.nn.functional as F

from ostension.model.layers import attention, split_heads

# name: sequences, heads, queries, keys, head width, causal
SIZES = {
    "ViT-B/32, 50 tokens": (16, 12, 50, 50, 64, False),
    "ViT-B/16, 197 tokens": (8, 12, 197, 197, 64, False),
    "64 px, patch 8, 64 tokens": (64, 3, 64, 64, 64, False),
    "text, 8 tokens": (256, 8, 8, 8, 64, True),
    "text, 20 tokens": (128, 8, 20, 20, 64, True),
    "text, 77 tokens": (16, 8, 77, 77, 64, True),
    "suffix of 4 behind 5 shared": (256, 8, 4, 9, 64, True),
    "last block, 1 of 10": (256, 8, 1, 10, 64, True),
}


def fused(q, k, v, causal):
    """torch's kernel; a suffix needs its mask written out."""
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2]) if causal else None
    whole = q.shape[2] == k.shape[2]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=None if whole else mask, is_causal=causal and whole)


def written(q, k, v, causal):
    """Product, mask, softmax, product."""
    scale = 1 / math.sqrt(q.shape[-1])
    scores = torch.baddbmm(q.new_zeros(1), q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), beta=0, alpha=scale)
    scores = scores.view(*q.shape[:3], k.shape[2])
    if causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[2:], dtype=torch.bool).tril(k.shape[2] - q.shape[2]), -math.inf)
    return scores.softmax(dim=-1) @ v


def chosen(q, k, v, causal):
    """What the library does."""
    return attention(q, k, v, causal=causal)


def call(function, qkv: torch.Tensor, heads: int, queries: int, causal: bool, backward: bool) -> None:
    """One attention over the views of a projection, with its backward if asked."""
    qkv = qkv.detach().requires_grad_(backward)
    with torch.set_grad_enabled(backward):
        q, k, v = qkv.chunk(3, dim=-1)
        parts = (split_heads(part, heads) for part in (q[:, q.shape[1] - queries :], k, v))
        out = function(*parts, causal).transpose(1, 2).flatten(2)
        if backward:
            out.backward(torch.ones_like(out))


def main() -> None:
    options = _measure.arguments(__doc__)
    figures = {}
    for name, (sequences, heads, queries, keys, width, causal) in SIZES.items():
        for dtype in (torch.float32, torch.bfloat16):
            torch.manual_seed(0)
            qkv = torch.randn(sequences, keys, 3 * heads * width).to(dtype)
            run = partial(call, qkv=qkv, heads=heads, queries=queries, causal=causal)
            cases = {
                f"{function.__name__}{' + back' if backward else ''}": partial(run, function, backward=backward)
                for backward in (False, True)
                for function in (fused, written, chosen)
            }
            seconds = _measure.interleaved(cases, options.rounds)
            each = {case: 1e6 * value / (sequences * heads) for case, value in seconds.items()}
            figures[f"{name}, {str(dtype)[6:]}"] = each
    _measure.table("microseconds a head", figures)
    _measure.write_record(options.record, "attention", {"rounds": options.rounds}, figures)


if __name__ == "__main__":
    main()
