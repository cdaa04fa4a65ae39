"""What the cells of the similarity matrix are: targets, duplicates, hits; for blocks of rows of one of several processes.

Letters: B pairs of all processes, K group numbers a pair.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ostension.shapes import Int
from ostension.world import World


def linked(groups: Int[Tensor, "B K"]) -> Int[Tensor, " B"]:
    """One number a pair, equal for pairs that have one of their K numbers in common (in its column), or are linked by others.

    So pairs with the same image or the same caption are of one group; the number is the first row of it.
    """
    columns = [torch.unique(column, return_inverse=True)[1] for column in groups.unbind(1)]
    labels = torch.arange(len(groups), device=groups.device)
    while True:
        before = labels
        for members in columns:
            lowest = torch.full_like(labels, len(labels)).scatter_reduce(0, members, labels, "amin")
            labels = lowest[members]
        if torch.equal(before, labels):
            return labels


class Cells:
    """What each cell of the similarity matrix is, for blocks of rows that begin at some offset of the columns.

    With `spread` a group's targets sum to 1 in each row and column (contrastive); without, each is 1 (sigmoid).

    Attributes:
        offset: the column of this process's first row.
        num_columns: B, of all processes.
    """

    def __init__(
        self, groups: Tensor | None, duplicates: str, num_rows: int, device: torch.device, world: World, *, spread: bool
    ):
        self.members = self.sizes = None
        self.ignore, self.device, self.world, self.spread = duplicates == "ignore", device, world, spread
        self.offset, self.num_columns = world.rank * num_rows, world.size * num_rows
        if groups is not None:
            everyone = world.rows(groups)
            if everyone.ndim == 2:
                everyone = linked(everyone)
            _, self.members, counts = torch.unique(everyone, return_inverse=True, return_counts=True)
            self.sizes = counts[self.members]

    def same(self, offset: int, rows: int) -> Tensor:
        """Where row and column are of one group, (rows, B)."""
        assert self.members is not None
        return self.members[offset : offset + rows, None] == self.members

    def group_targets(self, offset: int, rows: int, dtype: torch.dtype) -> Tensor:
        """T for shared groups, (rows, B); as groups are symmetric, its columns sum to 1 as its rows do."""
        assert self.sizes is not None
        answers = self.same(offset, rows).to(dtype)
        return answers / self.sizes[offset : offset + rows, None] if self.spread else answers

    def sum_of_targets(self, logits: Tensor, offset: int) -> Tensor:
        """sum_ij T_ij z_ij over a block."""
        if self.members is None or self.ignore:
            return logits.diagonal(offset).sum()
        return (self.group_targets(offset, len(logits), logits.dtype) * logits).sum()

    def subtract_targets(self, block: Tensor, offset: int, weight: float) -> None:
        """block -= weight * T, in place."""
        if self.members is None or self.ignore:
            block.diagonal(offset).sub_(weight)
        else:
            block.sub_(self.group_targets(offset, len(block), block.dtype), alpha=weight)

    def without_ignored(self, logits: Tensor, offset: int) -> Tensor:
        """The logits with -inf in the cells that no sum may see."""
        if self.members is None or not self.ignore:
            return logits
        return logits.masked_fill(self.ignored(offset, len(logits)), -math.inf)

    def ignored(self, offset: int, rows: int) -> Tensor:
        """The cells of the group beside the pair's own, (rows, B)."""
        others = self.same(offset, rows)
        others.diagonal(offset).fill_(False)
        return others

    def hit_rate(self, best: Tensor, offset: int = 0) -> Tensor:
        """The share of rows from `offset` whose best column is theirs, or of their group; and so for columns."""
        own = torch.arange(offset, offset + len(best), device=self.device)
        hits = best == own if self.members is None else self.members[best] == self.members[own]
        return hits.float().mean()

    def accuracies(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The hit rates of the rows and of the columns of the whole matrix."""
        return self.hit_rate(logits.argmax(1)), self.hit_rate(logits.argmax(0))
