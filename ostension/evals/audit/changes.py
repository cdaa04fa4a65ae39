"""What changes when one class is removed or added: where pictures go, how sure they then are, and who gives pictures away.

Removing a class moves its own pictures and no others, each to its second class. Adding one takes the pictures on which its
logit is the largest.

Letters: N images, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ostension.evals.audit.parts import Answers
from ostension.shapes import Float

SHOWN = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Removal:
    """One class off the list.

    Attributes:
        name: the class.
        pictures: that it had.
        to: the classes that get them, with their number, most first.
        sure: share of those pictures that then get an answer at 90 % or more.
    """

    name: str
    pictures: int
    to: tuple[tuple[str, int], ...]
    sure: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Addition:
    """One class more.

    Attributes:
        name: the class.
        pictures: that it takes.
        of: the classes that lose them, with their number, most first.
        by_group: share of each group that it takes, by field and group.
    """

    name: str
    pictures: int
    of: tuple[tuple[str, int], ...]
    by_group: dict[str, dict[str, float]]


def removals(
    names: Sequence[str], answers: Answers, next_probability: Float[np.ndarray, " N"], *, sure: float = 0.9, shown: int = SHOWN
) -> list[Removal]:
    """For every class that has pictures, what its removal does; most pictures first.

    Args:
        next_probability: (N,) how sure each picture's answer is without its best class (`shares.forced`).
    """
    found = []
    for place, name in enumerate(names):
        mine = answers.best == place
        if not mine.any():
            continue
        to = _most(names, answers.order[mine, 1], shown)
        share = float((next_probability[mine] >= sure).mean())
        found.append(Removal(name=name, pictures=int(mine.sum()), to=to, sure=share))
    return sorted(found, key=lambda removal: -removal.pictures)


def additions(
    names: Sequence[str],
    answers: Answers,
    added: Mapping[str, Float[np.ndarray, " N"]],
    groups: Mapping[str, np.ndarray],
    *,
    shown: int = SHOWN,
) -> list[Addition]:
    """For every added class by itself, whom it takes pictures from. Equal logits stay with the older class.

    Args:
        added: (N,) logits of each added class.
    """
    best = answers.logits.max(axis=1)
    found = []
    for name, logits in added.items():
        taken = logits > best
        by_group = {
            field: {str(group): float(taken[values == group].mean()) for group in np.unique(values)}
            for field, values in groups.items()
        }
        of = _most(names, answers.best[taken], shown)
        found.append(Addition(name=name, pictures=int(taken.sum()), of=of, by_group=by_group))
    return found


def tree(change: Removal | Addition) -> dict[str, Any]:
    """As JSON."""
    found = dataclasses.asdict(change)
    return {key: [list(pair) for pair in value] if key in ("to", "of") else value for key, value in found.items()}


def _most(names: Sequence[str], places: np.ndarray, shown: int) -> tuple[tuple[str, int], ...]:
    counts = np.bincount(places, minlength=len(names))
    order = np.argsort(-counts, kind="stable")[:shown]
    return tuple((names[place], int(counts[place])) for place in order if counts[place])
