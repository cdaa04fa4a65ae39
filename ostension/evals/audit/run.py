"""The audit: every check that the material allows, findings in order of importance, and what could not be checked and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ostension.config import to_tree
from ostension.evals.audit import changes, images, people, shares, texts
from ostension.evals.audit.names import check_names
from ostension.evals.audit.parts import KINDS, SEVERITIES, Answers, Finding, Severity, Subject, Thresholds
from ostension.evals.statistics import clopper_pearson

NEIGHBOURS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit:
    """The result.

    Attributes:
        findings: most important first.
        skipped: what was not checked, and why, one line each.
        neighbours: for each class its nearest classes with their relative distance (cosine where there is no yardstick).
        close: all pairs of classes that are too close, with their relative distance; findings tell them in groups.
        removals, additions: what taking a class off the list, or putting one on, does.
        thresholds: what each threshold on the probability would give.
        summary: numbers about the whole list.
        settings: the thresholds of the checks.
    """

    findings: tuple[Finding, ...]
    skipped: tuple[str, ...]
    neighbours: dict[str, tuple[tuple[str, float], ...]]
    close: tuple[tuple[str, str, float], ...]
    removals: tuple[changes.Removal, ...]
    additions: tuple[changes.Addition, ...]
    thresholds: tuple[dict[str, float], ...]
    summary: dict[str, Any]
    settings: Thresholds

    def count(self, severity: str) -> int:
        """How many findings are of that severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def concerned(self, severities: Sequence[Severity]) -> set[str]:
        """The classes that have a finding of one of these severities."""
        return {name for finding in self.findings if finding.severity in severities for name in finding.classes}

    def tree(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "summary": self.summary, "findings": [finding.tree() for finding in self.findings], "skipped": list(self.skipped),
            "neighbours": {name: [list(pair) for pair in several] for name, several in self.neighbours.items()},
            "close": [list(pair) for pair in self.close],
            "removals": [changes.tree(removal) for removal in self.removals],
            "additions": [changes.tree(addition) for addition in self.additions], "thresholds": list(self.thresholds),
            "settings": to_tree(self.settings),
        }  # fmt: skip


def audit(subject: Subject, settings: Thresholds | None = None) -> Audit:
    """Audit a list of classes with whatever is there: names alone, rows, templates, pictures, labels, groups."""
    settings = settings or Thresholds()
    findings, skipped = check_names(subject), []
    neighbours: dict[str, tuple[tuple[str, float], ...]] = {}
    close: list[tuple[str, str, float]] = []
    summary: dict[str, Any] = {"classes": len(subject.names), "templates": len(subject.templates)}
    if subject.rows is None:
        skipped.append("what names mean to a model: there is none, so names have no rows")
    else:
        yardstick = texts.unrelated(subject)
        if yardstick is None:
            skipped.append(
                f"names that lie too close: {len(subject.names)} classes and no reference words give no scale to call a "
                f"distance small by (from {texts.MIN_CLASSES} classes on, or with a text tower, there is one)"
            )
        else:
            distances = texts.relative_distances(subject.rows, yardstick)
            findings += texts.check_close(subject, settings, distances)
            findings += texts.check_vague(subject, settings, distances)
            pairs = texts.close_pairs(distances, settings.close)
            close = [(subject.names[i], subject.names[j], float(distances[i, j])) for i, j in pairs]
            summary["unrelated_cosine"] = 1 - yardstick
        neighbours = _neighbours(subject, yardstick)
    findings += texts.check_senses(subject)
    if subject.rows is None:
        pass  # said above
    elif subject.template_rows is None or len(subject.templates) < texts.MIN_TEMPLATES:
        known = len(subject.templates) if subject.template_rows is not None else 0
        why = f"rows for {known} single templates" if known else "only one row a class, and none for single templates"
        skipped.append(f"whether answers change with the template: there are {why} ({texts.MIN_TEMPLATES} are needed)")
    elif len(subject.names) > 2:  # the mean of two rows leaves one direction: nothing to compare
        findings += texts.check_templates(subject, settings)
    removed: list[changes.Removal] = []
    more: list[changes.Addition] = []
    table: list[dict[str, float]] = []
    if subject.images is None:
        skipped.append("shares, margins, probabilities, attractors and what a change of the list does: there are no pictures")
    else:
        found, removed, more, table = _with_images(subject, settings, summary, skipped)
        findings += found
    return Audit(
        findings=tuple(sorted(findings, key=_importance)), skipped=tuple(skipped), neighbours=neighbours, close=tuple(close),
        removals=tuple(removed), additions=tuple(more), thresholds=tuple(table), summary=summary, settings=settings,
    )  # fmt: skip


def _with_images(
    subject: Subject, settings: Thresholds, summary: dict[str, Any], skipped: list[str]
) -> tuple[list[Finding], list[changes.Removal], list[changes.Addition], list[dict[str, float]]]:
    assert subject.images is not None and subject.rows is not None
    answers = Answers.of(subject.scale * (subject.images.astype(np.float32) @ subject.rows.T.astype(np.float32)))
    count, classes = answers.logits.shape
    findings = images.check_contested(subject, answers, settings)
    findings += images.check_undecided(subject, answers, settings)
    if subject.template_rows is not None and len(subject.templates) >= texts.MIN_TEMPLATES:
        findings += images.check_flips(subject, answers, settings)
    findings += shares.check_attractors(subject, answers, settings)
    findings += shares.check_never(subject, answers, settings)
    findings += shares.check_forced(subject, answers, settings)
    findings += shares.check_probabilities(subject, answers, settings)
    enough = shares.enough_for_never(classes, settings.significance)
    if subject.targets is None and count < enough:
        skipped.append(
            f"classes that never win: {count:,} pictures are too few to tell for {classes:,} classes ({enough:,} would be "
            "enough)"
        )
    won = np.bincount(answers.best, minlength=classes)
    if small := int((won < settings.min_images).sum()):
        skipped.append(f"shares of the pictures of {small:,} classes that got fewer than {settings.min_images} of them")
    if subject.groups:
        findings += people.check_groups(subject, answers, settings)
    else:
        skipped.append("whether classes depend on a group of people or places: the pictures have no groups")
    if subject.targets is None:
        skipped.append("which classes are missed, and whether probabilities are right: the pictures have no labels")
    else:
        findings += people.check_missed(subject, answers, settings)
        right = int((answers.best == subject.targets).sum())
        interval = clopper_pearson(right, count, 0.95)
        summary["accuracy"] = {"value": right / count, "low": interval.low, "high": interval.high}
    after = shares.forced(answers.logits)
    summary |= {
        "images": count,
        "never_won": int((won == 0).sum()),
        "largest_share": {"class": subject.names[int(won.argmax())], "value": float(won.max() / count)},
        "undecided": float((answers.margins < np.log(settings.odds)).mean()),
        "top_probability_median": float(np.median(answers.probabilities.max(axis=1))),
        "forced_sure": float((after >= settings.sure).mean()) if classes > 2 else None,
    }
    added = {name: subject.scale * (subject.images @ row) for name, row in subject.added.items()}
    removed = changes.removals(subject.names, answers, after, sure=settings.sure) if classes > 2 else []
    return findings, removed, changes.additions(subject.names, answers, added, subject.groups), shares.threshold_table(answers)


def _neighbours(subject: Subject, yardstick: float | None) -> dict[str, tuple[tuple[str, float], ...]]:
    assert subject.rows is not None
    distances = 1 - subject.rows @ subject.rows.T
    np.fill_diagonal(distances, np.inf)
    order = np.argsort(distances, axis=1, kind="stable")[:, : min(NEIGHBOURS, len(subject.names) - 1)]
    scale = yardstick or 1.0
    return {
        name: tuple((subject.names[other], float(max(0.0, distances[place, other]) / scale)) for other in order[place].tolist())
        for place, name in enumerate(subject.names)
    }


def _importance(finding: Finding) -> tuple[int, int, float]:
    """Severity, then the order of kinds, then how far it goes (a small distance is far)."""
    size = finding.value if finding.kind == "close" else -finding.value
    return SEVERITIES.index(finding.severity), list(KINDS).index(finding.kind), size
