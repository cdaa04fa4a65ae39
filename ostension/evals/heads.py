"""Heads: linear classifiers on rows, from words or from labels, that protocols compare on the same samples.

    logits = rows W^T + b

From words: unit rows in the joint space, W = scale x the classifier of the prompts, b = 0. From labels: logistic regression on
the tower's rows, its strength chosen on a validation part.

Letters: N samples, C classes, D width, S strengths.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ostension.errors import DataError
from ostension.evals.inputs import Inputs, Names
from ostension.runtime import numpy_generator
from ostension.shapes import Float, Int
from ostension.store import Features
from ostension.store.key import Level
from ostension.train.logistic import fit_logistic

# Two a decade; on rows of CLIP's towers (length about 10) the published probes chose between 0.1 and 10.
STRENGTHS = tuple(10.0 ** (power / 2) for power in range(-6, 7))
HELD_OUT = 0.2
Judge = Callable[[np.ndarray], float]  # of the (N,) predictions on the validation part


@dataclasses.dataclass(frozen=True)
class Head:
    """A linear classifier.

    Attributes:
        kind: what it is, in words: "zero-shot", "probe", "4-shot".
        level: which rows it takes: "post" are unit rows in the joint space, "pre" the tower's output as it is.
        weight: (C, D); bias: (C,).
    """

    kind: str
    level: Level
    weight: np.ndarray
    bias: np.ndarray

    def logits(self, features: Features) -> Float[np.ndarray, "N C"]:
        """The logits of samples, from rows of `level`.

        Raises:
            DataError: for rows of another width.
        """
        rows = rows_of(features, self.level)
        if rows.shape[1] != self.weight.shape[1]:
            raise DataError(f"rows of {rows.shape[1]} numbers", expected=f"{self.weight.shape[1]}, as the {self.kind} head has")
        return rows @ self.weight.T + self.bias


def rows_of(features: Features, level: Level) -> Float[np.ndarray, "N D"]:
    """The rows that a head of that level takes, in float32."""
    return features.unit() if level == "post" else features.array().astype(np.float32)


def head_of_words(
    inputs: Inputs, names: Names | None = None, templates: Sequence[str] | None = None, *, kind: str = "zero-shot"
) -> Head:
    """The zero-shot head of a task's classes, or of other names and templates."""
    weight = np.float32(inputs.scale) * inputs.classifier(names, templates)
    return Head(kind, "post", weight, np.zeros(len(weight), dtype=np.float32))


def head_of_labels(
    train: Features,
    validation: Features,
    *,
    level: Level,
    kind: str = "probe",
    strengths: Sequence[float] = STRENGTHS,
    judge: Judge | None = None,
) -> tuple[Head, list[list[float]]]:
    """Logistic regression on `train`, at the strength that does best on `validation`, and [[strength, score], ...].

    A tie goes to the stronger penalty. A class without a sample to learn from is never predicted.

    Args:
        judge: scores predictions on the validation part; by default their accuracy.

    Raises:
        DataError: for samples without one label each, or of a single class.
    """
    classes = len(train.classes)
    targets, wanted = one_label(train), one_label(validation)
    if len(np.unique(targets)) < 2:
        raise DataError("all samples to learn from are of one class", expected="two classes or more")
    fit = fit_logistic(torch.from_numpy(rows_of(train, level)), torch.from_numpy(targets), classes, strengths)
    rows = torch.from_numpy(rows_of(validation, level))
    curve: list[list[float]] = []
    for place, strength in enumerate(strengths):
        predicted = fit.logits_of(place, rows).argmax(dim=1).numpy()
        curve.append([strength, judge(predicted) if judge is not None else float((predicted == wanted).mean())])
    best = max(range(len(curve)), key=lambda place: (curve[place][1], -curve[place][0]))
    weight, bias = (part[best].numpy().astype(np.float32) for part in (fit.weight, fit.bias))
    return Head(kind, level, weight, bias), curve


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
    """Samples to learn from and `share` of each class held out, drawn by class; of a class of one, that one is learned from."""
    targets = one_label(features)
    generator = numpy_generator(seed, "held-out")
    held = np.zeros(len(targets), dtype=bool)
    for label in np.unique(targets):
        members = generator.permutation(np.flatnonzero(targets == label))
        held[members[: min(len(members) - 1, max(1, round(share * len(members))))]] = True
    if not held.any():
        raise DataError("no class has two samples, so none can be held out", source=features.facts.get("source"))
    return features.take(~held), features.take(held)
