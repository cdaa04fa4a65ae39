"""DomainBed's table: accuracy on each domain that was left out, zero-shot and for what learned from the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ostension.evals import report
from ostension.evals.figure import Figure
from ostension.evals.records import Record
from ostension.evals.report import Cell
from ostension.evals.selection import find, slug, task_title

SECTION = "robustness"
FIXED = "zero-shot"  # learns from no domain, so that there is nothing to choose
CHOSEN_BY = {
    "training-domain": "chosen on the training domains", "leave-one-domain-out": "chosen on domains left out in turn",
    "oracle": "chosen on the test domain",
}  # fmt: skip


def draw(records: Sequence[Record]) -> list[Figure]:
    joined = find(records, "domain-generalisation")
    known = {(record.model, record.task) for record in joined}
    parts = [record for record in records if record.protocol.partition("-")[0] == "domains"]
    alone = [record for record in parts if (record.model, record.task) not in known]
    return [_of_record(record) for record in [*joined, *alone]]


def _of_record(record: Record) -> Figure:
    table = record.details["table"]
    rows = [(method, rule, _row(row)) for method, rules in table.items() for rule, row in _rules(method, rules)]
    columns = list(dict.fromkeys(name for _, _, row in rows for name in row))
    body: list[list[str | Cell]] = []
    for method, rule, row in rows:
        how = "" if method == FIXED else CHOSEN_BY.get(rule, rule)
        body.append([Cell(words=method, aside=how), *(row.get(name, "") for name in columns)])
    method = record.protocol.partition("domains-")[2]  # of a record of its own
    over = "sets" if any("sets" in row for rules in table.values() for row in rules.values()) else "domains"
    title = f"Left-out {over}, {task_title(record.task) if record.task else 'several sets'}: {record.model}"
    return Figure(
        name=slug("domains", method, record.task, record.split, record.model), title=title, wide=True,
        says="Each column is a domain that was left out; accuracy is that of four fifths of it, the mean over trials with the "
        "standard error. What is chosen on the test domain has seen its labels: an upper bound, not a result.",
        more=report.table(["what", *columns], body, caption=title),
    )  # fmt: skip


def _rules(method: str, rules: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return list(rules.items())[:1] if method == FIXED else list(rules.items())


def _row(row: Mapping[str, Any]) -> dict[str, str | Cell]:
    """The cells of one row by column, the mean last; of one record, which has no mean, its domains."""
    if "sets" in row:
        return {**{task_title(name): report.percent(value) for name, value in row["sets"].items()},
                "mean": report.percent(row["average"][0])}  # fmt: skip
    domains = row.get("domains", row)
    found: dict[str, str | Cell] = {name: _cell(value) for name, value in domains.items()}
    return found | ({"mean": _cell(row["average"])} if "average" in row else {})


def _cell(value: Sequence[float | int]) -> Cell:
    return Cell(words=report.percent(value[0]), aside=f"± {100 * value[1]:.1f}")
