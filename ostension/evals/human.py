"""People against a model on the same pictures: answers read, attention checked, the four columns of CLIP's Table 2.

    accuracy              mean over classes of the share of answers that are right; "I don't know" is wrong
    majority              the same of one answer a picture, the most frequent one; no answer at all is wrong
    accuracy on guesses   mean over classes, of the answers that were given
    majority on guesses   mean over classes, of the pictures that somebody answered

Answers with equally many voices share the vote: one of two right ones counts one half. (The paper does not say how it broke
ties.)

A table of answers is a CSV with the columns `image`, `person`, `answer` (blank, or "I don't know", for none), and perhaps
`condition` ("zero-shot", "one-shot", ...) and `check` (the right answer of a picture that only checks attention).

Letters: R answers, I pictures, C classes.
Source: CLIP, section 4.1 and Table 2.
"""

from __future__ import annotations

import csv
import dataclasses
import os
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ostension.errors import DataError
from ostension.evals.metrics import BOOTSTRAP_RESAMPLES, percentile_interval
from ostension.evals.records import Metric
from ostension.runtime import numpy_generator

PUBLISHED = Path(__file__).with_name("data") / "human_pets.toml"
COLUMNS = ("accuracy", "majority", "accuracy_on_guesses", "majority_on_guesses")
UNSURE = frozenset({"", "i don't know", "i don’t know", "i dont know", "don't know", "dont know", "?"})
ATTENTIVE = 0.9  # the paper's raters passed at 94 % and more


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """One person's answer to one picture: a label key, or "" for none."""

    image: str
    person: str
    answer: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """What was answered under one condition.

    Attributes:
        answers: of pictures that count.
        checks: answers to pictures that only check attention, each with whether it is right.
    """

    answers: tuple[Answer, ...]
    checks: tuple[tuple[str, bool], ...] = ()

    def attentive(self, minimum: float = ATTENTIVE) -> tuple[Answers, dict[str, float]]:
        """The answers of people who got at least `minimum` of their checks right, and the share of each who did not.

        Someone who saw no check stays.
        """
        seen: dict[str, list[bool]] = defaultdict(list)
        for person, right in self.checks:
            seen[person].append(right)
        shares = {person: float(np.mean(rights)) for person, rights in seen.items()}
        dropped = {person: share for person, share in shares.items() if share < minimum}
        kept = tuple(one for one in self.answers if one.person not in dropped)
        return Answers(answers=kept, checks=tuple(check for check in self.checks if check[0] not in dropped)), dropped


def read_answers(path: str | os.PathLike, key_of: Callable[[str], str | None] = lambda label: label) -> dict[str, Answers]:
    """The answers of a CSV by condition ("" where it names none).

    Args:
        key_of: the label key that an answer means, None for no class (`task.key_of`).

    Raises:
        DataError: for a table without the three columns, an answer that is no class, or a person who answers a picture twice.
    """
    path = Path(path)
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            rows = list(reader)
            header = list(reader.fieldnames or ())
    except FileNotFoundError:
        raise DataError("no such file", source=path, expected="a CSV of answers") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot be read: {error}", source=path, expected="a CSV of answers") from None
    if missing := [name for name in ("image", "person", "answer") if name not in header]:
        raise DataError(f"no column {missing[0]!r}", source=path, expected="image, person and answer")
    answers: dict[str, list[Answer]] = defaultdict(list)
    checks: dict[str, list[tuple[str, bool]]] = defaultdict(list)
    seen: set[tuple[str, str, str]] = set()
    for line, row in enumerate(rows, 2):
        condition, where = row.get("condition") or "", (row.get("condition") or "", row["image"], row["person"])
        given = (row["answer"] or "").strip()
        key = "" if given.lower() in UNSURE else key_of(given)
        if key is None:
            raise DataError(f"the answer {given!r} in line {line} is no class", source=path, expected="a class, or nothing")
        if where in seen:
            raise DataError(f"{row['person']!r} answers {row['image']!r} again in line {line}", source=path, expected="once")
        seen.add(where)
        if expected := (row.get("check") or "").strip():
            checks[condition].append((row["person"], key == key_of(expected)))
        else:
            answers[condition].append(Answer(image=row["image"], person=row["person"], answer=key))
    if not answers:
        raise DataError("no answers", source=path, expected="one row an answer")
    return {
        condition: Answers(answers=tuple(several), checks=tuple(checks[condition])) for condition, several in answers.items()
    }


def four_columns(answers: Sequence[Answer], truth: Mapping[str, str], *, seed: int = 0) -> dict[str, Metric]:
    """The four columns by name, as in `COLUMNS`; a column that nothing is left for is missing.

    Intervals are percentile bootstraps over pictures, drawn within classes.

    Args:
        truth: the label key of each picture.

    Raises:
        DataError: for a picture whose class is not known, or no answers.
    """
    tally = _tally(answers, truth)
    found = {}
    for name in COLUMNS:
        scores, weights, classes = tally[name]
        used = weights > 0
        if used.any():
            found[name] = _mean_over_classes(scores[used], weights[used], classes[used], seed=seed)
    return found


def by_class(answers: Sequence[Answer], truth: Mapping[str, str]) -> dict[str, tuple[float, int]]:
    """The share of right answers ("I don't know" is wrong) and the number of answers, by class."""
    scores, weights, classes = _tally(answers, truth)["accuracy"]
    return {
        str(key): (float(scores[classes == key].sum() / weights[classes == key].sum()), int(weights[classes == key].sum()))
        for key in np.unique(classes)
    }


def published() -> dict[str, Any]:
    """CLIP's Table 2 on Oxford Pets, in shares: {"conditions": {name: {column: share}}, "model", "source", "evidence", ...}."""
    with open(PUBLISHED, "rb") as handle:
        tree = tomllib.load(handle)
    tree["conditions"] = {
        name: {column: value / 100 for column, value in row.items()} for name, row in tree["conditions"].items()
    }
    return tree


def _tally(answers: Sequence[Answer], truth: Mapping[str, str]) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each column and picture: what is right, out of how much, and the picture's class."""
    given: dict[str, list[str]] = defaultdict(list)
    for one in answers:
        if one.image not in truth:
            raise DataError(f"the class of {one.image!r} is not known", expected="pictures of the task")
        given[one.image].append(one.answer)
    if not given:
        raise DataError("there are no answers", expected="one or more")
    classes = np.array([truth[image] for image in given])
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in COLUMNS}
    for image, several in given.items():
        guesses = [answer for answer in several if answer]
        right = sum(answer == truth[image] for answer in several)
        votes = Counter(guesses).most_common()
        winners = [answer for answer, count in votes if count == votes[0][1]]
        vote = (truth[image] in winners) / len(winners) if winners else 0.0
        rows["accuracy"].append((right, len(several)))
        rows["majority"].append((vote, 1))
        rows["accuracy_on_guesses"].append((right, len(guesses)))
        rows["majority_on_guesses"].append((vote, bool(guesses)))
    return {name: (*np.array(pairs, dtype=np.float64).T, classes) for name, pairs in rows.items()}


def _mean_over_classes(scores: np.ndarray, weights: np.ndarray, classes: np.ndarray, *, seed: int) -> Metric:
    """mean over c of sum(scores of c) / sum(weights of c); the bootstrap draws pictures within classes."""
    generator = numpy_generator(seed, "bootstrap")
    values, drawn = [], np.zeros(BOOTSTRAP_RESAMPLES)
    kinds = np.unique(classes)
    for kind in kinds:
        rows = np.flatnonzero(classes == kind)
        values.append(scores[rows].sum() / weights[rows].sum())
        chosen = rows[generator.integers(len(rows), size=(BOOTSTRAP_RESAMPLES, len(rows)))]
        drawn += scores[chosen].sum(axis=1) / weights[chosen].sum(axis=1) / len(kinds)
    return Metric(value=float(np.mean(values)), count=int(weights.sum()), interval=percentile_interval(drawn))
