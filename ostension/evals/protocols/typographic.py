"""Typographic attacks: accuracy between what a picture shows and the word on it, among all classes, and without the word.

For tasks whose record says which field has the written class (`written`), such as those of `ostension task typographic`.
Metrics: "two_way", "accuracy", "deceived" (`typographic.attack_scores`), and "clean", the accuracy on the split "clean", where
there is one: the same pictures without a word.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ostension.config import require, to_tree
from ostension.data.task import Task
from ostension.errors import DataError
from ostension.evals.inputs import Inputs
from ostension.evals.protocol import Outcome
from ostension.evals.records import Record
from ostension.evals.scores import accuracy
from ostension.evals.typographic import attack_scores, written_classes
from ostension.evals.zero_shot import OWN, classify, labels_of, words

SPLITS = ("test",)
OF_PREDICTORS = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What classes are called.

    Attributes:
        templates: as for zero-shot.
        clean: the split without words; it is left out where the record has none of that name.
    """

    templates: str = OWN
    clean: str = "clean"

    def __post_init__(self):
        require(bool(self.templates), "templates", self.templates, "own, a template, or the name of a set")


def reason_not(task: Task) -> str | None:
    """Why it cannot be run on this task."""
    return "its record does not say what is written on the pictures" if task.written is None else None


def run(inputs: Inputs, config: Config, *, seed: int) -> Outcome:
    """The metrics.

    Raises:
        DataError: for samples without a written class, or without labels.
    """
    task = inputs.task
    assert task.written is not None
    features, targets = inputs.features("test"), labels_of(inputs, "test")
    if task.written not in features.groups:
        raise DataError(f"no field {task.written!r}", source=task.name, expected="the written class of each sample")
    classes = tuple(task.display_names())
    written = written_classes([str(text) for text in features.groups[task.written]], classes, targets)
    asked = words(task, config.templates)
    logits = classify(inputs, "test", asked)
    measured, counts = attack_scores(logits, targets, written), {"samples": len(targets), "classes": len(classes)}
    if config.clean in task.splits and inputs.has(config.clean):
        right = classify(inputs, config.clean, asked).argmax(axis=1) == labels_of(inputs, config.clean)
        measured["clean"], counts["clean_samples"] = accuracy(right, chance=1 / len(classes)), len(right)
    record = Record(
        protocol="typographic", subject=f"{inputs.model_name} on {task.title}", metrics=measured,
        config={**to_tree(config), "scale": inputs.scale}, hashes=inputs.hashes(), counts=counts, seeds=(seed,), task=task.name,
        model=inputs.model_name, split=inputs.name_of("test"), details={"templates": list(asked.templates)},
    )  # fmt: skip
    keys = np.array(classes)
    said = {
        "target": keys[targets], "written": keys[written], "predicted": keys[logits.argmax(axis=1)],
        "correct": logits.argmax(axis=1) == targets,
    }  # fmt: skip
    return Outcome(record=record, samples={"id": np.array(features.ids), **said})
