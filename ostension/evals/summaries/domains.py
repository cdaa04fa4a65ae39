"""DomainBed's tables: of each set the accuracy on every left-out domain by each rule, their mean, and the mean over sets.

It takes the checkpoints of all records of the protocol `domains` of one model, whichever domain each of them left out, and of
those that methods wrote (`domains-METHOD`, of `ostension adapt domains`).

Details: "table" {method: {rule: {"domains": {domain: [mean, standard error, trials]}, "average": [mean, standard error,
trials]}}}; of several sets {method: {rule: {"sets": {task: mean}, "average": [mean]}}}.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from ostension.config import from_tree, to_tree
from ostension.data.suite import read_suite
from ostension.evals.domainbed import RULES, Checkpoint, choose, tabulate
from ostension.evals.records import Metric, Record
from ostension.files import sha256_json

SUITE = "domainbed5"
Table = dict[str, dict[str, dict[str, Any]]]


def run(records: Sequence[Record]) -> list[Record]:
    """A record for each model and set, and one for each model that has several sets."""
    mine: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        if record.protocol.partition("-")[0] == "domains" and record.details.get("checkpoints"):
            mine[record.model, record.task].append(record)
    found: list[Record] = []
    tables: dict[str, dict[str, Table]] = defaultdict(dict)
    for (model, task), several in mine.items():
        table = table_of(several)
        tables[model][task] = table
        if len(several) > 1:  # one record of all domains says it itself
            found.append(_record(model, task, _averages(table), {"table": table}, several))
    for model, by_task in tables.items():
        if len(by_task) > 1:
            merged = table_of_sets(by_task)
            whole = set(by_task) == set(read_suite(SUITE).tasks)
            used = [record for (name, _), several in mine.items() if name == model for record in several]
            found.append(_record(model, SUITE if whole else "", _averages(merged), {"table": merged}, used))
    return found


def table_of(records: Sequence[Record]) -> Table:
    """The table of one set from the checkpoints of its records; a checkpoint that two of them have counts once."""
    trees = {sha256_json(tree): tree for record in records for tree in record.details["checkpoints"]}
    checkpoints = [from_tree(Checkpoint, tree) for tree in trees.values()]
    table: Table = defaultdict(dict)
    for rule in RULES:
        for (_, method), row in tabulate(choose(checkpoints, rule)).items():
            domains = {name: [value.mean, value.error, value.trials] for name, value in row.domains.items()}
            if row.average.trials:
                average = [row.average.mean, row.average.error, row.average.trials]
                table[method][rule] = {"domains": domains, "average": average}
    return dict(table)


def table_of_sets(tables: dict[str, Table]) -> Table:
    """The mean over sets of each method and rule that all of them have."""
    found: Table = defaultdict(dict)
    first = next(iter(tables.values()))
    for method, rules in first.items():
        for rule in rules:
            if all(rule in table.get(method, {}) for table in tables.values()):
                means = {task: table[method][rule]["average"][0] for task, table in tables.items()}
                found[method][rule] = {"sets": means, "average": [float(np.mean(list(means.values())))]}
    return dict(found)


def _averages(table: Table) -> dict[str, float]:
    """The mean over domains or sets by the name of a metric; a method without anything to choose has one."""
    found = {}
    for method, rules in table.items():
        values = {rule: row["average"][0] for rule, row in rules.items()}
        word = method.replace("-", "_")
        if len(set(values.values())) == 1:
            found[word] = next(iter(values.values()))
        else:
            found |= {f"{word}_{rule.replace('-', '_')}": value for rule, value in values.items()}
    return dict(sorted(found.items(), key=lambda entry: not entry[0].startswith("zero_shot")))


def _record(model: str, task: str, averages: dict[str, float], details: dict[str, Any], used: Sequence[Record]) -> Record:
    count = sum(record.headline.count for record in used)
    config = {"records": len(used), "rules": list(RULES)}
    return Record(
        protocol="domain-generalisation", subject=f"{model} on left-out domains",
        metrics={name: Metric(value=value, count=count, chance=_chance(used)) for name, value in averages.items()},
        config=to_tree(config), hashes={}, counts={"records": len(used)}, seeds=used[0].seeds, task=task, model=model,
        details=details,
    )  # fmt: skip


def _chance(used: Sequence[Record]) -> float | None:
    levels = {record.headline.chance for record in used}
    return next(iter(levels)) if len(levels) == 1 else None
