"""The class-design audit in a report: how many findings of each kind, and the worst of them in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ostension.evals import report
from ostension.evals.audit.parts import KINDS, SEVERITIES
from ostension.evals.figure import Figure
from ostension.evals.records import Record
from ostension.evals.selection import find, slug, target, task_title

SECTION = "mistakes"
WORST = 6


def draw(records: Sequence[Record]) -> list[Figure]:
    return [_of_record(record) for record in find(records, "audit") if record.details.get("findings")]


def _of_record(record: Record) -> Figure:
    findings = record.details["findings"]
    counts = {severity: sum(finding["severity"] == severity for finding in findings) for severity in SEVERITIES}
    cells = Counter((finding["kind"], finding["severity"]) for finding in findings)
    rows = [
        [KINDS[kind][0], *(str(cells[kind, severity] or "") for severity in SEVERITIES)]
        for kind in dict.fromkeys(finding["kind"] for finding in findings)
    ]
    table = report.table(["what", "change", "look at", "know"], rows, caption="Findings by kind")
    worst = [finding for finding in findings if finding["severity"] != "low"][:WORST]
    listed = "".join(f"<li>{report.text(one['evidence'])}. <b>Do:</b> {report.text(one['suggestion'])}.</li>" for one in worst)
    says = f"{counts['high']} to change before use, {counts['medium']} to look at, {counts['low']} to know, of "
    says += f"{record.counts['classes']:,} class names and {record.counts.get('samples', 0):,} pictures. The command "
    says += "eval audit writes the whole page."
    return Figure(
        name=slug("audit", target(record), record.model), title=f"Class names of {task_title(target(record))}: {record.model}",
        says=says, more=table + (report.details("The worst of them", f"<ul>{listed}</ul>") if worst else ""),
    )  # fmt: skip
