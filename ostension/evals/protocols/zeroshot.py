"""Zero-shot classification by names and templates, scored by the task's own metric.

The classifier of a class is the mean of the unit embeddings of its prompts, names times templates; embeddings are averaged,
never probabilities (CLIP, section 3.1.4). A task that pools ImageNet's classes is asked for those and pooled by the largest
logit. Where a task has official folds of its test samples, and they say which folds they belong to, each metric is the mean
over folds.

Details: those of `zero_shot.measure`, "templates" [...], and "folds" {fold: score} where there are any.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np

from ostension.config import require, to_tree
from ostension.data.task import Task
from ostension.errors import DataError
from ostension.evals import metrics
from ostension.evals.inputs import Inputs
from ostension.evals.protocol import Outcome
from ostension.evals.records import Metric, Record
from ostension.evals.scores import score_name, scores
from ostension.evals.zero_shot import OWN, classify, columns, labels_of, measure, words
from ostension.files import sha256_json
from ostension.store import Features

SPLITS = ("test",)
OF_PREDICTORS = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What classes are called, and on what is measured.

    Attributes:
        templates: "own" for the task's; a template; or a set by name: "photo" (a photo of a {}.), "bare" (the name alone),
            "openai_imagenet_best7", "openai_imagenet", another data set's.
        names: all names of a class, pooled ("own"), or its first one only, as ELEVATER does ("first").
        bins: of the calibration error.
    """

    templates: str = OWN
    names: Literal["own", "first"] = "own"
    bins: int = metrics.CALIBRATION_BINS

    def __post_init__(self):
        require(bool(self.templates), "templates", self.templates, "own, a template, or the name of a set")
        require(self.bins >= 1, "bins", self.bins, "1 or more")


def reason_not(task: Task) -> str | None:
    """Why it cannot be run on this task."""
    return "a retrieval task has no classes" if task.kind == "retrieval" else None


def run(inputs: Inputs, config: Config, *, seed: int) -> Outcome:
    """The task's score and more.

    Raises:
        ConfigError: for a split that is not there, or templates that are not known.
        DataError: for samples without labels.
    """
    task = inputs.task
    asked = words(task, config.templates, first_name=config.names == "first")
    features = inputs.features("test")
    targets = labels_of(inputs, "test")
    logits = classify(inputs, "test", asked)
    measured, details = measure(task, logits, targets, features.groups, seed=seed, bins=config.bins)
    if (folds := fold_members(task, features)) is not None:
        of_fold = {
            fold: scores(task, logits[rows], targets[rows], _taken(features, rows), seed=seed) for fold, rows in folds.items()
        }
        name = score_name(task)
        details["folds"] = {fold: one[name].value for fold, one in of_fold.items()}
        measured[name] = Metric(
            value=float(np.mean(list(details["folds"].values()))), count=len(features), chance=measured[name].chance
        )
    details["templates"] = list(asked.templates)
    hashes = {**inputs.hashes(), "prompts": prompts_sha256(asked.names, asked.templates)}
    record = Record(
        protocol="zeroshot", subject=f"{inputs.model_name} on {task.title}", metrics=measured,
        config={**to_tree(config), "scale": inputs.scale, "pooled_from": task.superclass_of}, hashes=hashes,
        counts={"samples": len(features), "classes": task.num_classes, "templates": len(asked.templates),
                "prompts": asked.num_prompts},
        seeds=(seed,), task=task.name, model=inputs.model_name, split=inputs.name_of("test"), details=details,
    )  # fmt: skip
    said = columns(task, logits, targets, features.groups)
    if "folds" in details and task.folds is not None:
        said["fold"] = np.asarray(features.groups[task.folds.field])
    return Outcome(record=record, samples={"id": np.array(features.ids), **said})


def fold_members(task: Task, features: Features) -> dict[str, np.ndarray] | None:
    """Rows of each official fold of the test samples; None where there are none, or samples do not say theirs.

    A sample that belongs to several names them with commas.
    """
    if task.folds is None or task.folds.split != "both" or task.folds.field not in features.groups:
        return None
    named = [set(str(value).split(",")) for value in features.groups[task.folds.field]]
    found = {fold: np.array([fold in several for several in named]) for fold in sorted(set().union(*named))}
    if len(found) != task.folds.count:
        raise DataError(f"samples of {len(found)} folds", source=task.name, expected=f"{task.folds.count}")
    return found


def prompts_sha256(names: Any, templates: Any) -> str:
    """The hash of names by key, in order, and templates."""
    return sha256_json([[[key, list(several)] for key, several in names.items()], list(templates)])


def _taken(features: Features, rows: np.ndarray) -> dict[str, np.ndarray]:
    return {name: np.asarray(values)[rows] for name, values in features.groups.items()}
