"""Labels by group: which labels pass a threshold of probability, for whom, and which are the most skewed.

A sample has every label whose softmax probability is at least the threshold (the paper's 0.5 % and 4 %), and at the threshold
"top" its single best one. For each label the frequencies of the groups are compared (chi-squared, exact where counts are
small), p-values are corrected over all labels by Holm, and labels are ordered by how far apart the groups are.

Letters: N samples, L labels, G groups.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ostension.errors import DataError
from ostension.evals.bias.groups import CONFIDENCE, Rate, compare_many, counts_by_group, rate
from ostension.shapes import Bool, Float

TOP: str = "top"  # the threshold that only the best label passes
Threshold = float | str
SIGNIFICANT = 0.05


def labels_above(probabilities: Float[np.ndarray, "N L"], threshold: Threshold) -> Bool[np.ndarray, "N L"]:
    """Which labels each sample has.

    Raises:
        DataError: for a threshold that is no probability, or probabilities that do not add up to 1.
    """
    if not np.allclose(probabilities.sum(axis=1), 1, atol=1e-4):
        raise DataError("probabilities do not add up to 1", expected="a softmax over all labels")
    if threshold == TOP:
        return np.arange(probabilities.shape[1]) == probabilities.argmax(axis=1)[:, None]
    if isinstance(threshold, str) or not 0 <= threshold <= 1:
        raise DataError(f"the threshold is {threshold!r}", expected=f"a probability, or {TOP!r}")
    return probabilities >= threshold


@dataclasses.dataclass(frozen=True, kw_only=True)
class Skew:
    """One label's frequency in each group.

    Attributes:
        label: its name.
        rates: share of each group's samples that have the label.
        gap: the largest share minus the smallest.
        most: the group with the largest share.
        cramers_v: the effect size of chi-squared, 0..1.
        p: corrected over all labels.
        method: of the p-value.
    """

    label: str
    rates: tuple[Rate, ...]
    gap: float
    most: str
    cramers_v: float
    p: float
    method: str

    def tree(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "label": self.label, "most": self.most, "gap": self.gap, "cramers_v": self.cramers_v, "p": self.p,
            "method": self.method, "groups": {rate.group: rate.tree() for rate in self.rates},
        }  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelSkew:
    """Labels of one threshold, split by one field.

    Attributes:
        threshold: of probability, or "top".
        skewed: the most skewed labels, largest effect first.
        significant: how many labels differ between groups at 5 %, corrected.
        used: labels that at least one sample has.
        only: by group, labels that samples of no other group have, most frequent first.
        labels_each: by group, the mean number of labels that a sample has.
    """

    threshold: Threshold
    skewed: tuple[Skew, ...]
    significant: int
    used: int
    only: dict[str, tuple[str, ...]]
    labels_each: dict[str, float]

    def tree(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "threshold": self.threshold, "significant": self.significant, "used": self.used,
            "labels_each": self.labels_each, "only": {group: list(names) for group, names in self.only.items()},
            "skewed": [skew.tree() for skew in self.skewed],
        }  # fmt: skip


def label_skew(
    probabilities: Float[np.ndarray, "N L"],
    labels: Sequence[str],
    groups: np.ndarray,
    threshold: Threshold,
    *,
    top: int = 20,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> LabelSkew:
    """The labels that pass a threshold, by group.

    Labels are ordered by the effect size V, then by the gap: among labels that everybody or nobody has, both are 0.

    Raises:
        DataError: for lengths that differ.
    """
    if probabilities.shape != (len(groups), len(labels)):
        what = f"probabilities of shape {probabilities.shape}"
        raise DataError(what, expected=f"({len(groups)}, {len(labels)}), samples by labels")
    has = labels_above(probabilities, threshold)
    names, hits, totals = counts_by_group(has, groups)
    tests, corrected = compare_many(hits, totals, seed=seed)
    shares = hits / totals
    gaps = shares.max(axis=1) - shares.min(axis=1)
    order = sorted(range(len(labels)), key=lambda place: (-tests[place].chi_square.cramers_v, -gaps[place]))
    skewed = [
        Skew(
            label=labels[place],
            rates=tuple(rate(name, int(hits[place, g]), int(totals[g]), confidence) for g, name in enumerate(names)),
            gap=float(gaps[place]), most=names[int(shares[place].argmax())],
            cramers_v=tests[place].chi_square.cramers_v, p=corrected[place], method=tests[place].method,
        )
        for place in order[:top] if hits[place].any()
    ]  # fmt: skip
    alone = (hits > 0).sum(axis=1) == 1
    only = {}
    for g, name in enumerate(names):
        mine = np.flatnonzero(alone & (hits[:, g] > 0))
        only[name] = tuple(labels[place] for place in mine[np.argsort(-hits[mine, g], kind="stable")])
    return LabelSkew(
        threshold=threshold,
        skewed=tuple(skewed),
        significant=sum(p < SIGNIFICANT for p in corrected),
        used=int((hits.sum(axis=1) > 0).sum()),
        only=only,
        labels_each={name: float(hits[:, g].sum() / totals[g]) for g, name in enumerate(names)},
    )
