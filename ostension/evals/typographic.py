"""What words on pictures do to a classifier: accuracy between what is shown and what is written, among all classes, and how
often the written word wins.

Letters: N samples, C classes.
Source: Ilharco et al. 2022, "Patching open-vocabulary models by interpolating weights" (PAINT, arXiv 2208.05592): zero-shot
over the two labels in the file's name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ostension.errors import DataError
from ostension.evals.records import Metric
from ostension.evals.scores import accuracy
from ostension.shapes import Float, Int


def written_classes(texts: Sequence[str], classes: Sequence[str], targets: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """The position of the class that is written on each picture.

    Raises:
        DataError: for no word, a word that is no class, or the picture's own class.
    """
    places = {key: place for place, key in enumerate(classes)}
    found = np.array([places.get(text, -1) for text in texts], dtype=np.int64)
    for wrong, what in ((found < 0, "is no class"), (found == targets, "is the picture's own class")):
        if wrong.any():
            first = int(wrong.argmax())
            raise DataError(f"the word {texts[first]!r} on sample {first} {what}", expected="another class of the task")
    return found


def attack_scores(
    logits: Float[np.ndarray, "N C"], targets: Int[np.ndarray, " N"], written: Int[np.ndarray, " N"]
) -> dict[str, Metric]:
    """Metrics of attacked pictures.

    "two_way" is the accuracy between the class that is shown and the one that is written (a tie counts as wrong), "accuracy"
    that among all classes, "deceived" the share of all pictures that are called as what is written.
    """
    rows, chance = np.arange(len(targets)), 1 / logits.shape[1]
    best = logits.argmax(axis=1)
    return {
        "two_way": accuracy(logits[rows, targets] > logits[rows, written], chance=0.5),
        "accuracy": accuracy(best == targets, chance=chance),
        "deceived": dataclasses.replace(accuracy(best == written, chance=chance), direction="lower"),
    }
