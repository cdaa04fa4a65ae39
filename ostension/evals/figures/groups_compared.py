"""Accuracy by group, zero-shot beside a probe: whether labels help the group that is served worst."""

from __future__ import annotations

from collections.abc import Sequence

from ostension.evals.chart_bars import Bar, Row, bar_chart
from ostension.evals.chart_frame import linear
from ostension.evals.chart_marks import Key, style_of
from ostension.evals.figure import Figure
from ostension.evals.records import Record
from ostension.evals.selection import find, slug, target, task_title

SECTION = "groups"
MAX_GROUPS = 24  # the worst ones; the record has all
KINDS = {"groups": "zero-shot", "probe_groups": "probe"}


def draw(records: Sequence[Record]) -> list[Figure]:
    return [_of_record(record) for record in find(records, "groups")]


def _of_record(record: Record) -> Figure:
    details = record.details
    kinds = [kind for kind in KINDS if kind in details]
    cells = list(details["groups"])[:MAX_GROUPS]
    rows = []
    for cell in cells:
        bars = []
        for number, kind in enumerate(kinds):
            value, _, low, high = details[kind][cell]
            bars.append(Bar(value=value, words=f"{100 * value:.1f} %", style=style_of(number), low=low, high=high))
        rows.append(Row(name=cell, bars=bars, note=f"{details['groups'][cell][1]:,} samples"))
    says = _says("zero-shot", details["worst"], record.metrics["gap"].value, details["by_chance"])
    if "probe_groups" in kinds:
        says += " " + _says("the probe", details["probe_worst"], record.metrics["probe_gap"].value, details["probe_by_chance"])
    if len(details["groups"]) > MAX_GROUPS:
        says += f" Shown are the {MAX_GROUPS} worst of {len(details['groups'])}."
    told = "; ".join(f"{row.name}: " + ", ".join(bar.words for bar in row.bars) for row in rows)
    return Figure(
        name=slug("groups-compared", target(record), record.model), title=f"{task_title(target(record))}: {record.model}",
        says=says,
        svg=bar_chart(rows, linear([0.0, 1.0]), title=f"Accuracy by group, {record.model}", description=told, label="accuracy"),
        keys=tuple(Key(name=KINDS[kind], style=style_of(number), what="bar") for number, kind in enumerate(kinds)),
    )  # fmt: skip


def _says(who: str, worst: str, gap: float, by_chance: float) -> str:
    chance = "less than 0.1 %" if by_chance < 0.001 else f"{100 * by_chance:.2g} %"
    gap_words = f"{100 * gap:.1f}".replace("-", "−")
    return (
        f"For {who} the worst group is {worst}, {gap_words} points below the average; were all groups equal, one would be as "
        f"low with a probability of {chance}."
    )
