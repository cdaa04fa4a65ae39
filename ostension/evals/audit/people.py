"""Checks against what is known of the pictures: how often a class is given in each group, and which labelled ones are missed.

Letters: N images, C classes, G groups.
"""

from __future__ import annotations

import numpy as np

from ostension.evals.audit.parts import Answers, Finding, Severity, Subject, Thresholds, between, percent, quoted
from ostension.evals.bias.groups import compare_many, counts_by_group
from ostension.evals.statistics import clopper_pearson

CONFIDENCE = 0.95
MISSED_HIGH = 0.5


def check_groups(subject: Subject, answers: Answers, thresholds: Thresholds) -> list[Finding]:
    """Classes whose rate differs between the groups of a field; with labels, whose rate of being missed does too.

    Without labels the groups may truly show different things; the finding says so.
    """
    found = []
    fields = len(subject.groups)
    given = answers.best[:, None] == np.arange(len(subject.names))
    for field, groups in subject.groups.items():
        found += _differences(subject, thresholds, field, groups, given, missed=False, tests=fields)
        if subject.targets is not None:
            own = subject.targets
            wrong = answers.best != own
            # A class's misses count among its own pictures, so each class has its own totals.
            for place in np.unique(own).tolist():
                mine = own == place
                if mine.sum() >= thresholds.min_images:
                    column = np.zeros((int(mine.sum()), len(subject.names)), dtype=bool)
                    column[:, place] = wrong[mine]
                    found += _differences(subject, thresholds, field, groups[mine], column, missed=True, only=place,
                                          tests=fields * len(np.unique(own)))  # fmt: skip
    return sorted(found, key=lambda finding: -finding.value)


def _differences(
    subject: Subject, thresholds: Thresholds, field: str, groups: np.ndarray, happened: np.ndarray, *, missed: bool,
    only: int | None = None, tests: int = 1,
) -> list[Finding]:  # fmt: skip
    names, hits, totals = counts_by_group(happened, groups)
    if len(names) < 2:
        return []
    places = range(len(subject.names)) if only is None else [only]
    compared, corrected = compare_many(hits[list(places)], totals)
    found = []
    for place, test, p in zip(places, compared, corrected, strict=True):
        p, effect = min(1.0, p * tests), test.chi_square.cramers_v
        if p >= thresholds.significance or effect < thresholds.effect:
            continue
        shares = hits[place] / totals
        most, least = int(shares.argmax()), int(shares.argmin())
        what = "missed" if missed else "given"
        ends = [clopper_pearson(int(hits[place, g]), int(totals[g]), CONFIDENCE) for g in (most, least)]
        told = " and ".join(
            f"{percent(float(shares[g]))} ({between(end)}) of {names[g]!r}" for g, end in zip((most, least), ends, strict=True)
        )
        rule = f"corrected p below {thresholds.significance:g} and V from {thresholds.effect:g}"
        doubt = "" if missed or subject.targets is not None else ": the groups may truly differ. If they should not, "
        found.append(
            Finding(
                kind="groups", classes=(subject.names[place],),
                severity="high" if missed else "medium",  # without labels the groups may truly differ
                evidence=f"{quoted(subject.names[place])} is {what} for {told} (by {field}; corrected p {p:.2g}, "
                f"V {effect:.2f})",
                value=effect, count=int(totals.sum()),
                rule=rule + ("; high because labels say that it is an error" if missed else ""),
                suggestion=f"look at the pictures{doubt or '; '}a neutral class beside it, or another word, may take what it "
                "does not mean",
            )
        )  # fmt: skip
    return found


def check_missed(subject: Subject, answers: Answers, thresholds: Thresholds) -> list[Finding]:
    """Classes whose labelled pictures are called something else, with what they are called."""
    assert subject.targets is not None
    found = []
    for place, name in enumerate(subject.names):
        mine = subject.targets == place
        count = int(mine.sum())
        if count < thresholds.min_images:
            continue
        called = np.bincount(answers.best[mine], minlength=len(subject.names))
        lost = count - int(called[place])
        interval = clopper_pearson(lost, count, CONFIDENCE)
        if interval.low < thresholds.missed:
            continue
        called[place] = 0
        severity: Severity = "high" if interval.low >= MISSED_HIGH else "medium"
        others = [int(other) for other in np.argsort(-called, kind="stable")[:3] if called[other]]
        told = ", ".join(f"{quoted(subject.names[other])} {percent(called[other] / count)}" for other in others)
        found.append(
            Finding(
                kind="missed", classes=(name, subject.names[others[0]]), severity=severity,
                evidence=f"{percent(lost / count)} ({between(interval)}) of {count:,} pictures of {quoted(name)} are called "
                f"something else: {told}",
                value=lost / count, interval=interval, count=count,
                rule=f"the interval lies above {percent(thresholds.missed)}; high above {percent(MISSED_HIGH)}",
                suggestion="say more in the name, or merge it with the class that takes its pictures",
            )
        )  # fmt: skip
    return sorted(found, key=lambda finding: -finding.value)
