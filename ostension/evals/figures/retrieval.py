"""Retrieval: recall at 1, 5 and 10 in both directions, with and without a prefix before the captions."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ostension.evals import report
from ostension.evals.figure import Figure
from ostension.evals.records import Record
from ostension.evals.selection import find, slug, task_title, tasks

SECTION = "retrieval"
RECALL = re.compile(r"(?P<direction>image|text)\w*?_(?:recall_at_|r)(?P<k>\d+)")


def draw(records: Sequence[Record]) -> list[Figure]:
    return [_of_task(records, task) for task in tasks(records, "retrieval")]


def _of_task(records: Sequence[Record], task: str) -> Figure:
    found = find(records, "retrieval", task=task)
    names = list(dict.fromkeys(name for record in found for name, metric in record.metrics.items() if "median" not in name))
    rows = []
    for record in found:
        cells = [report.share(record.metrics[name]) if name in record.metrics else "" for name in names]
        rows.append([record.model, *cells])
    chances = [_chance(found, name) for name in names]
    if any(chances):
        rows.append(["chance", *chances])
    return Figure(
        name=slug("retrieval", task),
        title=task_title(task),
        says="Text retrieval asks for any caption of a picture among the best k texts; image retrieval asks for the one "
        "picture of a caption. The gallery is the whole test split: a larger one makes both harder.",
        more=report.table(["model", *map(words, names)], rows, caption=f"Recall on {task_title(task)}"),
        wide=True,
    )


def words(name: str) -> str:
    """"image_recall_at_5" as a heading: "image retrieval R@5"."""
    found = RECALL.fullmatch(name)
    return f"{found['direction']} retrieval R@{found['k']}" if found else name.replace("_", " ")


def _chance(found: Sequence[Record], name: str) -> str:
    known = [record.metrics[name].chance for record in found if name in record.metrics]
    return report.percent(known[0]) if known else ""
