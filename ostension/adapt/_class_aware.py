"""Image tokens that are made, block by block, of the likeliest classes' text rows (CAVPT).

    q_k = A g_k;   o_k = B sum_j softmax_j(Q q_k . K z_j / sqrt(32)) z_j;   token_k = LN'(o_k + q_k)

z_j are what enters the block (class token and patches, without gradients) and learned tokens. The tokens stand beside the
patches for that block alone; blocks below have learned tokens of their own.

Letters: B batch, K classes, N tokens, P patches, J blocks below, W width of the image tower, E embedding, S pixels a side.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ostension.adapt._init import linear, normal
from ostension.model.clip import CLIP
from ostension.model.insert import VisualInsert
from ostension.shapes import Float

ATTENTION = 32  # width of queries and keys


class ClassAware(nn.Module):
    """The tokens of one block."""

    def __init__(self, width: int, embed_dim: int, extra: int, generator: torch.Generator):
        super().__init__()
        self.enter = linear(embed_dim, width, generator)
        self.query = linear(width, ATTENTION, generator, bias=False)
        self.key = linear(width, ATTENTION, generator, bias=False)
        self.out = linear(width, width, generator, bias=False)
        self.extra = nn.Parameter(normal((extra, width), generator))
        self.norm, self.read_norm = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(
        self, rows: Float[Tensor, "B K E"], patches: Float[Tensor, "B P W"]
    ) -> tuple[Float[Tensor, "B K W"], Float[Tensor, "B K W"]]:
        """Tokens, and LN(o) for a classifier that reads them. No gradient goes down through the patches."""
        asked = self.enter(rows)
        seen = torch.cat([patches.detach(), self.extra.expand(len(patches), *self.extra.shape)], dim=1)
        attention = (self.query(asked) @ self.key(seen).mT / ATTENTION**0.5).softmax(-1)
        found = self.out(attention @ seen)
        return self.norm(found + asked), self.read_norm(found)


def encode(
    model: CLIP, images: Float[Tensor, "B 3 S S"], below: Float[Tensor, "J N W"], aware: nn.ModuleList,
    rows: Float[Tensor, "B K E"] | None,
) -> tuple[Float[Tensor, "B E"], list[Float[Tensor, "B K W"]]]:  # fmt: skip
    """Unit embeddings with tokens in every block, and what is read of the topmost, class-aware ones, if there are `rows`."""
    read: list[Tensor] = []
    first = model.config.vision.layers - len(aware)

    def tokens(index: int, patches: Tensor) -> Tensor:
        if rows is None or index < first:
            return below[index].expand(len(patches), -1, -1)
        made, seen = aware[index - first](rows, patches.float())
        read.append(seen)
        return made

    none = images.new_zeros(0, below.shape[-1])  # the function is asked before the first block too
    insert = VisualInsert(tokens=none, deep=tokens, place="after_ln_pre")
    return model.encode_image(images, normalize=True, insert=insert), read
