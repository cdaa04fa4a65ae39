"""Who is pulled to whom, and the loss of it: the training pictures as a first classifier leaves them.

Similarities are of one block of anchors with all pictures at a time, never of all with all.

Letters: A anchors, E embedding, N training pictures, P positives and negatives, M pictures of a balanced epoch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ostension.shapes import Bool, Float, Int

_LOG = logging.getLogger("ostension.adapt")


class Pool:
    """The training pictures: unit rows, classes, the first predictions of them.

    Attributes:
        right: (N,) whether the first prediction is right.
        anchors: positions of those that are wrong, of classes with something right.
    """

    def __init__(self, rows: Float[Tensor, "N E"], labels: Int[Tensor, " N"], guessed: Int[np.ndarray, " N"]):
        self.rows, self.labels, self.targets, self.guessed = rows, labels, labels.cpu().numpy(), guessed
        wrong = guessed != self.targets
        self.right = torch.from_numpy(~wrong).to(rows.device)
        self.anchors = np.flatnonzero(wrong & np.isin(self.targets, self.targets[~wrong]))

    def told(self, names: Sequence[str]) -> dict[str, Any]:
        """For the record: how often the first predictions are right, the anchors of each class, classes without any."""
        present = np.unique(self.targets)
        faultless = [names[label] for label in present if (self.guessed == self.targets)[self.targets == label].all()]
        hopeless = [names[label] for label in present if (self.guessed != self.targets)[self.targets == label].all()]
        if hopeless:
            _LOG.warning("no picture of %s is right at first, so there is nothing to pull the others to", ", ".join(hopeless))
        if not len(self.anchors):
            _LOG.warning("the first predictions leave no anchors: all epochs are of the cross-entropy")
        counts = np.bincount(self.targets[self.anchors], minlength=len(names))
        return {
            "initial_accuracy": float((self.guessed == self.targets).mean()),
            "anchors": {name: int(count) for name, count in zip(names, counts, strict=True)},
            "without_errors": faultless,
            "without_anything_right": hopeless,
        }

    def balanced(self, cell: int | None, generator: np.random.Generator) -> Int[np.ndarray, " M"]:
        """As many pictures of each (class, first prediction) that there is, in a random order."""
        _, cells = np.unique(np.stack([self.targets, self.guessed]), axis=1, return_inverse=True)
        members = [np.flatnonzero(cells == number) for number in range(cells.max() + 1)]
        size = max(map(len, members)) if cell is None else cell
        drawn = []
        for places in members:
            whole = generator.permutation(places)[:size]
            drawn += [whole, generator.choice(places, size - len(whole))]
        return generator.permutation(np.concatenate(drawn))

    def companions(
        self, anchors: Int[Tensor, " A"], positives: int, negatives: int, neighbours: int, generator: torch.Generator
    ) -> tuple[Bool[Tensor, "A N"], Bool[Tensor, "A N"]]:
        """Which pictures are each anchor's positives and negatives.

        Args:
            positives, negatives: at most so many for an anchor.
            neighbours: negatives are drawn from so many nearest pictures; those of the anchor's own class then do not count.
        """
        alike = self.labels == self.labels[anchors][:, None]
        positive = drawn_of(alike & self.right, positives, generator)
        closeness = self.rows[anchors] @ self.rows.T
        closeness.scatter_(1, anchors[:, None], -torch.inf)
        near = closeness.topk(min(neighbours, len(self.rows) - 1), dim=1).indices
        among = torch.zeros_like(alike).scatter_(1, near, True)
        return positive, drawn_of(among, negatives, generator) & ~alike


def drawn_of(mask: Bool[Tensor, "A N"], most: int, generator: torch.Generator) -> Bool[Tensor, "A N"]:
    """At most so many of each row's marked places, drawn without replacement."""
    if int(mask.sum(1).max()) <= most:
        return mask
    chances = torch.rand(mask.shape, generator=generator).to(mask.device).masked_fill(~mask, -1)
    return torch.zeros_like(mask).scatter_(1, chances.topk(most, dim=1).indices, True) & mask


def contrast(
    similarities: Float[Tensor, "A P"], positive: Bool[Tensor, "A P"], negative: Bool[Tensor, "A P"]
) -> Float[Tensor, " A"]:
    """L_a of each anchor, from cosines over T: the mean over positives of softplus(log sum_n e^s_n - s_p)."""
    against = similarities.masked_fill(~negative, -torch.inf).logsumexp(1)
    each = F.softplus(against[:, None] - similarities).masked_fill(~positive, 0)
    return each.sum(1) / positive.sum(1)
