"""Two sets of results side by side: paired tests on the same samples, corrected for how many there are.

For each task and protocol that both have, the difference is first minus second of the headline, or of the first metric that
the outputs of samples give back. A share of right answers is tested by McNemar's exact test, every other metric by a paired
bootstrap: samples are drawn with replacement, the same for both, and p is twice the smaller share of draws on either side of
no difference. p-values are corrected for the number of tests by Holm's rule, which decides; Bonferroni's stand beside.

Letters: N samples, C classes, R draws.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from ostension.errors import DataError
from ostension.evals import metrics
from ostension.evals.metrics import Interval
from ostension.evals.results import Result, read_samples
from ostension.evals.statistics import bonferroni, holm, mcnemar
from ostension.runtime import numpy_generator
from ostension.shapes import Float

ALPHA = 0.05
NEAR = 1e-6  # how near a metric of the samples must come to the record's to be it
WORDS = ("id", "fold", "target", "predicted", "group")  # columns that are no numbers, even where they look so
Verdict = Literal["win", "tie", "loss", "not tested"]
Columns = Mapping[str, np.ndarray]
Statistic = Callable[[Columns, Float[np.ndarray, " N"]], float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """One task and protocol of both.

    Attributes:
        target, protocol, metric: what was measured.
        first, second: its values.
        difference: first minus second, in the metric's unit.
        interval: of the difference, where it is tested.
        test: "mcnemar" or "bootstrap"; empty where it is not tested.
        p, p_holm, p_bonferroni: of no difference, and corrected.
        only_first, only_second: samples that only one of them got right, for McNemar's test.
        count: samples.
        verdict: of the first, by Holm's p-value.
        note: why it is not tested, or what else a reader has to know.
    """

    target: str
    protocol: str
    metric: str
    first: float
    second: float
    difference: float
    interval: Interval | None = None
    test: Literal["mcnemar", "bootstrap", ""] = ""
    p: float | None = None
    p_holm: float | None = None
    p_bonferroni: float | None = None
    only_first: int | None = None
    only_second: int | None = None
    count: int = 0
    verdict: Verdict = "not tested"
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """All pairs, and what only one of the two has, as "task protocol"."""

    pairs: tuple[Pair, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]

    def count(self, verdict: Verdict) -> int:
        """How many pairs ended so."""
        return sum(pair.verdict == verdict for pair in self.pairs)


def compare(
    first: Sequence[Result],
    second: Sequence[Result],
    *,
    protocols: Sequence[str] = (),
    metric: str | None = None,
    alpha: float = ALPHA,
    seed: int = 0,
) -> Comparison:
    """Compare the results of two models (or two settings of one).

    Args:
        protocols: only these.
        metric: this one everywhere, instead of the headline.
        alpha: a corrected p-value below it decides.
        seed: of the bootstrap.

    Raises:
        DataError: for nothing in common, or samples that differ, naming the first.
    """
    known = [{(one.target, one.record.protocol): one for one in some} for some in (first, second)]
    wanted = {name.replace("_", "-") for name in protocols}
    keys = [key for key in known[0] if key in known[1] and (not wanted or key[1] in wanted)]
    if not keys:
        raise DataError("nothing was measured in both", expected="a task and a protocol that both have")
    pairs = [_pair(known[0][key], known[1][key], metric, seed) for key in keys]
    tested = [place for place, pair in enumerate(pairs) if pair.p is not None]
    corrected = holm([pairs[place].p or 0.0 for place in tested])
    for place, p in zip(tested, corrected, strict=True):
        pair = pairs[place]
        assert pair.p is not None
        better = pair.difference * (-1 if known[0][keys[place]].record.metrics[pair.metric].direction == "lower" else 1)
        verdict: Verdict = "tie" if p >= alpha or better == 0 else "win" if better > 0 else "loss"
        pairs[place] = dataclasses.replace(
            pair, p_holm=p, p_bonferroni=bonferroni(pair.p, len(tested)), verdict=verdict
        )  # fmt: skip
    lonely = [
        tuple(" ".join(key) for key in known[here] if key not in known[1 - here] and (not wanted or key[1] in wanted))
        for here in (0, 1)
    ]
    return Comparison(pairs=tuple(pairs), only_first=lonely[0], only_second=lonely[1])


def _pair(first: Result, second: Result, metric: str | None, seed: int) -> Pair:
    records = (first.record, second.record)
    name = metric or next(iter(first.record.metrics))
    where = f"{first.target} {first.record.protocol}"
    for record in records:
        if name not in record.metrics:
            raise DataError(f"has no metric {name!r}", source=f"{record.model} {where}", expected=", ".join(record.metrics))
    if first.limit != second.limit:
        raise DataError(
            f"one is limited to {first.limit}, the other to {second.limit}", source=where, expected="the same samples"
        )
    plain = Pair(
        target=first.target, protocol=first.record.protocol, metric=name, first=records[0].metrics[name].value,
        second=records[1].metrics[name].value, count=records[0].metrics[name].count,
        difference=records[0].metrics[name].value - records[1].metrics[name].value,
    )  # fmt: skip
    if first.samples is None or second.samples is None:
        return dataclasses.replace(plain, note="no outputs of samples: run both with --samples")
    ours, theirs = _aligned(first, second)
    for candidate in [name] if metric else list(records[0].metrics):
        if candidate not in records[1].metrics:
            continue
        values = tuple(record.metrics[candidate].value for record in records)
        for statistic in _statistics(ours, theirs):
            weights = np.ones(len(ours["id"]))
            if all(
                abs(statistic(columns, weights) - value) <= NEAR for columns, value in zip((ours, theirs), values, strict=True)
            ):
                note = "" if candidate == name else f"{name} cannot be tested from the outputs of samples"
                pair = dataclasses.replace(
                    plain, metric=candidate, first=values[0], second=values[1], difference=values[0] - values[1], note=note,
                    count=len(weights),
                )  # fmt: skip
                return _tested(pair, statistic, ours, theirs, seed)
    return dataclasses.replace(plain, note=f"{name} cannot be tested from the outputs of samples")


def _aligned(first: Result, second: Result) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The columns of both in the order of the first.

    Raises:
        DataError: for other samples, or other labels of the same, naming the first.
    """
    columns = [{name: np.array(values) for name, values in read_samples(one).items()} for one in (first, second)]
    ids = [
        [f"{name} (fold {fold})" for name, fold in zip(some["id"], some["fold"], strict=True)]
        if "fold" in some
        else some["id"].tolist()
        for some in columns
    ]
    where = f"{first.target} {first.record.protocol}"
    places = {name: place for place, name in enumerate(ids[1])}
    for here, there, known, model in ((ids[0], second, places, first), (ids[1], first, set(ids[0]), second)):
        stranger = next((name for name in here if name not in known), None)
        if stranger is not None:
            what = f"the sample {stranger!r} is in {model.record.model} and not in {there.record.model}"
            raise DataError(what, source=where, expected="results on the same samples")
    order = np.array([places[name] for name in ids[0]], dtype=np.int64)
    theirs = {name: values[order] for name, values in columns[1].items()}
    if "target" in columns[0] and "target" in theirs:
        differ = np.flatnonzero(columns[0]["target"] != theirs["target"])
        if len(differ):
            place = int(differ[0])
            labels = f"{str(columns[0]['target'][place])!r} and {str(theirs['target'][place])!r}"
            raise DataError(f"the sample {ids[0][place]!r} has the labels {labels}", source=where, expected="the same label")
    return columns[0], theirs


def _statistics(ours: Columns, theirs: Columns) -> list[Statistic]:
    """What the columns give back of metrics, the most usual first."""
    common = set(ours) & set(theirs)
    found: list[Statistic] = []
    if "correct" in common:
        found.append(_mean_correct)
    if {"correct", "target"} <= common:
        found.append(_mean_per_class)
    if {"predicted", "target"} <= common:
        found.append(_macro_f1)
    if {"correct", "group"} <= common:
        found.append(_worst_group)
    if "rank" in common:
        found += [_recall(k) for k in (1, 5, 10)]
    # Any other number of a sample whose mean is the metric, such as the share of draws of a few-shot probe that were right.
    rest = [
        name
        for name in ours
        if name in common and name not in WORDS and _are_numbers(ours[name]) and _are_numbers(theirs[name])
    ]
    return found + [_mean(name) for name in rest]


def _are_numbers(column: np.ndarray) -> bool:
    try:
        return bool(np.isfinite(column.astype(np.float64)).all())
    except ValueError:
        return False


def _mean(name: str) -> Statistic:
    return lambda columns, weights: float(weights @ columns[name].astype(np.float64) / weights.sum())


def _mean_correct(columns: Columns, weights: np.ndarray) -> float:
    return float(weights @ columns["correct"].astype(float) / weights.sum())


def _mean_per_class(columns: Columns, weights: np.ndarray) -> float:
    shares = _shares(columns["target"], columns, weights)
    return float(shares.mean())


def _worst_group(columns: Columns, weights: np.ndarray) -> float:
    return float(_shares(columns["group"], columns, weights).min())


def _shares(cells: np.ndarray, columns: Columns, weights: np.ndarray) -> np.ndarray:
    _, members = np.unique(cells, return_inverse=True)
    sizes = np.bincount(members, weights=weights)
    right = np.bincount(members, weights=weights * columns["correct"].astype(float))
    return right[sizes > 0] / sizes[sizes > 0]


def _macro_f1(columns: Columns, weights: np.ndarray) -> float:
    keys, both = np.unique(np.concatenate([columns["target"], columns["predicted"]]), return_inverse=True)
    target, predicted = both[: len(weights)], both[len(weights) :]
    size = np.bincount(target, weights=weights, minlength=len(keys))
    given = np.bincount(predicted, weights=weights, minlength=len(keys))
    right = np.bincount(target, weights=weights * (target == predicted), minlength=len(keys))
    present = size > 0
    return float((2 * right[present] / (size + given)[present]).mean())


def _recall(k: int) -> Statistic:
    return lambda columns, weights: float(weights @ (columns["rank"].astype(float) <= k) / weights.sum())


def _tested(pair: Pair, statistic: Statistic, ours: Columns, theirs: Columns, seed: int) -> Pair:
    generator = numpy_generator(seed, "compare")
    count = len(ours["id"])
    if statistic is _mean_correct and all(set(columns["correct"]) <= {"0", "1"} for columns in (ours, theirs)):
        right, other = (columns["correct"] == "1" for columns in (ours, theirs))
        only = int((right & ~other).sum()), int((other & ~right).sum())
        span = metrics.bootstrap_interval(right.astype(float) - other.astype(float), seed=seed)
        return dataclasses.replace(
            pair, test="mcnemar", p=mcnemar(*only), interval=span, only_first=only[0], only_second=only[1]
        )  # fmt: skip
    coded = [_coded(columns) for columns in (ours, theirs)]
    drawn = np.empty(metrics.BOOTSTRAP_RESAMPLES)
    for draw in range(len(drawn)):
        weights = np.bincount(generator.integers(count, size=count), minlength=count).astype(np.float64)
        drawn[draw] = statistic(coded[0], weights) - statistic(coded[1], weights)
    low, high = (drawn <= 0).sum() + 1, (drawn >= 0).sum() + 1
    p = min(1.0, 2 * float(min(low, high)) / (len(drawn) + 1))
    return dataclasses.replace(pair, test="bootstrap", p=p, interval=metrics.percentile_interval(drawn))


def _coded(columns: Columns) -> dict[str, np.ndarray]:
    """Columns as numbers, which are faster to count than texts: labels by one list for targets and predictions."""
    found = dict(columns)
    if "target" in columns:
        known = [columns[name] for name in ("target", "predicted") if name in columns]
        _, codes = np.unique(np.concatenate(known), return_inverse=True)
        parts = np.split(codes, len(known))
        found |= dict(zip([name for name in ("target", "predicted") if name in columns], parts, strict=True))
    if "group" in columns:
        found["group"] = np.unique(columns["group"], return_inverse=True)[1]
    for name in columns:
        if name not in WORDS and _are_numbers(columns[name]):
            found[name] = columns[name].astype(np.float64)
    return found
