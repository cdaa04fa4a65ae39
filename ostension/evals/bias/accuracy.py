"""Accuracy by group of two classifiers on the same samples: zero-shot, and a logistic regression on features.

The probe's strength is chosen on validation samples (the split `val`, or a fifth of the training samples), then it is fitted
again on all of them: CLIP's order of things, with a coarser grid, because a gap between groups hardly moves with it.

Letters: N samples, D features, C classes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from ostension.errors import DataError
from ostension.evals.bias.groups import CONFIDENCE, GroupRates, group_rates
from ostension.evals.linear_probe import STRENGTHS
from ostension.evals.statistics import holm
from ostension.runtime import numpy_generator
from ostension.shapes import Bool, Float, Int
from ostension.train.logistic import fit_logistic

HELD_OUT = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeFit:
    """A fitted probe's predictions (N,) for the test samples, its strength and its accuracy on validation samples."""

    predicted: Int[np.ndarray, " N"]
    strength: float
    validation: float


def probe(
    train: Float[np.ndarray, "N D"],
    targets: Int[np.ndarray, " N"],
    test: Float[np.ndarray, "M D"],
    *,
    val: tuple[Float[np.ndarray, "V D"], Int[np.ndarray, " V"]] | None = None,
    seed: int,
) -> ProbeFit:
    """A logistic regression's predictions for `test`. Classes without a training sample are never predicted.

    Raises:
        DataError: for fewer than two classes among the training samples.
    """
    present = np.unique(targets)
    if len(present) < 2:
        raise DataError(f"{len(present)} classes have training samples", expected="two or more")
    if val is None:
        order = numpy_generator(seed, "held-out").permutation(len(train))
        # Every class keeps its first sample of the order for training.
        first = order[np.unique(targets[order], return_index=True)[1]]
        out = np.setdiff1d(order[: round(HELD_OUT * len(train))], first)
        kept = np.setdiff1d(order, out)
        chosen, held = (train[kept], targets[kept]), (train[out], targets[out])
        both = (train, targets)
    else:
        chosen, held = (train, targets), val
        known = np.isin(val[1], present)
        both = np.concatenate([train, val[0][known]]), np.concatenate([targets, val[1][known]])
    fits = fit_logistic(torch.from_numpy(chosen[0]), _places(present, chosen[1]), len(present), STRENGTHS)
    guesses = present[fits.logits(torch.from_numpy(held[0])).argmax(-1).numpy()]
    scores = (guesses == held[1]).mean(axis=1)
    best = int(scores.argmax())  # of equal ones the strongest penalty
    final = fit_logistic(torch.from_numpy(both[0]), _places(present, both[1]), len(present), [STRENGTHS[best]])
    predicted = present[final.logits(torch.from_numpy(test))[0].argmax(-1).numpy()]
    return ProbeFit(predicted=predicted, strength=STRENGTHS[best], validation=float(scores[best]))


def accuracy_by_group(
    correct: Bool[np.ndarray, " N"], columns: dict[str, np.ndarray], *, confidence: float = CONFIDENCE, seed: int = 0
) -> tuple[dict[str, GroupRates], dict[str, float]]:
    """Accuracy in each group of each split, and Holm's corrected p-values that groups do not differ, over all splits."""
    rates = {split: group_rates(correct, groups, confidence=confidence, seed=seed) for split, groups in columns.items()}
    corrected = holm([found.test.p for found in rates.values()])
    return rates, dict(zip(rates, corrected, strict=True))


def accuracy_tree(rates: dict[str, GroupRates], corrected: dict[str, float]) -> dict[str, Any]:
    """As JSON, by split: the tree of the rates with "p_corrected"."""
    return {split: {**found.tree(), "p_corrected": corrected[split]} for split, found in rates.items()}


def _places(present: np.ndarray, targets: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.searchsorted(present, targets))
