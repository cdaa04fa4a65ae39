"""Zero-shot minus the linear probe of the same model, set by set, sorted (after CLIP's Figure 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ostension.evals.chart_bars import Bar, Row, bar_chart
from ostension.evals.chart_frame import linear, points_words
from ostension.evals.chart_marks import Key
from ostension.evals.figure import Figure
from ostension.evals.records import Metric, Record
from ostension.evals.selection import models, one, slug, style, task_title, tasks

SECTION = "labels"
Pairs = dict[str, tuple[Metric, Metric]]  # zero-shot and probe by set


def draw(records: Sequence[Record]) -> list[Figure]:
    found = {model: pairs for model in models(records) if (pairs := _pairs(records, model))}
    if not found:
        return []
    return [_one(records, *next(iter(found.items()))) if len(found) == 1 else _several(records, found)]


def difference(zero_shot: Metric, probe: Metric) -> tuple[float, float | None, float | None]:
    """Zero-shot minus probe, and the ends of an interval from the two intervals as if they were independent.

    Both were measured on the same samples, so the paired interval would be narrower. Half-widths are joined by
    squares at each end (Newcombe 1998, method 10).
    """
    value = zero_shot.value - probe.value
    if zero_shot.interval is None or probe.interval is None:
        return value, None, None
    first, second = zero_shot.interval, probe.interval
    low = value - math.hypot(zero_shot.value - first.low, second.high - probe.value)
    high = value + math.hypot(first.high - zero_shot.value, probe.value - second.low)
    return value, low, high


def _pairs(records: Sequence[Record], model: str) -> Pairs:
    found = {}
    for task in tasks(records, "zeroshot"):
        zero_shot, probe = one(records, "zeroshot", model, task), one(records, "probe", model, task)
        if zero_shot and probe:
            found[task_title(task)] = zero_shot.headline, probe.headline
    return found


def _one(records: Sequence[Record], model: str, pairs: Pairs) -> Figure:
    rows, ends = [], [0.0]
    for title, (zero_shot, probe) in sorted(pairs.items(), key=lambda entry: entry[1][1].value - entry[1][0].value):
        value, low, high = difference(zero_shot, probe)
        bar = Bar(value=value, words=_points(value), style=style(records, model), low=low, high=high)
        note = f"{100 * zero_shot.value:.1f} against {100 * probe.value:.1f} %"
        rows.append(Row(name=title, bars=[bar], note=note))
        ends += [end for end in (value, low, high) if end is not None]
    won = sum(zero_shot.value > probe.value for zero_shot, probe in pairs.values())
    told = ", ".join(f"{row.name} {row.bars[0].words}" for row in rows)
    svg = bar_chart(
        rows, linear(ends, words=points_words, zero=True), title=f"Zero-shot minus linear probe, {model}",
        description=f"Differences in percentage points: {told}", label="percentage points, zero-shot minus probe",
    )  # fmt: skip
    return Figure(
        name=slug("zero-shot-minus-probe", model),
        title=f"Zero-shot minus linear probe: {model}",
        says=f"Right of zero, the class names alone did better than a probe trained on all labels: {won} of "
        f"{_sets(len(pairs))}. The lines are intervals that treat both results as independent; they share their test samples, "
        "so the true ones are narrower.",
        svg=svg,
    )


def _several(records: Sequence[Record], found: dict[str, Pairs]) -> Figure:
    values: dict[str, list[Bar]] = {}
    for model, pairs in found.items():
        for title, (zero_shot, probe) in pairs.items():
            value = zero_shot.value - probe.value
            words = f"{title}, {model}: {_points(value)} points, {100 * zero_shot.value:.1f} against {100 * probe.value:.1f} %"
            bar = Bar(value=value, words=_points(value), style=style(records, model), title=words)
            values.setdefault(title, []).append(bar)
    means = {title: sum(bar.value for bar in bars) / len(bars) for title, bars in values.items()}
    rows = [Row(name=title, bars=values[title]) for title in sorted(means, key=lambda title: -means[title])]
    won = "; ".join(
        f"{model} {sum(zero_shot.value > probe.value for zero_shot, probe in pairs.values())} of {_sets(len(pairs))}"
        for model, pairs in found.items()
    )
    told = "; ".join(bar.title for row in rows for bar in row.bars)
    svg = bar_chart(
        rows, linear([bar.value for row in rows for bar in row.bars], words=points_words, zero=True), together=True,
        title="Zero-shot minus linear probe", description=told, label="percentage points, zero-shot minus probe",
    )  # fmt: skip
    return Figure(
        name="zero-shot-minus-probe",
        title="Zero-shot minus linear probe, by model",
        says=f"Right of zero, the class names alone did better than a probe trained on all labels: {won}. Sets are sorted by "
        "the mean over models.",
        svg=svg,
        keys=tuple(Key(name=model, style=style(records, model)) for model in found),
    )


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")


def _sets(count: int) -> str:
    return "1 set" if count == 1 else f"{count} sets"
