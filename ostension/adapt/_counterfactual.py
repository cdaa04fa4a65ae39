"""Counterfactual features: the fewest coordinates of another class's picture that, copied, make that class win (CPL's u*).

It needs no model: with n = v.t and s = ||v||^2, copying coordinate j of d makes them n + (d_j - v_j) t_j and s + d_j^2 - v_j^2,
so all coordinates are tried in one pass.

Letters: N pictures, C classes, E embedding.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ostension.runtime import numpy_generator
from ostension.shapes import Float, Int


def nearest_others(rows: Float[Tensor, "C E"]) -> Int[Tensor, " C"]:
    """For each class the other class with the closest row."""
    closeness = rows @ rows.T
    closeness.fill_diagonal_(-torch.inf)
    return closeness.argmax(1)


def partners(targets: Int[Tensor, " N"], rivals: Int[Tensor, " C"], seed: int) -> Int[Tensor, " N"]:
    """For each picture one of its rival class's, drawn; where that class has none, one of any other class."""
    generator = numpy_generator(seed, "cpl", "partners")
    known = targets.numpy()
    found = []
    for label in known.tolist():
        members = np.flatnonzero(known == int(rivals[label]))
        if not len(members):
            members = np.flatnonzero(known != label)
        found.append(int(generator.choice(members)) if len(members) else int(np.flatnonzero(known == label)[0]))
    return torch.tensor(found)


def flips(
    features: Float[Tensor, "N E"], borrowed: Float[Tensor, "N E"], own: Float[Tensor, "N E"], rival: Float[Tensor, "N E"]
) -> Float[Tensor, "N E"]:
    """u*: 1 on the coordinates that are copied, in the order in which each raises the rival's cosine most, until it wins."""
    current, chosen = features.clone(), torch.zeros_like(features)
    for _ in range(features.shape[1]):
        open_ = ((current * rival).sum(1) <= (current * own).sum(1)).nonzero()[:, 0]
        open_ = open_[~chosen[open_].bool().all(1)]
        if not len(open_):
            break
        now, new, row = current[open_], borrowed[open_], rival[open_]
        products = (now * row).sum(1, keepdim=True) + (new - now) * row
        squares = (now * now).sum(1, keepdim=True) + new * new - now * now
        cosines = (products / squares.clamp(min=1e-12).sqrt()).masked_fill(chosen[open_].bool(), -torch.inf)
        best = cosines.argmax(1)
        current[open_, best], chosen[open_, best] = new[torch.arange(len(open_)), best], 1.0
    return chosen
