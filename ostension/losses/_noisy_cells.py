"""Targets of the contrastive loss that know how likely each pair is noise: an image and a text that do not belong together.

With eps_i the noise of pair i, g_i its group (itself alone where duplicates are "separate") and G the plain targets, the rows
have targets T and the columns U = T transposed,

    T_ij = (1 - eps_i) G_ij  inside the group,   T_ij = eps_i / (B - |g_i|)  outside of it.                 (1)

The losses read both through their mean M = (T + U) / 2 alone, because sum_ij T_ij z_ij + sum_ij U_ij z_ij = 2 sum_ij M_ij z_ij.
Where a group is the whole batch there is nobody to give eps_i to, and the pair keeps its plain targets. Cells that are ignored
have no target.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ostension.losses._cells import Cells
from ostension.world import World


class NoisyCells(Cells):
    """Cells with the targets (1); with no noise at all they are the plain ones.

    Attributes:
        noise: eps of all B pairs.
        shares: half of what each pair gives to every cell outside of its group.
    """

    def __init__(
        self, noise: Tensor, groups: Tensor | None, duplicates: str, num_rows: int, device: torch.device, world: World
    ):
        super().__init__(groups, duplicates, num_rows, device, world, spread=True)
        everyone = world.rows(noise.to(device))
        others = self.num_columns - (torch.ones_like(everyone) if self.sizes is None else self.sizes.to(everyone.dtype))
        self.noise = torch.where(others > 0, everyone, 0.0)
        self.shares = self.noise / (2 * others.clamp(min=1))

    def sum_of_targets(self, logits: Tensor, offset: int) -> Tensor:
        """sum_ij M_ij z_ij over a block; without groups in one pass that holds no second block."""
        if self.members is not None:
            seen = logits if not self.ignore else logits.masked_fill(self.ignored(offset, len(logits)), 0.0)
            return (self._targets(offset, len(logits)) * seen).sum()
        shares, own = self._of_rows(self.shares, offset, logits), self._own(offset, logits)
        spread = shares @ logits.sum(1) + logits.sum(0) @ self.shares
        return (own * logits.diagonal(offset)).sum() + spread

    def subtract_targets(self, block: Tensor, offset: int, weight: float) -> None:
        """block -= weight * M, in place."""
        if self.members is not None:
            block.sub_(self._targets(offset, len(block)), alpha=weight)
            return
        block.diagonal(offset).sub_(weight * self._own(offset, block))
        block.sub_(weight * self._of_rows(self.shares, offset, block)[:, None]).sub_(weight * self.shares)

    def _own(self, offset: int, block: Tensor) -> Tensor:
        """What the pair's own cell has beyond the shares that all cells of the block get."""
        return 1 - self._of_rows(self.noise, offset, block) - 2 * self._of_rows(self.shares, offset, block)

    def _of_rows(self, values: Tensor, offset: int, block: Tensor) -> Tensor:
        return values[offset : offset + len(block)]

    def _targets(self, offset: int, rows: int) -> Tensor:
        """M for groups, (rows, B)."""
        assert self.sizes is not None
        part, same = slice(offset, offset + rows), self.same(offset, rows)
        outside = self.shares[part, None] + self.shares
        if self.ignore:
            targets = outside.masked_fill(same, 0.0)
            targets.diagonal(offset).copy_(1 - self.noise[part])
            return targets
        inside = (1 - (self.noise[part, None] + self.noise) / 2) / self.sizes[part, None]
        return torch.where(same, inside, outside)
