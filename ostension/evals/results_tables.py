"""The tables of a page of results: scores beside chance and published values, and what was not measured."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ostension.data.task import TASKS, shipped
from ostension.evals import report
from ostension.evals.oracles import Comparison
from ostension.evals.protocol import PROTOCOLS, load_protocol
from ostension.evals.records import Metric, Record
from ostension.evals.report import Cell
from ostension.evals.results import Result
from ostension.evals.selection import (
    METRIC_WORDS,
    headline_name,
    kind,
    metric_words,
    models,
    protocol_words,
    published,
    target,
    task_title,
    words_of,
)
from ostension.evals.tables import chance

FIRST = ("zeroshot", "probe", "fewshot")  # protocols that head the table, in this order
BESIDE = ("groups",)  # whose score is the zero-shot one again
SCORES_SAY = (
    "Each score is by the set's own metric; below it stands its interval. Grey: no better than chance, which lies within it."
)


def score_tables(results: Sequence[Result]) -> list[str]:
    """One table of protocols for a single model, one of models a protocol for several; then results by other measures."""
    records = [result.record for result in results]
    names, scored = models(records), [record for record in records if by_own_metric(record)]
    parts, folded = [], []
    if scored:
        parts.append(report.paragraph(SCORES_SAY, "note"))
        protocols = ordered_protocols(scored)
        if len(names) == 1:
            parts.append(_one_model(scored, names[0], protocols))
        for place, protocol in enumerate(protocols if len(names) > 1 else ()):
            table = _many_models([record for record in scored if record.protocol == protocol], names, protocol)
            if place:
                folded.append(report.details(f"Scores: {protocol_words(protocol)}", table))
            else:
                parts.append(f"<h3>{report.text(protocol_words(protocol))}</h3>{table}")
    others = [record for record in records if not by_own_metric(record)]
    for protocol, metric in dict.fromkeys((record.protocol, headline_name(record)) for record in others):
        chosen = [record for record in others if (record.protocol, headline_name(record)) == (protocol, metric)]
        table = _many_models(chosen, names, protocol)
        title = f"{protocol_words(protocol)}: {metric_words(metric)}"
        title = title[0].upper() + title[1:]
        folded.append(report.details(title, table) if scored else f"<h3>{report.text(title)}</h3>{table}")
    return [*parts, *folded]


def by_own_metric(record: Record) -> bool:
    """Whether a record's first number is the score of its task, so that it can stand beside others of that task."""
    return headline_name(record) in METRIC_WORDS and kind(record.protocol) not in BESIDE


def ordered_protocols(records: Sequence[Record]) -> list[str]:
    """The protocols that measured, those first that readers look for first."""
    return in_order([record.protocol for record in records])


def in_order(protocols: Sequence[str]) -> list[str]:
    """Protocols, each once, those first that readers look for first."""
    found = list(dict.fromkeys(protocols))
    return sorted(found, key=lambda name: FIRST.index(kind(name)) if kind(name) in FIRST else len(FIRST))


def missing(results: Sequence[Result], *, known: Collection[tuple[str, str, str]] = ()) -> list[str]:
    """What was not measured although it could have been, a line for each protocol and the models that lack the same sets.

    A set counts as missing where another model has it, or where the protocol was measured on at least half of the sets that it
    can measure; a protocol that was asked for on a few sets only is not missing on all others. What can be measured on a task
    that does not ship is not known here, so that only another model's result tells.

    Args:
        known: (model, task, protocol) of what is told elsewhere.
    """
    present = {result.place for result in results}.union(known)
    names = list(dict.fromkeys(result.record.model for result in results))
    targets = list(dict.fromkeys(result.target for result in results))
    lines = []
    for protocol in ordered_protocols([result.record for result in results]):
        fitting = [task for task in targets if not _cannot(protocol, task)]
        usual = {task for task in fitting if any((name, task, protocol) in present for name in names)}
        shipped_ = [task for task in fitting if task.partition("@")[0] in TASKS.names()]
        whole = 2 * len(usual.intersection(shipped_)) >= len(shipped_)
        expected = [task for task in fitting if task in usual or (whole and task in shipped_)]
        lacking: dict[tuple[str, ...], list[str]] = {}
        for task in expected:
            absent = tuple(name for name in names if (name, task, protocol) not in present)
            if absent:
                lacking.setdefault(absent, []).append(task_title(task))
        for absent, titles in lacking.items():
            who = "" if len(names) == 1 else f" of {', '.join(absent)}"
            lines.append(f"{protocol_words(protocol)}{who}: {', '.join(titles)}")
    return lines


def _cannot(protocol: str, task: str) -> bool:
    name = task.partition("@")[0]
    if name not in TASKS.names() or protocol.replace("_", "-") not in PROTOCOLS.names():
        return False
    return load_protocol(protocol).reason_not(shipped(name)) is not None


def _one_model(records: Sequence[Record], model: str, protocols: Sequence[str]) -> str:
    cells = {(target(record), record.protocol): record for record in records}
    tasks = list(dict.fromkeys(target(record) for record in records))
    known = {place: published(record) for place, record in cells.items()}
    said = [name for name in protocols if any(known.get((task, name)) for task in tasks)]
    head = ["set", "chance", *map(protocol_words, protocols), *(f"published {protocol_words(name)}" for name in said)]
    rows: list[list[str | Cell]] = []
    for task in tasks:
        some = next(cells[task, name] for name in protocols if (task, name) in cells)
        row = _head(task, some)
        row += [_score(cells.get((task, name)), headline_name(some)) for name in protocols]
        rows.append([*row, *(_published(known.get((task, name))) for name in said)])
    return report.table(head, rows, caption=f"Scores of {model}") + _published_words(said)


def _many_models(records: Sequence[Record], names: Sequence[str], protocol: str) -> str:
    cells = {(target(record), record.model): record for record in records}
    tasks = list(dict.fromkeys(target(record) for record in records))
    known = {place: published(record) for place, record in cells.items()}
    rows: list[list[str | Cell]] = []
    for task in tasks:
        found = [cells.get((task, name)) for name in names]
        some = next(record for record in found if record is not None)
        values = [record.headline.value for record in found if record is not None]
        best = (max if some.headline.direction == "higher" else min)(values) if len(values) > 1 else None
        row = _head(task, some)
        for name, record in zip(names, found, strict=True):
            cell = _score(record, headline_name(some), best=record is not None and record.headline.value == best)
            if told := known.get((task, name)):
                said = f"published {100 * told.published:.1f}"
                cell = Cell(words=cell.words, kind=cell.kind, aside=f"{cell.aside}\n{said}".strip())
            row.append(cell)
        rows.append(row)
    said_ = [protocol] if any(known.values()) else []
    head = ["set", "chance", *names]
    return report.table(head, rows, caption=f"{protocol} by model") + _published_words(said_)


def _head(task: str, record: Record) -> list[str | Cell]:
    metric = record.headline
    what = f"{metric_words(headline_name(record))}, {metric.count:,} samples"
    return [Cell(words=task_title(task), aside=what), chance(metric)]


def _score(record: Record | None, usual: str, *, best: bool = False) -> Cell:
    if record is None:
        return Cell(words="–", kind="low")
    metric, name = record.headline, headline_name(record)
    words, aside = words_of(name, metric)
    if name != usual:  # another metric than the row says must say so
        aside = f"{metric_words(name)} {aside}".strip()
    return Cell(words=words, aside=aside, kind="low" if no_better_than_chance(metric) else "best" if best else "")


def no_better_than_chance(metric: Metric) -> bool:
    """Whether chance lies in the interval, or the value is worse than chance."""
    if metric.chance is None:
        return False
    if metric.direction == "lower":
        return metric.value >= metric.chance
    return metric.chance >= (metric.value if metric.interval is None else metric.interval.low)


def _published(known: Comparison | None) -> str | Cell:
    if known is None:
        return ""
    return Cell(words=f"{100 * known.published:.1f} %", aside=f"± {100 * known.tolerance:g}", kind="low")


def _published_words(said: Sequence[str]) -> str:
    if not said:
        return ""
    return report.paragraph(
        "Published values are for the same weights, as the model's name says; `ostension task show` says where they are from "
        "and how well they are known, `ostension eval check` which of them decide.",
        "note",
    )
