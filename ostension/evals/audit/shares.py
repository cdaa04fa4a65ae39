"""Checks of who gets the pictures: attractors, classes that never win, pictures of no class, what probabilities mean.

**Even logits.** A class can win pictures because it fits each a little better than an average name does, whatever they show.
Taking off each class's mean logit over the pictures removes that lead, and the share of its pictures that a class keeps is
reported. A class that is truly common keeps most of them, because its logit is high on those alone, unless nearly all
pictures show it.

**The forced answer.** Taking a picture's best class away makes it, if it was right, a picture of none of the classes. How
sure the next answer is shows what a threshold on the probability would let through.

Letters: N images, C classes.
"""

from __future__ import annotations

import math

import numpy as np

from ostension.evals.audit.parts import Answers, Finding, Subject, Thresholds, between, percent, quoted
from ostension.evals.statistics import binomial_tail, clopper_pearson, holm, mcnemar
from ostension.shapes import Float, Int

CONFIDENCE = 0.95
# An attractor keeps at most half of its pictures on even logits. On Flickr8k's photos with COCO's names and the released
# ViT-B/32, classes that keep more are named by 20 to 90 % of their captions, those that keep less by 0 to 25 %; "person",
# which keeps 9 % and is named by 84 %, is the case that cannot be told: it is in nearly all pictures.
KEEPS = 0.5
MAX_LISTED = 8
LABEL_THRESHOLDS = (0.005, 0.04, 0.5)  # the paper's two, and the one that people start with


def check_attractors(subject: Subject, answers: Answers, thresholds: Thresholds) -> list[Finding]:
    """Classes that take a large share and lose it on even logits; with labels, those that take too many."""
    if subject.targets is not None:
        return _takes_too_many(subject, answers, thresholds)
    count, classes = answers.logits.shape
    won = np.bincount(answers.best, minlength=classes)
    limit = max(thresholds.takes, thresholds.takes_times / classes)
    stays = np.bincount(answers.best[even_labels(answers.logits) == answers.best], minlength=classes)
    found = []
    for place in np.argsort(-won, kind="stable").tolist():
        if won[place] < thresholds.min_images or limit >= 1:
            break
        if won[place] < limit * count or stays[place] > KEEPS * won[place]:
            continue
        interval = clopper_pearson(int(won[place]), count, CONFIDENCE)
        if interval.low < limit:
            continue
        name = subject.names[place]
        found.append(
            Finding(
                kind="attractor", classes=(name,), severity="medium",
                evidence=f"{quoted(name)} takes {percent(won[place] / count)} ({between(interval)}) of {count:,} pictures, and "
                f"keeps {percent(stays[place] / won[place])} of them once each class's mean logit is taken off: it wins by "
                "a lead that it has on nearly all pictures",
                value=float(won[place] / count), interval=interval, count=count,
                rule=f"the interval lies above {percent(limit)}, and at most {percent(KEEPS)} are kept",
                suggestion="look at its pictures: if most do not show it, say more in the name, or name what they show; if "
                "nearly all pictures do show it, nothing is wrong",
            )
        )  # fmt: skip
    return found


def even_labels(logits: Float[np.ndarray, "N C"]) -> Int[np.ndarray, " N"]:
    """The best class of each picture once each class's mean logit over the pictures is taken off."""
    return (logits - logits.mean(axis=0)).argmax(axis=1)


def _takes_too_many(subject: Subject, answers: Answers, thresholds: Thresholds) -> list[Finding]:
    """With labels: classes that are given twice as often as they are there."""
    assert subject.targets is not None
    count, classes = answers.logits.shape
    given, there = (np.bincount(values, minlength=classes) for values in (answers.best, subject.targets))
    extra = np.array([int(((answers.best == c) & (subject.targets != c)).sum()) for c in range(classes)])
    lacking = np.array([int(((answers.best != c) & (subject.targets == c)).sum()) for c in range(classes)])
    corrected = holm([mcnemar(int(more), int(less)) for more, less in zip(extra, lacking, strict=True)])
    found = []
    for place in np.argsort(-extra, kind="stable").tolist():
        enough = given[place] >= max(thresholds.min_images, 2 * there[place])
        if not enough or corrected[place] >= thresholds.significance:
            continue
        name = subject.names[place]
        found.append(
            Finding(
                kind="attractor", classes=(name,), severity="high",
                evidence=f"{quoted(name)} is given to {given[place]:,} of {count:,} pictures and is right for {there[place]:,} "
                f"(corrected p {corrected[place]:.2g})",
                value=float(given[place] / max(1, there[place])), count=count,
                rule="given at least twice as often as it is there, significantly",
                suggestion="make the name more particular",
            )
        )  # fmt: skip
    return found


def enough_for_never(classes: int, significance: float) -> int:
    """Pictures from which on a class that wins none is remarkable: (1 - 1/C)^N <= significance / C."""
    return math.ceil(math.log(significance / classes) / math.log1p(-1 / classes))


def check_never(subject: Subject, answers: Answers, thresholds: Thresholds) -> list[Finding]:
    """Classes that win no picture, with who wins where they come nearest. Many pictures must have been there to win.

    Pictures cannot tell a name that never wins from a class that was not there. With labels it is known.
    """
    count, classes = answers.logits.shape
    won = np.bincount(answers.best, minlength=classes)
    there = None if subject.targets is None else np.bincount(subject.targets, minlength=classes)
    if there is None and count < enough_for_never(classes, thresholds.significance):
        return []
    beaten, unclear = [], []
    for place in np.flatnonzero(won == 0).tolist():
        if there is not None and there[place] < thresholds.min_images:
            continue
        # The pictures on which its probability is largest: who wins there?
        nearest = np.argsort(-answers.probabilities[:, place], kind="stable")[:10]
        winners = np.bincount(answers.best[nearest], minlength=classes)
        winner = int(winners.argmax())
        mark = f"where {quoted(subject.names[place])} is most probable, {quoted(subject.names[winner])} wins " \
               f"{winners[winner]} of {len(nearest)}"  # fmt: skip
        if there is not None:
            lost = f"none of {there[place]:,} pictures of {quoted(subject.names[place])} is called that; {mark}"
            beaten.append((place, winner, lost))
        elif answers.probabilities[nearest[0], place] >= 0.1 and winners[winner] >= len(nearest) / 2:
            beaten.append((place, winner, f"{quoted(subject.names[place])} wins none of {count:,} pictures; {mark}"))
        else:
            unclear.append(subject.names[place])
    found = [
        Finding(
            kind="never", classes=(subject.names[place], subject.names[winner]), severity="medium" if there is None else "high",
            evidence=evidence, value=0.0, count=count if there is None else int(there[place]),
            rule="no picture won, though it has 10 % on one, and one class wins at least half of its ten most probable pictures"
            if there is None else f"no picture won, of {thresholds.min_images} or more that are labelled so",
            suggestion=f"say what tells it from {quoted(subject.names[winner])}, or drop one of the two",
        )
        for place, winner, evidence in beaten
    ]  # fmt: skip
    if unclear:
        shown = quoted(*unclear[:MAX_LISTED]) + (f" and {len(unclear) - MAX_LISTED} more" if len(unclear) > MAX_LISTED else "")
        found.append(
            Finding(
                kind="never", classes=tuple(unclear), severity="low",
                evidence=f"{len(unclear)} of {classes} classes win none of {count:,} pictures, and come near none: {shown}",
                value=len(unclear) / classes, count=count, rule="no picture won",
                suggestion="if there are such pictures, look at the names; if there are none, nothing is wrong",
            )
        )  # fmt: skip
    return found


def forced(logits: Float[np.ndarray, "N C"]) -> Float[np.ndarray, " N"]:
    """The probability of the best of the other classes, once each picture's own best class is off the list."""
    rest = logits.copy()
    rest[np.arange(len(rest)), logits.argmax(axis=1)] = -np.inf
    top = rest.max(axis=1, keepdims=True)
    return 1 / np.exp(rest - top).sum(axis=1, dtype=np.float64)


def check_forced(subject: Subject, answers: Answers, thresholds: Thresholds) -> list[Finding]:
    """How sure the classifier is of pictures whose class is taken away; needs three classes."""
    count, classes = answers.logits.shape
    if classes < 3:
        return []
    sure = forced(answers.logits) >= thresholds.sure
    interval = clopper_pearson(int(sure.sum()), count, CONFIDENCE)
    if interval.low < thresholds.forced:
        return []
    share = float(sure.mean())
    return [
        Finding(
            kind="nothing-fits", classes=(), severity="high" if interval.low >= 0.5 else "medium",
            evidence=f"with its best class taken off the list, {percent(share)} ({between(interval)}) of {count:,} pictures "
            f"get another one at {percent(thresholds.sure)} or more",
            value=share, interval=interval, count=count, rule=f"the interval lies above {percent(thresholds.forced)}",
            suggestion="do not read probabilities as 'is it there': add classes for what else will come, or reject by a "
            "threshold on the cosine, chosen on pictures of none of the classes",
        )
    ]  # fmt: skip


def check_probabilities(subject: Subject, answers: Answers, thresholds: Thresholds) -> list[Finding]:
    """Whether a sure answer is right as often as it says (with labels), and whether any answer is ever sure."""
    top = answers.probabilities[np.arange(len(answers.best)), answers.best]
    sure = top >= thresholds.sure
    found = []
    if subject.targets is not None and sure.sum() >= thresholds.min_images:
        right = int((answers.best == subject.targets)[sure].sum())
        interval = clopper_pearson(right, int(sure.sum()), CONFIDENCE)
        # P(at most this many right, if the sure ones were right as often as they say at least).
        p = binomial_tail(int(sure.sum()) - right, int(sure.sum()), 1 - thresholds.sure)
        if p < thresholds.significance and right / sure.sum() < thresholds.sure:
            found.append(
                Finding(
                    kind="probabilities", classes=(), severity="high" if interval.high < 0.75 else "medium",
                    evidence=f"of the {int(sure.sum()):,} answers given at {percent(thresholds.sure)} or more, "
                    f"{percent(right / sure.sum())} ({between(interval)}) are right",
                    value=right / int(sure.sum()), interval=interval, count=int(sure.sum()),
                    rule=f"significantly less often right than {percent(thresholds.sure)}",
                    suggestion="fit a temperature on labelled pictures before any threshold is set",
                )
            )  # fmt: skip
    timid = clopper_pearson(int((top < 0.5).sum()), len(top), CONFIDENCE)
    if timid.low > 0.5:
        found.append(
            Finding(
                kind="probabilities", classes=(), severity="low",
                evidence=f"the best class has less than 50 % on {percent(float((top < 0.5).mean()))} ({between(timid)}) of "
                f"{len(top):,} pictures: probability is spread over the {len(subject.names):,} classes, and thresholds that "
                "suit a shorter list give no label here",
                value=float((top < 0.5).mean()), interval=timid, count=len(top), rule="the interval lies above 50 %",
                suggestion="choose thresholds on this list; they do not carry over from another one",
            )
        )  # fmt: skip
    return found


def threshold_table(answers: Answers, limits: tuple[float, ...] = LABEL_THRESHOLDS) -> list[dict[str, float]]:
    """For each threshold: labels that a picture has in the mean, the share of pictures with none, and the share whose labels
    change when the threshold is halved or doubled."""
    p = answers.probabilities
    rows = []
    for limit in limits:
        has = p >= limit
        looser, tighter = (p >= limit / 2).sum(axis=1), (p >= min(1.0, 2 * limit)).sum(axis=1)
        rows.append({
            "threshold": limit, "labels": float(has.sum(axis=1).mean()), "none": float((~has.any(axis=1)).mean()),
            "changed_by_half": float((looser != has.sum(axis=1)).mean()),
            "changed_by_double": float((tighter != has.sum(axis=1)).mean()),
        })  # fmt: skip
    return rows
