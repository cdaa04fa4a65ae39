"""Checks on unlabelled pictures: classes that share them, decisions that hang on a hair, labels that a template flips.

"Undecided" means that the odds of the best two classes are below 2 to 1: their logits differ by less than ln 2.

Letters: N images, C classes, M templates.
"""

from __future__ import annotations

import math

import numpy as np

from ostension.evals.audit.names import relation
from ostension.evals.audit.parts import Answers, Finding, Subject, Thresholds, between, percent, quoted
from ostension.evals.metrics import bootstrap_interval
from ostension.evals.statistics import clopper_pearson
from ostension.shapes import Float, Int

CONFIDENCE = 0.95
CONTESTED_HIGH = 0.5


def contested_pairs(answers: Answers, odds: float) -> dict[tuple[int, int], tuple[int, int]]:
    """By pair of classes, (undecided pictures between them, pictures that either of them won); pairs with some only."""
    classes = answers.logits.shape[1]
    won = np.bincount(answers.best, minlength=classes)
    close = answers.margins < math.log(odds)
    pairs, counts = np.unique(np.sort(answers.order[close, :2], axis=1), axis=0, return_counts=True)
    return {(int(i), int(j)): (int(n), int(won[i] + won[j])) for (i, j), n in zip(pairs, counts, strict=True)}


def check_contested(subject: Subject, answers: Answers, thresholds: Thresholds) -> list[Finding]:
    """Pairs of classes of whose pictures a good part is undecided between the two."""
    found = []
    for (i, j), (close, won) in contested_pairs(answers, thresholds.odds).items():
        if won < thresholds.min_images:
            continue
        interval = clopper_pearson(close, won, CONFIDENCE)
        if interval.low < thresholds.contested:
            continue
        first, second = subject.names[i], subject.names[j]
        spelt = relation(first, second)
        found.append(
            Finding(
                kind="contested", classes=(first, second), severity="high" if interval.low >= CONTESTED_HIGH else "medium",
                evidence=f"{percent(close / won)} ({between(interval)}) of the {won:,} pictures called {quoted(first)} or "
                f"{quoted(second)} are within odds of {thresholds.odds:g} to 1 between the two{'; ' if spelt else ''}{spelt}",
                value=close / won, interval=interval, count=won,
                rule=f"the interval lies above {percent(thresholds.contested)}; high above {percent(CONTESTED_HIGH)}",
                suggestion="merge them, or describe what a picture shows of the difference",
            )
        )  # fmt: skip
    return sorted(found, key=lambda finding: -finding.value)


def check_undecided(subject: Subject, answers: Answers, thresholds: Thresholds) -> list[Finding]:
    """Classes of whose pictures many are undecided, against whichever class."""
    close = answers.margins < math.log(thresholds.odds)
    found = []
    for place, name in enumerate(subject.names):
        mine = answers.best == place
        count, near = int(mine.sum()), int((mine & close).sum())
        if count < thresholds.min_images:
            continue
        interval = clopper_pearson(near, count, CONFIDENCE)
        if interval.low < thresholds.undecided:
            continue
        seconds = np.bincount(answers.order[mine & close, 1], minlength=len(subject.names))
        rivals = [subject.names[other] for other in np.argsort(-seconds, kind="stable")[:3] if seconds[other]]
        found.append(
            Finding(
                kind="undecided", classes=(name,), severity="medium",
                evidence=f"{percent(near / count)} ({between(interval)}) of the {count:,} pictures called {quoted(name)} are "
                f"within odds of {thresholds.odds:g} to 1 of another class, most often {quoted(*rivals)}",
                value=near / count, interval=interval, count=count,
                rule=f"the interval lies above {percent(thresholds.undecided)}",
                suggestion="say more in this name, or let a threshold on the odds send such pictures to a person",
            )
        )  # fmt: skip
    return sorted(found, key=lambda finding: -finding.value)


def template_labels(
    images: Float[np.ndarray, "N E"], template_rows: Float[np.ndarray, "M C E"]
) -> Int[np.ndarray, "M N"]:
    """The label of each picture under each single template."""
    return np.stack([(images @ rows.T).argmax(axis=1) for rows in template_rows])


def check_flips(subject: Subject, answers: Answers, thresholds: Thresholds) -> list[Finding]:
    """Classes whose pictures change their label with the template, and templates that often disagree with all together."""
    assert subject.template_rows is not None and subject.images is not None
    labels = template_labels(subject.images, subject.template_rows)
    differs = labels != answers.best
    found = []
    for place, name in enumerate(subject.names):
        mine = answers.best == place
        if mine.sum() < thresholds.min_images:
            continue
        flipped = differs[:, mine].mean(axis=0)
        if flipped.mean() < thresholds.flips:
            continue
        interval = bootstrap_interval(flipped, seed=0)
        if interval.low < thresholds.flips:
            continue
        to = np.bincount(labels[:, mine][differs[:, mine]], minlength=len(subject.names))
        other = subject.names[int(to.argmax())]
        found.append(
            Finding(
                kind="unstable", classes=(name, other), severity="medium",
                evidence=f"a single template gives {percent(float(flipped.mean()))} ({between(interval)}) of the answers "
                f"{quoted(name)} another label, most often {quoted(other)} ({int(mine.sum()):,} pictures)",
                value=float(flipped.mean()), interval=interval, count=int(mine.sum()),
                rule=f"the interval lies above {percent(thresholds.flips)}",
                suggestion="use several templates, and make the two names differ more",
            )
        )  # fmt: skip
    agreement = 1 - differs.mean(axis=1)
    usual = float(np.median(agreement))
    found += [
        Finding(
            kind="template", classes=(), severity="medium",
            evidence=f"{subject.templates[place]!r} alone agrees with all templates together on {percent(agreement[place])} "
            f"of {len(answers.best):,} pictures; the median template on {percent(usual)}",
            value=float(agreement[place]), count=len(answers.best),
            rule=f"{percent(thresholds.template_gap)} less than the median template",
            suggestion="leave this template out, or check that it suits these pictures",
        )
        for place in np.flatnonzero(usual - agreement >= thresholds.template_gap).tolist()
        if subject.uses(place)
    ]  # fmt: skip
    return found
