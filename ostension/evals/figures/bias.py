"""Bias by group: who is recognised, who is called something harmful, which labels stick to whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ostension.evals import report
from ostension.evals.chart_bars import Bar, Row, bar_chart
from ostension.evals.chart_frame import linear
from ostension.evals.chart_marks import Key, style_of
from ostension.evals.figure import Figure
from ostension.evals.records import Record
from ostension.evals.selection import find, slug, target, task_title

SECTION = "groups"
MAX_GROUPS, MAX_ONLY = 16, 12
SMALL_P = 0.05


def draw(records: Sequence[Record]) -> list[Figure]:
    figures = [figure for record in find(records, "bias-accuracy") for figure in _accuracy(record)]
    figures += [figure for record in find(records, "bias-harms") for figure in _harms(record)]
    figures += [figure for record in find(records, "bias-labels") for figure in _labels(record)]
    return figures


def _accuracy(record: Record) -> list[Figure]:
    kinds = [(name, words) for name, words in (("zero_shot", "zero-shot"), ("probe", "logistic regression"))
             if name in record.details]  # fmt: skip
    figures = []
    for split, rates in record.details[kinds[0][0]].items():
        series = [(words, record.details[name][split]["groups"]) for name, words in kinds]
        rows, shown = _rows(series, lowest_first=True)
        p, gap = rates["p_corrected"], rates["gap"]
        says = f"Zero-shot accuracy differs by {100 * gap:.1f} points between groups {_judged(p)}{shown}"
        figures.append(
            _figure(record, "accuracy", split, rows, [words for words, _ in series], says, title="Accuracy", label="accuracy")
        )
    return figures


def _harms(record: Record) -> list[Figure]:
    figures = []
    for split, categories in record.details["by"].items():
        names = list(categories)
        rows, shown = _rows([(name, categories[name]["groups"]) for name in names], lowest_first=False)
        worst = min(names, key=lambda name: record.details["p_corrected"][split][name])
        p, found = record.details["p_corrected"][split][worst], categories[worst]
        says = "Share of pictures whose most probable text is harmful. "
        says += f"{worst.capitalize()} differs by {100 * found['gap']:.1f} points between groups {_judged(p)}{shown}"
        more = _changes(record.details.get("added"), split) + _published(record.details.get("published", ()), split)
        figures.append(
            _figure(record, "harms", split, rows, names, says, title="Called something harmful", label="share", more=more)
        )
    return figures


def _changes(added: Mapping[str, Any] | None, split: str) -> str:
    """A table of what the added texts changed."""
    if not added:
        return ""
    rows = [
        [change["group"], change["category"], report.percent(change["before"]), report.percent(change["after"]),
         f"{change['p']:.2g}"]
        for change in added["by"][split]
    ]  # fmt: skip
    words = f"With {', '.join(added['texts'])} as one more class, which takes {report.percent(added['share'])} of the pictures"
    table = report.table(["group", "category", "before", "after", "corrected p"], rows, caption=words)
    return report.details(words, table)


def _published(shares: Sequence[Mapping[str, Any]], split: str) -> str:
    """A table of published shares of the same groups beside the measured ones."""
    rows = [
        [one["group"], one["category"] + (", with the added class" if one["added"] else ""), report.percent(one["value"]),
         report.percent(one["measured"]), one["evidence"]]
        for one in shares if one["by"] == split and one["measured"] is not None
    ]  # fmt: skip
    if not rows:
        return ""
    table = report.table(["group", "category", "published", "here", "known"], rows, caption=f"Published shares by {split}")
    return report.details("What the CLIP paper found on its pictures, with its model", table)


def _labels(record: Record) -> list[Figure]:
    figures = []
    for split, several in record.details["by"].items():
        parts = []
        for skew in several:
            at = skew["threshold"] if isinstance(skew["threshold"], str) else f"{100 * skew['threshold']:g} %"
            rows = [
                [entry["label"], entry["most"], *(report.percent(rate["share"]) for rate in entry["groups"].values()),
                 f"{entry['cramers_v']:.2f}", f"{entry['p']:.2g}"]
                for entry in skew["skewed"]
            ]  # fmt: skip
            if not rows:
                continue
            head = ["label", "most in", *skew["skewed"][0]["groups"], "V", "corrected p"]
            title = "the best label" if at == "top" else f"labels from {at}"
            table = report.table(head, rows, caption=f"Labels by {split}, {title}")
            summary = f"{title[0].upper()}{title[1:]}: {skew['significant']} of {skew['used']} labels that occur differ"
            alone = "; ".join(f"{group}: {', '.join(names[:MAX_ONLY])}" for group, names in skew["only"].items() if names)
            more = report.paragraph(f"Labels that one group alone has: {alone}.", "note") if alone else ""
            parts.append(report.details(summary, table + more))
        if parts:
            figures.append(
                Figure(
                    name=slug("labels", split, target(record), record.model), title=_title(record, "Labels", split),
                    says="A picture has every label whose probability reaches the threshold. Listed are the labels whose "
                    "frequency differs most between groups, most apart first (V is the effect size, 0 to 1).",
                    more="".join(parts), wide=True,
                )
            )  # fmt: skip
    return figures


def _rows(series: Sequence[tuple[str, Mapping[str, Any]]], *, lowest_first: bool) -> tuple[list[Row], str]:
    """Rows of groups, the worst first by the first series, with a bar for each series; and what is not shown."""
    _, first = series[0]
    order = sorted(first, key=lambda group: first[group]["share"], reverse=not lowest_first)
    rows = []
    for group in order[:MAX_GROUPS]:
        bars = []
        for number, (words, groups) in enumerate(series):
            rate = groups[group]
            said = f"{100 * rate['share']:.1f} %"
            bars.append(Bar(value=rate["share"], words=said, style=style_of(number), low=rate["low"], high=rate["high"],
                            title=f"{words}: {said}"))  # fmt: skip
        rows.append(Row(name=group, bars=bars, note=f"{first[group]['count']:,} samples"))
    return rows, f" Shown are the {MAX_GROUPS} worst of {len(order)} groups." if len(order) > MAX_GROUPS else ""


def _figure(
    record: Record, what: str, split: str, rows: Sequence[Row], names: Sequence[str], says: str, *, title: str, label: str,
    more: str = "",
) -> Figure:  # fmt: skip
    told = ", ".join(f"{row.name} {' and '.join(bar.words for bar in row.bars)}" for row in rows)
    highest = max(bar.high if bar.high is not None else bar.value for row in rows for bar in row.bars)
    svg = bar_chart(rows, linear([0.0, max(float(highest), 0.01)]), title=_title(record, title, split), description=told,
                    label=label)  # fmt: skip
    keys = tuple(Key(name=name, style=style_of(number), what="bar") for number, name in enumerate(names))
    return Figure(
        name=slug(what, split, target(record), record.model), title=_title(record, title, split), says=says, svg=svg,
        keys=keys if len(keys) > 1 else (),
        more=more,
    )  # fmt: skip


def _title(record: Record, what: str, split: str) -> str:
    return f"{what} by {split}, {task_title(target(record))}: {record.model}"


def _judged(p: float) -> str:
    return f"(p {p:.2g}, corrected)." if p < SMALL_P else f"(p {p:.2g}, corrected: chance alone may be the reason)."
