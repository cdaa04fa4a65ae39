"""Harm categories: how often each group is called something that it must not be, and what one more class changes.

The classes are neutral texts (what the samples may be called) and harm texts in categories. Each sample gets the one text
with the largest logit; it falls into a category if that text belongs to it. In the words of DataComp's `fairness_eval`, with
14 neutral texts, 4 of the category non-human and 3 of crime: argmax index 14 to 17 is non-human, 18 and above is crime.

The added-class experiment asks again with more neutral texts (`child`) behind the others: only samples that now get one of
them can change, so shares of harm can only fall, and by how much in each group is the result.

Letters: N samples, T texts, A added texts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ostension.errors import DataError
from ostension.evals.bias.groups import CONFIDENCE, GroupRates, group_rates
from ostension.evals.statistics import holm, mcnemar
from ostension.shapes import Float, Int

NEUTRAL = ""  # the category of texts that are no harm
ANY_HARM = "any harm"  # the union of the categories


def category_of(sizes: Mapping[str, int], neutral: int) -> tuple[str, ...]:
    """The category of each text, for `neutral` neutral texts followed by those of each category in order."""
    return (NEUTRAL,) * neutral + tuple(name for name, size in sizes.items() for _ in range(size))


def fallen(logits: Float[np.ndarray, "N T"], categories: Sequence[str]) -> np.ndarray:
    """(N,) the category of each sample's best text; equal logits go to the first text.

    Raises:
        DataError: if there are not as many categories as texts.
    """
    if logits.shape[1] != len(categories):
        raise DataError(f"{len(categories)} categories for {logits.shape[1]} texts", expected="one for each text")
    return np.array(categories, dtype=object)[logits.argmax(axis=1)].astype(str)


def harm_rates(
    category: np.ndarray, names: Sequence[str], groups: np.ndarray, *, confidence: float = CONFIDENCE, seed: int = 0
) -> dict[str, GroupRates]:
    """By category, the share of each group that falls into it.

    Args:
        category: (N,) of each sample.
        names: the categories to look at; "any harm" stands for all of them together.
    """
    found = {}
    for name in names:
        happened = (category != NEUTRAL) if name == ANY_HARM else (category == name)
        found[name] = group_rates(happened, groups, confidence=confidence, seed=seed)
    return found


def category_names(categories: Sequence[str]) -> tuple[str, ...]:
    """The harm categories among those of the texts, in order, and "any harm" where there are several."""
    names = tuple(dict.fromkeys(name for name in categories if name != NEUTRAL))
    return (*names, ANY_HARM) if len(names) > 1 else names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """What the added texts do to one category in one group.

    Attributes:
        group, category: whose share of what.
        count: samples of the group.
        before, after: samples that fall into the category.
        p: exact McNemar's p-value that nothing changed, corrected by Holm over all changes of the experiment.
    """

    group: str
    category: str
    count: int
    before: int
    after: int
    p: float

    def tree(self) -> dict[str, Any]:
        """As JSON, with shares: {"group", "category", "count", "before", "after", "p"}."""
        shares = {"before": self.before / self.count, "after": self.after / self.count}
        return {"group": self.group, "category": self.category, "count": self.count, **shares, "p": self.p}


def added_class(
    logits: Float[np.ndarray, "N T"], added: Float[np.ndarray, "N A"], categories: Sequence[str], groups: np.ndarray
) -> tuple[list[Change], Int[np.ndarray, " N"]]:
    """The change of every category in every group (and in "all"), and the added text that each sample got (-1: none).

    A sample whose best text has the same logit as an added one keeps it.
    """
    before = fallen(logits, categories)
    best = added.argmax(axis=1)
    takes = added.max(axis=1) > logits.max(axis=1)
    after = np.where(takes, NEUTRAL, before)
    found = []
    for group in [*sorted(set(groups.tolist())), "all"]:
        chosen = np.ones(len(groups), dtype=bool) if group == "all" else groups == group
        for category in category_names(categories):
            was, is_ = (
                (column[chosen] != NEUTRAL) if category == ANY_HARM else (column[chosen] == category)
                for column in (before, after)
            )
            found.append(
                Change(
                    group=str(group), category=category, count=int(chosen.sum()), before=int(was.sum()),
                    after=int(is_.sum()), p=mcnemar(int((was & ~is_).sum()), int((is_ & ~was).sum())),
                )
            )  # fmt: skip
    corrected = holm([change.p for change in found])
    return (
        [dataclasses.replace(change, p=p) for change, p in zip(found, corrected, strict=True)],
        np.where(takes, best, -1),
    )
