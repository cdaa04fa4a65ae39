"""Checks of the classes' rows: names that lie too close, names with several senses, names and templates that do not hold still.

A distance between rows means little by itself: in the released models all texts lie within a narrow cone (two LVIS names
have a median cosine of 0.74). So distances are relative: |w_i - w_j|^2 over that of unrelated words, which is (1 - cos) over
its median among reference words, or among the classes themselves where these are many. 0 is the same row, 1 unrelated.

Templates move all rows alike ("a drawing of"); that common part is taken off before rows of different templates are compared.

Letters: C classes, M templates, E embedding, R reference words.
"""

from __future__ import annotations

import numpy as np

from ostension.errors import DataError
from ostension.evals.audit.names import relation
from ostension.evals.audit.parts import Finding, Severity, Subject, Thresholds, percent, quoted
from ostension.shapes import Bool, Float, Int

MIN_REFERENCE = 10
MAX_LISTED = 8
MIN_CLASSES = 20  # from here on the list's own median distance stands for unrelated names
MIN_TEMPLATES = 3  # two give no centre to be far from
VAGUE_COUNT, VAGUE_TIMES = 10, 5  # of other names; and times the median name's, because lists of one kind are all close
SWAPS_HIGH = 0.25
SWAPS = 0.1


def unrelated(subject: Subject) -> float | None:
    """1 - cosine of unrelated words: the median over pairs of reference words, else of many classes, else None."""
    for rows, enough in ((subject.reference, MIN_REFERENCE), (subject.rows, MIN_CLASSES)):
        if rows is not None and len(rows) >= enough:
            value = float(np.median(1 - (rows @ rows.T)[np.triu_indices(len(rows), 1)]))
            if value <= 0:
                raise DataError("most rows are the same row", expected="rows of different texts")
            return value
    return None


def relative_distances(rows: Float[np.ndarray, "C E"], yardstick: float) -> Float[np.ndarray, "C C"]:
    """(1 - cos) / yardstick of all pairs."""
    return np.maximum(0.0, 1.0 - rows @ rows.T) / yardstick


def close_pairs(distances: Float[np.ndarray, "C C"], limit: float) -> list[tuple[int, int]]:
    """All pairs nearer than `limit`, nearest first."""
    first, second = np.triu_indices(len(distances), 1)
    found = np.flatnonzero(distances[first, second] < limit)
    found = found[np.argsort(distances[first, second][found], kind="stable")]
    return [(int(first[place]), int(second[place])) for place in found]


def stars(near: Bool[np.ndarray, "C C"], distances: Float[np.ndarray, "C C"]) -> list[tuple[int, ...]]:
    """Groups of classes that are near to one of them, which comes first: the class with most of them, and so on.

    No class is in two groups, so a pair may be in none; `close_pairs` has all.
    """
    left, found = near & near.T, []
    np.fill_diagonal(left, False)
    while left.any():
        centre = int(left.sum(axis=1).argmax())
        others = np.flatnonzero(left[centre])
        others = others[np.argsort(distances[centre, others], kind="stable")]
        found.append((centre, *others.tolist()))
        left[found[-1], :] = False
        left[:, found[-1]] = False
    return found


def check_close(subject: Subject, thresholds: Thresholds, distances: Float[np.ndarray, "C C"]) -> list[Finding]:
    """Names whose rows nearly coincide, in groups around one of them."""
    found = []
    merged = np.zeros_like(distances, dtype=bool)
    for limit, severity in ((thresholds.same, "high"), (thresholds.close, "medium")):
        # Names of one group are one name for the model: what is near to one of them is told once, by its first.
        for group in stars((distances < limit) & ~merged, distances):
            found.append(_close(subject, thresholds, distances, group, "high" if severity == "high" else "medium"))
            if severity == "high":
                merged[list(group)[1:], :] = True
                merged[:, list(group)[1:]] = True
    return found


def _close(
    subject: Subject, thresholds: Thresholds, distances: Float[np.ndarray, "C C"], group: tuple[int, ...], severity: Severity
) -> Finding:
    names = tuple(subject.names[place] for place in (sorted(group) if len(group) == 2 else group))
    values = distances[group[0], list(group[1:])]
    if len(group) == 2:
        assert subject.rows is not None
        spelt = relation(*names)
        told = f"{quoted(*names)} lie at {values[0]:.2f} of the distance of unrelated words (cosine "
        told += f"{float(subject.rows[group[0]] @ subject.rows[group[1]]):.3f}){'; ' if spelt else ''}{spelt}"
    else:
        others, more = names[1 : MAX_LISTED + 1], len(names) - 1 - MAX_LISTED
        told = f"{len(names) - 1} names lie at {values.min():.2f} to {values.max():.2f} of the distance of unrelated words "
        told += f"from {quoted(names[0])}: {quoted(*others)}{f' and {more} more' if more > 0 else ''}"
    return Finding(
        kind="close", classes=names, severity=severity, evidence=told, value=float(values.min()), count=len(names) - 1,
        rule=f"below {thresholds.close:g}; high below {thresholds.same:g}",
        suggestion="merge them, or put into the names what a picture shows of the difference",
    )  # fmt: skip


def check_vague(subject: Subject, thresholds: Thresholds, distances: Float[np.ndarray, "C C"]) -> list[Finding]:
    """Names that lie near many others, where most names do not."""
    near = (distances < thresholds.near).sum(axis=1) - 1  # but itself
    limit = max(VAGUE_COUNT, thresholds.vague * (len(distances) - 1), VAGUE_TIMES * (float(np.median(near)) + 1))
    found = []
    for place in np.argsort(-near, kind="stable").tolist():
        if near[place] < limit:
            break
        order = np.argsort(distances[place], kind="stable")
        others = [subject.names[other] for other in order[:6].tolist() if other != place][:5]
        found.append(
            Finding(
                kind="vague", classes=(subject.names[place],), severity="low",
                evidence=f"{quoted(subject.names[place])} lies near {near[place]:,} of the other {len(distances) - 1:,} names "
                f"(the median name near {np.median(near):.0f}), such as {quoted(*others)}",
                value=float(near[place]), count=len(distances) - 1,
                rule=f"below {thresholds.near:g} of the distance of unrelated words to {limit:.0f} names or more",
                suggestion="write what such a picture shows, if a picture can show it",
            )
        )  # fmt: skip
    return found


def check_senses(subject: Subject) -> list[Finding]:
    """Names of several known senses, with the sense that the model takes them for where its rows were compared."""
    found = []
    for name, senses in subject.senses.items():
        ranked = sorted(senses, key=lambda sense: -sense[1])
        words = ", ".join(sense for sense, _ in senses)
        known = not np.isnan(ranked[0][1])
        nearest = ", then ".join(f"{sense!r} (cosine {cosine:.3f})" for sense, cosine in ranked)
        takes = f"; the model's row is nearest to {nearest}" if known else ""
        found.append(
            Finding(
                kind="ambiguous", classes=(name,), severity="medium",
                evidence=f"{quoted(name)} has {len(senses)} senses that can be photographed: {words}{takes}",
                value=float(len(senses)), rule="a name in the shipped list of words with several visible senses",
                suggestion="write the sense that is meant", count=len(senses),
            )
        )  # fmt: skip
    return found


def centred(template_rows: Float[np.ndarray, "M C E"]) -> Float[np.ndarray, "M C E"]:
    """Rows without what each template does to all classes alike."""
    return template_rows - template_rows.mean(axis=1, keepdims=True)


def spreads(template_rows: Float[np.ndarray, "M C E"]) -> Float[np.ndarray, " C"]:
    """Mean squared distance of each class's centred rows from their mean over templates."""
    rows = centred(template_rows)
    return ((rows - rows.mean(axis=0)) ** 2).sum(axis=2).mean(axis=0)


def nearest_class(template_rows: Float[np.ndarray, "M C E"]) -> Int[np.ndarray, "M C"]:
    """For each row, the class whose mean over all *other* templates is nearest to it: its own, if names hold still."""
    rows = centred(template_rows)
    total, count = rows.sum(axis=0), len(rows)
    found = np.empty(rows.shape[:2], dtype=np.int64)
    for place, row in enumerate(rows):
        means = (total - row) / (count - 1)
        found[place] = (2 * row @ means.T - (means**2).sum(axis=1)).argmax(axis=1)
    return found


def robust_z(values: Float[np.ndarray, " C"]) -> Float[np.ndarray, " C"]:
    """Distances from the median in units of the median absolute deviation, scaled to a normal's standard deviation.

    0 for all where more than half of the values are equal.
    """
    off = values - np.median(values)
    scale = 1.4826 * float(np.median(np.abs(off)))
    return off / scale if scale > 0 else np.zeros_like(values)


def check_templates(subject: Subject, thresholds: Thresholds) -> list[Finding]:
    """Names and templates that do not hold still, from rows alone; needs three templates."""
    assert subject.template_rows is not None
    found: list[Finding] = []
    nearest = nearest_class(subject.template_rows)
    swapped: Bool[np.ndarray, "M C"] = nearest != np.arange(len(subject.names))
    rate = swapped.mean(axis=0)
    for place in np.argsort(-rate, kind="stable").tolist():
        if rate[place] < SWAPS:
            break
        others = nearest[swapped[:, place], place]
        other = subject.names[int(np.bincount(others).argmax())]
        which = [subject.templates[m] for m in np.flatnonzero(swapped[:, place])[:2]]
        severity: Severity = "high" if rate[place] >= SWAPS_HIGH else "medium"
        found.append(
            Finding(
                kind="unstable", classes=(subject.names[place], other), severity=severity,
                evidence=f"under {percent(rate[place])} of the templates ({', '.join(map(repr, which))}) "
                f"{quoted(subject.names[place])} is nearer to {quoted(other)} than to itself under the others",
                value=float(rate[place]), rule=f"{percent(SWAPS)} of the templates; high from {percent(SWAPS_HIGH)}",
                suggestion="make the two names differ more, or leave out the templates named", count=len(subject.templates),
            )
        )  # fmt: skip
    found += _spread(subject, thresholds)
    by_template = swapped.mean(axis=1)
    usual = float(np.median(by_template))
    for place in np.flatnonzero((by_template - usual >= thresholds.template_gap) & (swapped.sum(axis=1) >= 2)).tolist():
        if not subject.uses(place):
            continue
        found.append(
            Finding(
                kind="template", classes=(), severity="medium",
                evidence=f"under {subject.templates[place]!r} {percent(by_template[place])} of the names are nearer to another "
                f"class than to themselves under the other templates (median of the templates {percent(usual)})",
                value=float(by_template[place]), rule=f"{percent(thresholds.template_gap)} more than the median template",
                suggestion="leave this template out, or look at what it says of these classes", count=len(subject.names),
            )
        )  # fmt: skip
    return found


def _spread(subject: Subject, thresholds: Thresholds) -> list[Finding]:
    assert subject.template_rows is not None
    values = spreads(subject.template_rows)
    usual = float(np.median(values))
    if usual <= 0:
        return []
    z = robust_z(np.log(np.maximum(values, 1e-12)))
    far = np.flatnonzero((values >= thresholds.spread * usual) & (z >= thresholds.spread_z))
    return [
        Finding(
            kind="unstable", classes=(subject.names[place],), severity="medium",
            evidence=f"the row of {quoted(subject.names[place])} moves {values[place] / usual:.1f} times as much between "
            f"templates as the median name's (squared distance; robust z {z[place]:.1f}): its meaning depends on the words "
            "around it",
            value=float(values[place] / usual),
            rule=f"{thresholds.spread:g} times the median, and {thresholds.spread_z:g} robust standard deviations above it",
            suggestion="look for a second sense of the word, and write the one that is meant", count=len(subject.templates),
        )
        for place in far[np.argsort(-values[far], kind="stable")].tolist()
    ]  # fmt: skip
