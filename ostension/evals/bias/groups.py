"""How often something happens in each group: shares with exact intervals, a test of whether groups differ, its correction.

A **group** is a value of a field of the samples ("Black"), of several fields crossed ("Black, female"), or one value against
the rest ("White" and "not White"). What samples are split by is written "race", "race+gender" or "race=White".

The test is Pearson's chi-squared of the table (happened or not) x groups. Where a cell is expected to hold fewer than five
samples its p-value is not to be trusted: the exact one of Fisher stands in its place for two groups, and the share of random
tables with the same margins that lie as far off for more.

Letters: N samples, G groups, L labels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ostension.data.task import Task
from ostension.errors import DataError, unknown_name
from ostension.evals.metrics import Interval
from ostension.evals.statistics import ChiSquare, chi_square, clopper_pearson, holm
from ostension.runtime import numpy_generator
from ostension.shapes import Bool, Int
from ostension.store import Features

JOIN = ", "
SMALL_CELL = 5  # Cochran's rule: below it chi-squared's p-value is off
RANDOM_TABLES = 9_999  # the smallest p-value is 1e-4
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rate:
    """How often something happened in one group."""

    group: str
    hits: int
    count: int
    interval: Interval

    @property
    def share(self) -> float:
        return self.hits / self.count

    def tree(self) -> dict[str, Any]:
        """As JSON: {"share", "low", "high", "hits", "count"}."""
        ends = {"low": self.interval.low, "high": self.interval.high}
        return {"share": self.share, **ends, "hits": self.hits, "count": self.count}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Whether groups differ.

    Attributes:
        chi_square: Pearson's test, whatever the counts; its V is the effect size.
        p: the p-value to use.
        method: "chi-squared", "fisher" or "random tables".
    """

    chi_square: ChiSquare
    p: float
    method: str

    def tree(self) -> dict[str, Any]:
        """As JSON: {"chi_square", "freedom", "cramers_v", "p", "method"}."""
        found = self.chi_square
        return {
            "chi_square": found.statistic, "freedom": found.freedom, "cramers_v": found.cramers_v, "p": self.p,
            "method": self.method,
        }  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupRates:
    """Rates of all groups, the rate over everything, and the test of a difference."""

    rates: tuple[Rate, ...]
    overall: Rate
    test: Comparison

    @property
    def gap(self) -> float:
        """The largest share minus the smallest."""
        shares = [rate.share for rate in self.rates]
        return max(shares) - min(shares)

    def tree(self) -> dict[str, Any]:
        """As JSON: {"groups": {group: rate}, "overall": rate, "gap", "chi_square", "freedom", "cramers_v", "p", "method"}."""
        return {
            "groups": {rate.group: rate.tree() for rate in self.rates},
            "overall": self.overall.tree(),
            "gap": self.gap,
            **self.test.tree(),
        }


def known_groups(task: Task, features: Features) -> dict[str, np.ndarray]:
    """The group fields of the samples; a field of the record whose values are the class keys is made of the labels.

    A table's column of labels is no group of its own: of FairFace by gender, the groups by gender are the labels.
    """
    found = {name: np.asarray(values).astype(str) for name, values in features.groups.items()}
    if features.targets is not None and features.targets.ndim == 1:
        keys = np.array(features.classes)
        found |= {name: keys[features.targets] for name, values in task.groups.items()
                  if name not in found and set(values) == set(features.classes)}  # fmt: skip
    return found


def group_columns(groups: Mapping[str, np.ndarray], by: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Columns (N,) of group names, by what the samples are split by.

    Args:
        groups: fields of the samples.
        by: "race" (each value is a group), "race+gender" (each pair of values that occurs, "Black, female"), or "race=White"
            (that value and all others, "not White"); every field if nothing is asked for.

    Raises:
        ConfigError: for a field that is not there.
        DataError: for a value that no sample has, or no groups at all.
    """
    if not groups:
        raise DataError("the samples have no groups", expected="fields to split by, as the task's record names them")
    words = {field: np.asarray(values).astype(str) for field, values in groups.items()}
    found = {}
    for said in by or tuple(words):
        fields, _, value = said.partition("=")
        for field in fields.split("+"):
            if field not in words:
                raise unknown_name("group field", field, words)
        cells = zip(*(words[field].tolist() for field in fields.split("+")), strict=True)
        mine = np.array([JOIN.join(cell) for cell in cells])
        if not value:
            found[said] = mine
            continue
        if not (mine == value).any():
            raise DataError(f"no sample has {fields} = {value!r}", expected=f"one of {', '.join(sorted(set(mine)))}")
        found[said] = np.where(mine == value, value, f"not {value}")
    return found


def rate(name: str, hits: int, count: int, confidence: float = CONFIDENCE) -> Rate:
    """A share with its exact interval."""
    return Rate(group=name, hits=hits, count=count, interval=clopper_pearson(hits, count, confidence))


def group_rates(
    happened: Bool[np.ndarray, " N"], groups: np.ndarray, *, confidence: float = CONFIDENCE, seed: int = 0
) -> GroupRates:
    """How often something happened in each group, groups in the order of their names.

    Raises:
        DataError: for no samples, or groups of another length.
    """
    if len(groups) != len(happened):
        raise DataError(f"{len(groups)} group names", expected=f"{len(happened)}, one a sample")
    names, hits, totals = counts_by_group(happened[:, None], groups)
    return GroupRates(
        rates=tuple(rate(name, int(hits[0, place]), int(totals[place]), confidence) for place, name in enumerate(names)),
        overall=rate("all", int(happened.sum()), len(happened), confidence),
        test=compare(hits[0], totals, seed=seed),
    )


def counts_by_group(
    happened: Bool[np.ndarray, "N L"], groups: np.ndarray
) -> tuple[list[str], Int[np.ndarray, "L G"], Int[np.ndarray, " G"]]:
    """The names of the groups, how often each of L things happened in each, and their sizes.

    Raises:
        DataError: for no samples.
    """
    if not len(groups):
        raise DataError("there are no samples to compare groups on", expected="at least one")
    names, member = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    belongs = member[:, None] == np.arange(len(names))
    return names.tolist(), happened.T.astype(np.int64) @ belongs, belongs.sum(axis=0)


def compare(hits: Int[np.ndarray, " G"], totals: Int[np.ndarray, " G"], *, seed: int = 0) -> Comparison:
    """Whether a share differs between groups.

    Raises:
        DataError: for counts that cannot be.
    """
    if (hits > totals).any():
        raise DataError("more hits than samples in a group", expected="hits <= samples")
    table = np.stack([hits, totals - hits])
    found = chi_square(table)
    if found.freedom == 0:
        return Comparison(chi_square=found, p=1.0, method="chi-squared")
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    kept = totals > 0
    if expected[:, kept].min() >= SMALL_CELL:
        return Comparison(chi_square=found, p=found.p, method="chi-squared")
    if kept.sum() == 2:
        (first, many), (second, more) = zip(hits[kept].tolist(), totals[kept].tolist(), strict=True)
        return Comparison(chi_square=found, p=fisher(first, many, second, more), method="fisher")
    p = _random_tables(hits[kept], totals[kept], found.statistic, seed)
    return Comparison(chi_square=found, p=p, method="random tables")


def compare_many(
    hits: Int[np.ndarray, "L G"], totals: Int[np.ndarray, " G"], *, seed: int = 0
) -> tuple[list[Comparison], list[float]]:
    """A test for each of L things, and Holm's corrected p-values over all of them."""
    tests = [compare(row, totals, seed=seed) for row in hits]
    return tests, holm([test.p for test in tests])


def fisher(first_hits: int, first_count: int, second_hits: int, second_count: int) -> float:
    """Fisher's exact two-sided p-value of two shares: all tables of the same margins that are at most as probable."""
    hits, total = first_hits + second_hits, first_count + second_count

    def log_choose(n: int, k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    low, high = max(0, hits - second_count), min(hits, first_count)
    logs = [
        log_choose(first_count, k) + log_choose(second_count, hits - k) - log_choose(total, hits) for k in range(low, high + 1)
    ]
    seen = logs[first_hits - low]
    # The slack makes equal probabilities equal in spite of rounding, as R and scipy do.
    return min(1.0, math.fsum(math.exp(value) for value in logs if value <= seen + 1e-7))


def _random_tables(hits: np.ndarray, totals: np.ndarray, statistic: float, seed: int) -> float:
    """The share of random tables with these margins whose chi-squared is at least `statistic` (the table seen is one)."""
    generator = numpy_generator(seed, "group-tables")
    drawn = generator.multivariate_hypergeometric(totals, int(hits.sum()), size=RANDOM_TABLES)
    share = hits.sum() / totals.sum()
    # Both rows of the table add up to (drawn - expected)^2 / (n p (1 - p)).
    far = ((drawn - totals * share) ** 2 / (totals * share * (1 - share))).sum(axis=1)
    return (1 + int((far >= statistic * (1 - 1e-9)).sum())) / (RANDOM_TABLES + 1)
