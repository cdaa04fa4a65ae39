"""The table and the plot of the ImageNet-Captions study."""

from __future__ import annotations

from typing import Any

from ostension.config import from_tree
from ostension.evals.figure import Figure
from ostension.evals.figures import controlled
from ostension.evals.records import Record


def controlled_record(record: dict[str, Any]) -> Record:
    """The study's record in a file of records."""
    (tree,) = record["records"].values()
    return from_tree(Record, tree)


def controlled_table(record: dict[str, Any]) -> str:
    """Mean effective robustness of each kind of model with its interval, and the line."""
    found = controlled_record(record)
    lines = ["| models | how many | accuracy, original | effective robustness, points |", "|---|---|---|---|"]
    for name in found.metrics:
        what, count, span = controlled.row(name, found)
        kind, _, head = name.partition("/")
        xs = [point["x"] for point in found.details["points"] if (point["kind"], point["head"]) == (kind, head)]
        lines.append(f"| {what} | {count} | {100 * min(xs):.1f} to {100 * max(xs):.1f} % | {span} |")
    line, (low, high) = found.details["line"]["lines"][0], found.details["range"]
    asked, ends = found.counts, f"{100 * low:.1f} to {100 * high:.1f} %"
    return "\n".join([
        *lines, "",
        f"{asked['original']:,} pictures in the original styles and {asked['shifted']:,} in others, of the same "
        f"{asked['things']} things, {asked['classes']} classes. The line goes through {line['n']} classifiers of labels, "
        f"{ends} in the original styles: slope {line['slope']:.2f} in logits, r2 {line['r2']:.2f}.",
    ])  # fmt: skip


def controlled_figures(record: dict[str, Any]) -> list[Figure]:
    """The plot."""
    return controlled.draw([controlled_record(record)])


def controlled_plot(record: dict[str, Any]) -> str:
    """The plot as a page shows it."""
    return "\n".join(
        f"![{figure.title}. {figure.says}](imagenet-captions/{figure.name}.svg)" for figure in controlled_figures(record)
    )
