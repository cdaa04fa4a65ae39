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


def draw(records: Sequence[Record]) -> list[Figure]:
    return [figure for model in models(records) if (figure := _of_model(records, model))]


def difference(zero_shot: Metric, probe: Metric) -> tuple[float, float | None, float | None]:
    """Zero-shot minus probe, and the ends of an interval from the two intervals as if they were independent.

    Both were measured on the same samples, so the paired interval would be narrower. Half-widths are joined by
    squares at each end (Newcombe 1998, method 10).
    """
    value = zero_shot.value - probe.value
    if zero_shot.interval is None or probe.interval is None:
        return value, None, None
    one_, other = zero_shot.interval, probe.interval
    low = value - math.hypot(zero_shot.value - one_.low, other.high - probe.value)
    high = value + math.hypot(one_.high - zero_shot.value, probe.value - other.low)
    return value, low, high


def _of_model(records: Sequence[Record], model: str) -> Figure | None:
    found = []
    for task in tasks(records, "zeroshot"):
        zero_shot, probe = one(records, "zeroshot", model, task), one(records, "probe", model, task)
        if zero_shot and probe:
            found.append((task_title(task), zero_shot.headline, probe.headline))
    if not found:
        return None
    found.sort(key=lambda entry: entry[2].value - entry[1].value)
    rows, ends = [], [0.0]
    for title, zero_shot_, probe_ in found:
        value, low, high = difference(zero_shot_, probe_)
        note = f"{100 * zero_shot_.value:.1f} against {100 * probe_.value:.1f} %"
        bar = Bar(value=value, words=f"{100 * value:+.1f}".replace("-", "−"), style=style(records, model), low=low, high=high)
        rows.append(Row(name=title, bars=[bar], note=note))
        ends += [end for end in (value, low, high) if end is not None]
    won = sum(zero_shot_.value > probe_.value for _, zero_shot_, probe_ in found)
    told = ", ".join(f"{row.name} {row.bars[0].words}" for row in rows)
    svg = bar_chart(
        rows, linear(ends, words=points_words, zero=True), title=f"Zero-shot minus linear probe, {model}",
        description=f"Differences in percentage points: {told}", label="percentage points, zero-shot minus probe",
    )  # fmt: skip
    sets = "1 set" if len(found) == 1 else f"{len(found)} sets"
    return Figure(
        name=slug("zero-shot-minus-probe", model),
        title=f"Zero-shot minus linear probe: {model}",
        says=f"Right of zero, the class names alone did better than a probe trained on all labels: {won} of {sets}. The lines "
        "are intervals that treat both results as independent; they share their test samples, so the true ones are narrower.",
        svg=svg,
        keys=(Key(name=model, style=style(records, model), what="bar"),),
    )
