"""The contract of figures: a module of `evals.figures` draws from records what a report shows, and says what it means.

    SECTION = "robustness"                               # where it stands: a key of SECTIONS
    def draw(records) -> list[Figure]: ...               # empty where the records that it needs are not there

Modules are found by their file names; within a section they come in the order of ORDER, and new ones after it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol, cast, runtime_checkable

from ostension.evals.chart_marks import Key
from ostension.evals.records import Record
from ostension.registry import ModuleRegistry

FIGURES = ModuleRegistry("ostension.evals.figures", "figure")
# Key -> heading, in the order of the page.
SECTIONS: Mapping[str, str] = {
    "zero-shot": "Without a single label",
    "labels": "What labels add",
    "retrieval": "Finding pictures by text, and texts by picture",
    "robustness": "When the pictures change",
    "calibration": "Can its confidence be trusted?",
    "groups": "Whom it serves worse",
    "overlap": "Had it seen the test before?",
    "mistakes": "What it confuses",
    "other": "Other measurements",
}
ORDER = ("per_set", "few_shot", "data_efficiency", "scatter", "prompts")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure.

    Attributes:
        name: of the file that it is written to, without ending: letters, digits and dashes; different for each figure.
        title: what is shown, in a few words (plain text).
        says: what it means and what is not known, in short sentences (plain text).
        svg: the chart, of `charts.svg`; empty for a figure that is a table.
        keys: its legend.
        more: HTML below the chart (a table, a list), of the functions of `evals.report`.
        wide: whether it needs the whole width.
        detail: whether it is one of many of its kind (a set, a class), which a page shows after the others or on request.
    """

    name: str
    title: str
    says: str
    svg: str = ""
    keys: tuple[Key, ...] = ()
    more: str = ""
    wide: bool = False
    detail: bool = False


@runtime_checkable
class FigureModule(Protocol):
    """A module of `evals.figures`."""

    SECTION: str

    def draw(self, records: Sequence[Record]) -> list[Figure]: ...


def draw_all(records: Sequence[Record]) -> dict[str, list[Figure]]:
    """The figures of each section that has some, in the order of the page.

    Records that another version wrote may lack what a figure draws. That figure then says so in its place, and the others are
    drawn.
    """
    found: dict[str, list[Figure]] = {section: [] for section in SECTIONS}
    names = FIGURES.names()
    rank = {name.replace("_", "-"): place for place, name in enumerate(ORDER)}
    for name in sorted(names, key=lambda name: (rank.get(name, len(rank)), name)):
        module = cast("FigureModule", FIGURES.load(name))
        try:
            found[module.SECTION] += module.draw(records)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            found[module.SECTION].append(_not_drawn(name, error))
    return {section: figures for section, figures in found.items() if figures}


def _not_drawn(name: str, error: Exception) -> Figure:
    says = (
        f"The records are not of the form that this figure draws ({type(error).__name__}: {error}). They may be of another "
        "version: measure again with `ostension eval run --again`."
    )
    return Figure(name=f"{name}-not-drawn", title=f"The figure {name} could not be drawn", says=says)
