"""Heads: classifiers on rows, from words or from labels, that protocols compare on the same samples.

From words: unit rows in the joint space, logits = scale x W^T. From labels: logistic regression on the tower's rows, its
strength chosen on a validation part.

Letters: N samples, C classes, D width, S strengths.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from ostension.errors import DataError
from ostension.evals.few_shots import held_out, joined
from ostension.evals.inputs import Inputs, Names, class_logits
from ostension.shapes import Float, Int
from ostension.store import Features
from ostension.store.key import Level
from ostension.train.strength_search import Choice, PathProbe, paper_search, whole_grid

HELD_OUT = 0.2
Search = Literal["paper", "grid"]
Judge = Callable[[np.ndarray], float]  # of the (N,) predictions on the validation part


@dataclasses.dataclass(frozen=True)
class Head:
    """A classifier.

    Attributes:
        kind: what it is, in words: "zero-shot", "probe", "4-shot".
        level: which rows it takes: "post" are unit rows in the joint space, "pre" the tower's output as it is.
        width: numbers of a row.
        of_rows: (N, C) logits of (N, D) rows.
        choice: how its strength was chosen, of a head of labels.
    """

    kind: str
    level: Level
    width: int
    of_rows: Callable[[np.ndarray], np.ndarray]
    choice: Choice | None = None

    def logits(self, features: Features) -> Float[np.ndarray, "N C"]:
        """The logits of samples, from rows of `level`.

        Raises:
            DataError: for rows of another width.
        """
        rows = rows_of(features, self.level)
        if rows.shape[1] != self.width:
            raise DataError(f"rows of {rows.shape[1]} numbers", expected=f"{self.width}, as the {self.kind} head has")
        return self.of_rows(rows)


def rows_of(features: Features, level: Level) -> Float[np.ndarray, "N D"]:
    """The rows that a head of that level takes."""
    return features.unit() if level == "post" else features.array()


def head_of_words(
    inputs: Inputs, names: Names | None = None, templates: Sequence[str] | None = None, *, kind: str = "zero-shot"
) -> Head:
    """The zero-shot head of a task's classes, or of other names and templates."""
    weights = inputs.classifier(names, templates)
    return Head(kind, "post", weights.shape[1], lambda rows: class_logits(rows, weights, inputs.scale))


def head_of_labels(
    train: Features,
    validation: Features,
    *,
    level: Level,
    kind: str = "probe",
    search: Search = "paper",
    judge: Judge | None = None,
    refit: bool = False,
) -> Head:
    """Logistic regression on `train`, at the strength that does best on `validation`.

    A class without a sample to learn from is never predicted.

    Args:
        search: at most 15 strengths as the paper searches, or all 97.
        judge: scores predictions on the validation part; by default their accuracy.
        refit: fit again on both parts once the strength is chosen, as the paper does.

    Raises:
        DataError: for samples without one label each, or of a single class.
    """
    wanted = one_label(validation)
    probe, rows = _probe(train, level), rows_of(validation, level)

    def score(strength: float) -> float:
        predicted = probe.logits(strength, rows).argmax(axis=1)
        return judge(predicted) if judge is not None else float((predicted == wanted).mean())

    choice = paper_search(score) if search == "paper" else whole_grid(score)
    if refit:
        probe = _probe(joined(train, validation), level)
    probe.approach(choice.strength)
    return Head(kind, level, rows.shape[1], lambda rows: probe.logits(choice.strength, rows), choice)


def one_label(features: Features) -> Int[np.ndarray, " N"]:
    """The targets of samples with one label each.

    Raises:
        DataError: for others.
    """
    if features.targets is None or features.targets.ndim != 1:
        what = "no labels" if features.targets is None else "several labels a sample"
        raise DataError(what, source=features.facts.get("source"), expected="one label a sample")
    return features.targets.astype(np.int64)


def split_off(features: Features, *, seed: int, share: float = HELD_OUT) -> tuple[Features, Features]:
    """Samples to learn from, and a share of each class held out to choose on."""
    out = held_out(one_label(features), share, seed)
    return features.take(~out), features.take(out)


def _probe(train: Features, level: Level) -> PathProbe:
    targets = one_label(train)
    if len(np.unique(targets)) < 2:
        raise DataError("all samples to learn from are of one class", expected="two classes or more")
    return PathProbe(rows_of(train, level), targets, len(train.classes))
