"""Data overlap: how much easier what was seen is, and what that adds to each set's accuracy (after CLIP's Figure 17)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ostension.evals import report
from ostension.evals.chart_frame import Frame, label, linear, percent_words, points_words
from ostension.evals.chart_marks import Key, Style, mark
from ostension.evals.figure import Figure
from ostension.evals.overlap import PROTOCOL, PUBLISHED
from ostension.evals.records import Record
from ostension.evals.selection import find, slug

SECTION = "overlap"
CHANCE, SEEN = Style(colour=1, shape=0), Style(colour=2, shape=3)
NAMED = 6
Row = Mapping[str, Any]


def draw(records: Sequence[Record]) -> list[Figure]:
    found = [figure for record in find(records, PROTOCOL) for figure in (_differences(record), _shifts(record)) if figure]
    return [dataclasses.replace(figure, detail=place > 1) for place, figure in enumerate(found)]


def _differences(record: Record) -> Figure | None:
    """acc(Overlap) - acc(Clean) of each set with its interval."""
    rows = [row for row in record.details["sets"] if row["difference"] is not None]
    if not rows:
        return None
    spans = [[end - row["accuracy"]["clean"] for end in row["interval"]] for row in rows]
    shares = [0.0, *(row["contamination"] for row in rows)]
    frame = Frame(
        x=linear(shares, words=percent_words), y=linear([0.0, *(end for span in spans for end in span)], words=points_words),
        x_label="of the set was in training", y_label="accuracy on what was seen, less on what was not (points)",
    )  # fmt: skip
    parts = [_zero(frame)]
    for row, (low, high) in zip(rows, spans, strict=True):
        ends = " ".join(f"{x:.1f},{y:.1f}" for x, y in (frame.at(row["contamination"], end) for end in (low, high)))
        parts.append(f'<polyline class="line whisker" points="{ends}"/>')
    parts += [_point(frame, record, row, row["difference"]) for row in rows]
    parts += _names(frame, rows, "difference")
    each = "; ".join(f"{row['task']} {100 * row['difference']:+.1f} at {100 * row['contamination']:.1f} %" for row in rows)
    return Figure(
        name=slug("overlap-differences", record.model), title=_title("Is it better at what it had seen?", record),
        says="Each mark is a set; the line is the exact 99.5 % interval of the accuracy on its near-duplicates. A set whose "
        "line crosses zero may owe its difference to luck.",
        svg=frame.draw(parts, title="Accuracy on overlapping less on clean samples", description=each), keys=_keys(record),
    )  # fmt: skip


def _shifts(record: Record) -> Figure | None:
    """acc(All) - acc(Clean) of each set, and the table."""
    rows = [row for row in record.details["sets"] if row["delta"] is not None]
    if not rows:
        return None
    metrics, count = record.metrics, len(record.details["sets"])
    frame = Frame(
        x=linear([0.0, *(row["contamination"] for row in rows)], words=percent_words),
        y=linear([0.0, *(row["delta"] for row in rows)], words=points_words),
        x_label="of the set was in training", y_label="what the overlap adds to the accuracy (points)",
    )  # fmt: skip
    parts = [_zero(frame), *(_point(frame, record, row, row["delta"]) for row in rows), *_names(frame, rows, "delta")]
    each = "; ".join(f"{row['task']} {100 * row['delta']:+.2f} at {100 * row['contamination']:.1f} %" for row in rows)
    facts = {fact.name: fact.value for fact in PUBLISHED}
    without = round(metrics["without_overlap"].value * count)
    significant = ", ".join(record.details["significant"]) or "none"
    says = (
        f"{without} of {count} sets have no overlap; the median is {_percent(metrics['median_contamination'].value)}. "
        f"Significant after correction for {record.config['tests']} tests: {significant}. "
        f"The paper found {facts['sets without any overlap']} of {facts['sets']} without, a median of "
        f"{_percent(facts['median contamination'])}, at most +{100 * facts['Birdsnap delta']:.1f} points, and "
        f"{facts['sets significant after the correction']} significant."
    )
    return Figure(
        name=slug("overlap-shifts", record.model), title=_title("What does having seen the test add?", record), says=says,
        svg=frame.draw(parts, title="Accuracy on all samples less on clean ones", description=each), keys=_keys(record),
        more=report.details("All sets", _table(record)),
    )  # fmt: skip


def _table(record: Record) -> str:
    head = ("set", "samples", "overlap", "all", "clean", "overlap", "delta", "p", "p corrected")
    cells = []
    for row in record.details["sets"]:
        accuracy = [_percent(row["accuracy"][part]) for part in ("all", "clean", "overlap")]
        delta = "" if row["delta"] is None else f"{100 * row['delta']:+.2f}"
        tests = ["" if row[name] is None else f"{row[name]:.2g}" for name in ("p", "p_corrected")]
        share = f"{row['counts']['overlap']:,} ({_percent(row['contamination'])})"
        cells.append((row["task"], f"{row['counts']['all']:,}", share, *accuracy, delta, *tests))
    return report.table(head, cells, caption="Overlap of each set and what it adds")


def _point(frame: Frame, record: Record, row: Row, value: float) -> str:
    look = SEEN if row["task"] in record.details["significant"] else CHANCE
    p = "" if row["p_corrected"] is None else f", p = {row['p_corrected']:.2g} corrected"
    words = f"{row['task']}: {_percent(row['contamination'])} overlap, {100 * value:+.2f} points{p}"
    return mark(look.shape, *frame.at(row["contamination"], value), look.colour, title=words)


def _names(frame: Frame, rows: Sequence[Row], value: str) -> list[str]:
    """Names of the sets with the most overlap and of those furthest from zero."""
    chosen = sorted(rows, key=lambda row: -abs(row[value]))[: NAMED // 2]
    chosen += sorted((row for row in rows if row not in chosen), key=lambda row: -row["contamination"])[: NAMED // 2]
    parts = []
    for row in chosen:
        x, y = frame.at(row["contamination"], row[value])
        left = x > frame.width * 0.7
        at_y = y - 6 if row[value] >= 0 else y + 15  # away from the line at zero
        parts.append(label(x - 8 if left else x + 8, at_y, row["task"], "end" if left else "start", "aside"))
    return parts


def _zero(frame: Frame) -> str:
    points = frame.path([(frame.x.low, 0.0), (frame.x.high, 0.0)])
    return f'<polyline class="reference" points="{points}"/>'


def _keys(record: Record) -> tuple[Key, ...]:
    level = f"p < {record.config['level']:g} after correction for {record.config['tests']} tests"
    return Key(name="not significant", style=CHANCE), Key(name=f"significant ({level})", style=SEEN)


def _title(words: str, record: Record) -> str:
    return f"{words} {record.model}".rstrip()


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
