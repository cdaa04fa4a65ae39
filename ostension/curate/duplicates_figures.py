"""What a report shows of `dedup`: what each rule finds by itself, how large groups are, what could not be looked at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ostension.curate.duplicates_resolve import REASONS
from ostension.evals import report
from ostension.evals.figure import Figure

SIZES = ((2, 2), (3, 3), (4, 4), (5, 9), (10, 99), (100, 999), (1000, None))


def dedup_figures(facts: Mapping[str, Any]) -> list[Figure]:
    """Rules, and sizes of groups."""
    rows = [
        [REASONS[rule], f"{facts['pairs'][rule]:,}", f"{alone['groups']:,}", f"{alone['dropped']:,}"]
        for rule, alone in facts["rules"].items()
    ]
    says = (
        f"{facts['members']:,} samples are in {facts['groups']:,} groups, of each of which one stays; the largest has "
        f"{facts['largest']:,}. Rules overlap: a sample's reason is the surest of them. Pairs are those that the search met, "
        "as far as the review looks; equal ones are paired with the first of them only."
    )
    if facts["blank"]:
        says += f" {facts['blank']:,} pictures are nearly black or of one colour."
    if facts["plain"]:
        says += f" {facts['plain']:,} are so plain that their hashes say little."
    if unreadable := sum(facts["unreadable"].values()):
        says += f" {unreadable:,} cannot be read."
    for rule, steps in facts["too_large"].items():
        says += f" {next(iter(steps.values())):,} groups by {rule} were too large and were taken apart at stricter thresholds."
    head = ["rule, by itself", "pairs", "groups", "would go"]
    figures = [
        Figure(
            name="dedup-rules", title="What each rule finds", says=says,
            more=report.table(head, rows, caption="Rules by themselves"),
        )
    ]  # fmt: skip
    sizes = {int(size): count for size, count in facts["sizes"].items()}
    if sizes:
        bins = []
        for low, high in SIZES:
            inside = [(size, count) for size, count in sizes.items() if low <= size and (high is None or size <= high)]
            if inside:
                words = f"{low:,}" if low == high else f"{low:,} or more" if high is None else f"{low:,} to {high:,}"
                groups, samples = sum(count for _, count in inside), sum(size * count for size, count in inside)
                bins.append([words, f"{groups:,}", f"{samples:,}"])
        says = (
            "A large group is a picture that is everywhere (a logo, a notice that a picture is gone), or a chain. Look at it."
        )
        more = report.table(["samples in a group", "groups", "samples"], bins, caption="Groups by size")
        figures.append(Figure(name="dedup-sizes", title="How large groups are", says=says, more=more))
    return figures
