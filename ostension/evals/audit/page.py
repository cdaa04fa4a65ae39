"""An audit for readers: one HTML page that a stranger understands, most important first, and the same as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from ostension.evals import report
from ostension.evals.audit.changes import Addition, Removal
from ostension.evals.audit.parts import KINDS, SEVERITY_WORDS, Finding, percent
from ostension.evals.audit.run import Audit
from ostension.evals.report import text

SHOWN = 8  # findings of one kind that stand open; the rest unfold
ROWS = 20
TITLES = {"high": "Change before use", "medium": "Look at these", "low": "Good to know"}
HOW = (
    "Closeness is measured between the rows that the model makes of the names, on a scale where 0 is the same row and 1 is the "
    "median distance of unrelated words. Intervals are exact at 95 %; tests between groups are corrected over all classes. "
    "Each finding says its rule: a rule can miss what it was not made for, and a list without findings is not a guarantee."
)


def html_page(found: Audit, *, title: str, subject: str, command: str = "") -> str:
    """The audit as one HTML file without scripts.

    Args:
        title: what was audited, as a heading.
        subject: with which model and pictures, in a sentence.
        command: how the page was made.
    """
    sections = []
    for severity in SEVERITY_WORDS:
        several = [finding for finding in found.findings if finding.severity == severity]
        if several:
            opening = report.paragraph(SEVERITY_WORDS[severity].capitalize() + ".")
            sections.append(report.section(severity, TITLES[severity], opening, *_by_kind(several)))
    if not found.findings:
        sections.append(report.section("none", "Nothing was found", report.paragraph("No rule was met by this list.")))
    sections += [*_pictures(found), _neighbours(found), _skipped(found)]
    if sections[0].startswith('<section id="'):
        sections[0] = '<div id="results"></div>' + sections[0]
    footer = report.paragraph(HOW, "note") + (report.code(command) if command else "")
    return report.page(
        title=title, eyebrow="Ostension: class-design audit", lead=f"{verdict(found)} {subject}",
        opening=report.tiles(_tiles(found)), sections=[section for section in sections if section], footer=footer,
    )  # fmt: skip


def verdict(found: Audit) -> str:
    """What came out, in a sentence."""
    high, medium = found.count("high"), found.count("medium")
    if not high and not medium:
        return "Nothing was found that needs a change."
    parts = [f"{high} {'thing' if high == 1 else 'things'} to change before use"] if high else []
    parts += [f"{medium} to look at"] if medium else []
    return " and ".join(parts).capitalize() + "."


def markdown(found: Audit, *, title: str, subject: str) -> str:
    """The audit as Markdown."""
    lines = [f"# {title}", "", f"{verdict(found)} {subject}", ""]
    for severity in SEVERITY_WORDS:
        several = [finding for finding in found.findings if finding.severity == severity]
        if not several:
            continue
        lines += [f"## {TITLES[severity]}", "", SEVERITY_WORDS[severity].capitalize() + ".", ""]
        for kind in dict.fromkeys(finding.kind for finding in several):
            lines += [f"### {KINDS[kind][0]}", "", KINDS[kind][1], ""]
            for finding in (finding for finding in several if finding.kind == kind):
                lines += [f"- {finding.evidence}.", f"  Do: {finding.suggestion}. (Rule: {finding.rule}.)"]
            lines.append("")
    if found.skipped:
        lines += ["## Not checked", "", *(f"- {line}" for line in found.skipped), ""]
    return "\n".join([*lines, HOW, ""])


def _tiles(found: Audit) -> list[tuple[str, str]]:
    summary = found.summary
    tiles = [(str(found.count("high")), "to change before use"), (str(found.count("medium")), "to look at"),
             (f"{summary['classes']:,}", "class names")]  # fmt: skip
    if "images" in summary:
        tiles.append((f"{summary['images']:,}", "pictures"))
        tiles.append((percent(summary["undecided"]), "of the pictures within odds of 2 to 1 between two classes"))
    if "accuracy" in summary:
        tiles.append((percent(summary["accuracy"]["value"]), "of the labelled pictures are called what they are"))
    return tiles


def _by_kind(findings: Sequence[Finding]) -> list[str]:
    parts = []
    for kind in dict.fromkeys(finding.kind for finding in findings):
        several = [finding for finding in findings if finding.kind == kind]
        title, meaning = KINDS[kind]
        parts.append(f"<h3>{text(title)}</h3>{report.paragraph(meaning, 'note')}")
        # What all of them say is said once.
        common = [_do(several[0])] if len({finding.suggestion for finding in several}) == 1 < len(several) else []
        rule = [_rule(several[0])] if len({finding.rule for finding in several}) == 1 < len(several) else []
        parts += [*common, *rule, _cards(several[:SHOWN], do=not common, rule=not rule)]
        if several[SHOWN:]:
            parts.append(report.details(f"{len(several) - SHOWN} more", _cards(several[SHOWN:], do=not common, rule=not rule)))
    return parts


def _cards(findings: Sequence[Finding], *, do: bool, rule: bool) -> str:
    items = []
    for finding in findings:
        head = " / ".join(finding.classes[:3]) + (" ..." if len(finding.classes) > 3 else "")
        name = f"<b>{text(head)}</b>" if finding.classes else ""
        said = report.paragraph(finding.evidence[0].upper() + finding.evidence[1:] + ".")
        items.append(f"<li>{name}{said}{_do(finding) if do else ''}{_rule(finding) if rule else ''}</li>")
    return f'<ul class="queries">{"".join(items)}</ul>'


def _do(finding: Finding) -> str:
    return f"<p><b>Do:</b> {text(finding.suggestion)}.</p>"


def _rule(finding: Finding) -> str:
    return report.paragraph(f"Reported for: {finding.rule}.", "note")


def _pictures(found: Audit) -> list[str]:
    sections = []
    if found.removals:
        rows = [_removal_row(removal) for removal in found.removals[:ROWS]]
        shown = f" Shown are the {ROWS} classes with most pictures." if len(found.removals) > ROWS else ""
        sections.append(
            report.section(
                "removal", "Taking a class off the list",
                report.paragraph("Its pictures go to their second class; no other picture moves. The last column says how many "
                                 f"of them are then called something else at 90 % or more.{shown}"),
                report.table(["class", "pictures", "then called", "sure"], rows, caption="Taking a class off the list"),
            )
        )  # fmt: skip
    if found.additions:
        rows = [_addition_row(addition) for addition in found.additions]
        sections.append(
            report.section(
                "addition", "Adding a class",
                report.table(["class", "pictures", "taken from", "by group"], rows, caption="Adding a class"),
            )
        )  # fmt: skip
    if found.thresholds:
        rows = [
            [percent(row["threshold"]), f"{row['labels']:.2g}", percent(row["none"]), percent(row["changed_by_half"]),
             percent(row["changed_by_double"])]
            for row in found.thresholds
        ]  # fmt: skip
        sections.append(
            report.section(
                "thresholds", "If labels are given by a threshold",
                report.paragraph("A picture gets every class whose probability reaches the threshold. Where half or twice the "
                                 "threshold changes the labels of most pictures, labels say more of it than of the pictures."),
                report.table(["threshold", "labels a picture", "without one", "changed by half", "changed by twice"], rows,
                             caption="Labels by threshold"),
            )
        )  # fmt: skip
    return sections


def _removal_row(removal: Removal) -> list[str]:
    to = ", ".join(f"{name} {count:,}" for name, count in removal.to)
    return [removal.name, f"{removal.pictures:,}", to, percent(removal.sure)]


def _addition_row(addition: Addition) -> list[str]:
    of = ", ".join(f"{name} {count:,}" for name, count in addition.of)
    groups = "; ".join(
        f"{field}: " + ", ".join(f"{group} {percent(share)}" for group, share in shares.items())
        for field, shares in addition.by_group.items()
    )
    return [addition.name, f"{addition.pictures:,}", of, groups]


def _neighbours(found: Audit) -> str:
    if not found.neighbours:
        return ""
    scaled = "unrelated_cosine" in found.summary
    nearest = sorted(found.neighbours.items(), key=lambda entry: entry[1][0][1])
    rows = [[name, ", ".join(f"{other} ({distance:.2f})" for other, distance in several)] for name, several in nearest[:100]]
    what = "1 is the distance of unrelated words" if scaled else "1 - cosine"
    shown = " The 100 closest are listed." if len(nearest) > 100 else ""
    table = report.table(["class", "nearest"], rows, caption="Nearest names")
    return report.section(
        "neighbours", "What each name is nearest to",
        report.paragraph("Read it for names that the model takes for something else than you mean."),
        report.details(f"All names, closest first ({what}).{shown}", table),
    )  # fmt: skip


def _skipped(found: Audit) -> str:
    if not found.skipped:
        return ""
    listed = "".join(f"<li>{text(line[0].upper() + line[1:])}.</li>" for line in found.skipped)
    return report.section("skipped", "What was not checked, and why", f"<ul>{listed}</ul>")
