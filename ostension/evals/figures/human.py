"""People beside a model: the four columns of CLIP's Table 2, published or of one's own, and what is hard for whom."""

from __future__ import annotations

from collections.abc import Sequence

from ostension.evals import report
from ostension.evals.figure import Figure
from ostension.evals.human import COLUMNS
from ostension.evals.records import Record
from ostension.evals.report import Cell
from ostension.evals.selection import find, slug, target, task_title

SECTION = "other"
HEADS = {
    "accuracy": "accuracy", "majority": "majority vote", "accuracy_on_guesses": "accuracy on answers given",
    "majority_on_guesses": "majority vote of answers given",
}  # fmt: skip
HARDEST = 12


def draw(records: Sequence[Record]) -> list[Figure]:
    return [_own(record) for record in find(records, "human")] + [_published(r) for r in find(records, "human-comparison")]


def _own(record: Record) -> Figure:
    details = record.details
    rows: list[list[str | Cell]] = []
    for condition, columns in details["conditions"].items():
        aside = f"{details['people'][condition]} people" + (f", {condition}" if condition else "")
        cells = [report.percent(columns[name][0]) if name in columns else "" for name in COLUMNS]
        rows.append([Cell(words="people", aside=aside), *cells])
        same = Cell(words=record.model, aside="on the same pictures")
        rows.append([same, report.percent(details["models"][condition]), "", "", ""])
    says = "Accuracies are means over classes; no answer counts as wrong in the first two columns."
    for condition, found in details["correlation"].items():
        if found is not None:
            where = f" ({condition})" if condition else ""
            says += (
                f" Over classes, people and model agree on what is hard with r = {found[0]:.2f}{where} (p = {found[1]:.2g})."
            )
    left_out = sum(map(len, details["dropped"].values()))
    if left_out:
        said = "person missed the attention checks and is" if left_out == 1 else "people missed the attention checks and are"
        says += f" {left_out} {said} left out."
    hardest: list[list[str | Cell]] = [
        [key, *(report.percent(people.get(name)) + " / " + report.percent(model.get(name)) for name in details["conditions"])]
        for key, people, model in details["classes"][:HARDEST]
    ]
    heads = [f"people / model{f', {name}' if name else ''}" for name in details["conditions"]]
    return Figure(
        name=slug("people", target(record), record.model), title=f"People and {record.model}, {task_title(target(record))}",
        says=says, wide=True,
        more=report.table(["who", *HEADS.values()], rows, caption="Four ways to count people's answers")
        + report.table(["hardest for people", *heads], hardest, caption="Classes that people find hardest"),
    )  # fmt: skip


def _published(record: Record) -> Figure:
    rows: list[list[str | Cell]] = [
        [who, *(report.percent(row[name]) if name in row else "" for name in COLUMNS)] for who, row in record.details["table"]
    ]
    return Figure(
        name=slug("published-people", target(record), record.model), wide=True,
        title=f"{record.model} beside the people of CLIP's study, {task_title(target(record))}",
        says=f"The people's numbers are published ones ({record.details['source']}), known here {record.details['evidence']}; "
        "they were not measured. Accuracies are means over classes.",
        more=report.table(["who", *HEADS.values()], rows, caption="People and model"),
    )  # fmt: skip
