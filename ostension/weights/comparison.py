"""Whether models can be averaged, and how far apart they are: the `check` of the command line."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import torch

from ostension.weights import agreement
from ostension.weights.sources import BLOCK, Weights, open_models, verified
from ostension.weights.states import check_same_tensors


def compare(names: Sequence[str | os.PathLike]) -> list[dict[str, Any]]:
    """A row for each model after the first, against the first; the first alone gives a row of its own files' soundness.

    Keys: "model", "tensors", "changed" (tensors with other numbers), "distance" (norm of the difference over the first's
    norm), "cosine" (of all matrices as one vector; near 1 for models with a shared start, near 0 for unrelated ones),
    "differences" and "notes" (lines).

    Raises:
        CheckpointError: for files that are damaged, or models whose tensors have other names or shapes.
    """
    with open_models(names, thorough=True) as models:
        check_same_tensors(models)
        verified(models)
        return [_row(models[0], other) for other in models[1:]] or [_row(models[0], models[0])]


def _row(first: Weights, other: Weights) -> dict[str, Any]:
    changed, square, apart = 0, 0.0, 0.0
    products = [0.0, 0.0, 0.0]
    for name, shape in first.shapes.items():
        count, differs = torch.Size(shape).numel(), False
        for start in range(0, count, BLOCK):
            stop = min(start + BLOCK, count)
            mine, theirs = (model.read(name, start, stop).double() for model in (first, other))
            differs |= not torch.equal(mine, theirs)
            square += float(mine.dot(mine))
            apart += float((theirs - mine).square().sum())
            if len(shape) >= 2:
                for place, value in enumerate((mine.dot(theirs), mine.dot(mine), theirs.dot(theirs))):
                    products[place] += float(value)
        changed += differs
    norm = math.sqrt(products[1] * products[2])
    notes = agreement.unknown_lineage([first, other])
    if agreement.has_batch_norm(first):
        notes.append(agreement.BATCH_NORM_NOTE.replace("are averaged, too, and are", "would be averaged, too, and are"))
    return {
        "model": other.name,
        "tensors": len(first.shapes),
        "changed": changed,
        "distance": math.sqrt(apart / square) if square else 0.0,
        "cosine": products[0] / norm if norm else None,
        "differences": [difference.text for difference in agreement.differences(first, other)],
        "notes": notes,
    }
