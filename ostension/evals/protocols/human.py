"""People against the zero-shot classifier on the same pictures, from a table of their answers.

The table is a CSV as `evals.human` describes it; pictures are named by the samples' ids, or by the last part of their path
where that is enough. The classifier is measured on the pictures that people answered, once for each condition.

Metrics: "model" (mean per class, on the pictures of the first condition), then "people, CONDITION" (the first of the four
columns). Details: "conditions" {condition: {column: [share, answers]}}, "models" {condition: mean per class on the same
pictures}, "classes" [[key, {condition: people}, {condition: model}], ...], hardest for people first; "correlation" {condition:
[r, p]} over classes, "dropped" {condition: {person: share of checks}}, "people" {condition: how many}.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ostension.config import require, to_tree
from ostension.data.task import Task
from ostension.errors import ConfigError, DataError
from ostension.evals.heads import one_label
from ostension.evals.human import ATTENTIVE, Answer, by_class, four_columns, read_answers
from ostension.evals.inputs import Inputs
from ostension.evals.protocol import Outcome
from ostension.evals.records import Metric, Record
from ostension.evals.scores import mean_per_class
from ostension.evals.statistics import pearson
from ostension.evals.zero_shot import classify

SPLITS = ("test",)
OF_PREDICTORS = True
FILES = ("answers",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Whose answers count.

    Attributes:
        answers: the CSV.
        attentive: share of the attention checks that a person must get right to be counted.
    """

    answers: str = ""
    attentive: float = ATTENTIVE

    def __post_init__(self):
        require(0 <= self.attentive <= 1, "attentive", self.attentive, "a share, 0 to 1")


def reason_not(task: Task) -> str | None:
    """Why it cannot be run on this task."""
    if task.kind == "retrieval":
        return "a retrieval task has no classes"
    return "samples have several labels" if task.takes_several else None


def run(inputs: Inputs, config: Config, *, seed: int) -> Outcome:
    """The four columns of people, and the classifier on the same pictures.

    Raises:
        ConfigError: without a table of answers.
        DataError: for a table that cannot be read, or of pictures that are not the task's.
    """
    if not config.answers:
        raise ConfigError("no answers are given", expected="human.answers = a CSV with image, person and answer")
    task, features = inputs.task, inputs.features("test")
    keys, targets = list(task.display_names()), one_label(features)
    predicted = classify(inputs).argmax(axis=1)
    place = places(features.ids)
    measured: dict[str, Metric] = {}
    conditions, models, dropped, people = {}, {}, {}, {}
    difficulty: dict[str, tuple[dict[str, float], dict[str, float]]] = {}
    for name, everyone in read_answers(config.answers, task.key_of).items():
        found, dropped[name] = everyone.attentive(config.attentive)
        rows = rows_of(found.answers, place, config.answers)
        truth = {image: keys[targets[row]] for image, row in rows.items()}
        columns = four_columns(found.answers, truth, seed=seed)
        conditions[name] = {column: [metric.value, metric.count] for column, metric in columns.items()}
        chosen = np.array(sorted(rows.values()))
        model = mean_per_class(predicted[chosen], targets[chosen], chance=1 / len(keys))
        models[name] = model.value
        measured.setdefault("model", model)
        measured[f"people, {name}" if name else "people"] = columns["accuracy"]
        people[name] = len({one.person for one in found.answers})
        right = {
            key: float((predicted == targets)[chosen][targets[chosen] == label].mean())
            for label, key in enumerate(keys)
            if (targets[chosen] == label).any()
        }
        difficulty[name] = {key: value for key, (value, _) in by_class(found.answers, truth).items()}, right
    details: dict[str, Any] = {
        "conditions": conditions, "models": models, "classes": _classes(difficulty),
        "correlation": {name: _correlation(*both) for name, both in difficulty.items()}, "dropped": dropped, "people": people,
    }  # fmt: skip
    record = Record(
        protocol="human", subject=f"{inputs.model_name} and people on {task.title}", metrics=measured,
        config={**to_tree(config), "scale": inputs.scale}, hashes=inputs.hashes(),
        counts={"samples": len(features), "classes": len(keys), "conditions": len(conditions)}, seeds=(seed,),
        task=task.name, model=inputs.model_name, split=inputs.name_of("test"), details=details,
    )  # fmt: skip
    return Outcome(record=record)


def places(ids: Sequence[str]) -> dict[str, int]:
    """The row of each sample by its id, and by the last part of its path where no other has the same."""
    short = Counter(name.rsplit("/", 1)[-1] for name in ids)
    found = {name.rsplit("/", 1)[-1]: row for row, name in enumerate(ids) if short[name.rsplit("/", 1)[-1]] == 1}
    return found | {name: row for row, name in enumerate(ids)}


def rows_of(answers: Sequence[Answer], place: Mapping[str, int], source: str) -> dict[str, int]:
    """The row of each picture that was answered.

    Raises:
        DataError: for a picture that is none of the samples.
    """
    images = dict.fromkeys(one.image for one in answers)
    if not images:
        raise DataError(
            "nobody passed the attention checks", source=source, expected="a lower human.attentive, or other people"
        )
    missing = [image for image in images if image not in place]
    if missing:
        what = f"{len(missing):,} of {len(images):,} pictures are not among the samples, such as {missing[0]!r}"
        raise DataError(what, source=source, expected="ids of samples")
    return {image: place[image] for image in images}


def _classes(difficulty: Mapping[str, tuple[dict[str, float], dict[str, float]]]) -> list[list[Any]]:
    keys = dict.fromkeys(key for people, _ in difficulty.values() for key in people)
    rows = [
        [key, {name: both[0][key] for name, both in difficulty.items() if key in both[0]},
         {name: both[1][key] for name, both in difficulty.items() if key in both[1]}]
        for key in keys
    ]  # fmt: skip
    return sorted(rows, key=lambda row: sum(row[1].values()) / len(row[1]))


def _correlation(people: dict[str, float], model: dict[str, float]) -> list[float] | None:
    """r and p over classes: whether what is hard for people is hard for the model; None where that has no meaning."""
    pairs = np.array([[people[key], model[key]] for key in people])
    if len(pairs) < 3 or not np.ptp(pairs, axis=0).all():
        return None
    return list(pearson(pairs[:, 0], pairs[:, 1]))
