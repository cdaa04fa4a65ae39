"""Zero-shot classification: the logits of classes that are words, and everything that is measured on them.

Letters: N samples, C classes, E embedding, M templates.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ostension.data.task import Task, read_task
from ostension.errors import DataError
from ostension.evals import metrics, ranking
from ostension.evals.class_maps import pool
from ostension.evals.inputs import Inputs, Names
from ostension.evals.records import Metric, Record
from ostension.evals.scores import (
    Groups,
    Targets,
    accuracy,
    group_accuracies,
    in_set,
    mean_per_class,
    per_sample,
    scores,
    softmax,
    top_probability,
)
from ostension.shapes import Float, Int
from ostension.text.prompts import PLACEHOLDER, as_templates

TOP_K = (1, 5)
OWN = "own"  # the task's own templates
LISTED_CONFUSIONS = 200
TOP_COLUMNS = 5
ROWS = 4_096


@dataclasses.dataclass(frozen=True, kw_only=True)
class Words:
    """What the classes are called, and what their names are put into.

    Attributes:
        names: by label key, in the order of the logits, of the task or of the one whose logits it pools.
        templates: with one `{}` each.
        own: whether these are the record's names and templates.
    """

    names: Names
    templates: tuple[str, ...]
    own: bool

    @property
    def num_prompts(self) -> int:
        return len(self.templates) * sum(map(len, self.names.values()))


def words(task: Task, templates: str = OWN, *, first_name: bool = False) -> Words:
    """Names and templates of a task; of ImageNet's classes for a task that pools them.

    Args:
        templates: "own" for the record's; else a template, or the name of a set: "photo" (a photo of a {}.), "bare" (the name
            alone), "openai_imagenet_best7", another data set's.
        first_name: take the first name of each class only, as ELEVATER does.

    Raises:
        ConfigError: for an unknown set, or a template without one `{}`.
    """
    source = task if task.superclass_of is None else read_task(task.superclass_of)
    if templates == OWN:
        names, chosen = source.label_names(), task.prompt_templates()
    else:  # whole prompts are not put into anything
        names, chosen = source.display_names(), as_templates([templates] if PLACEHOLDER in templates else templates)
    if first_name:
        names = {key: several[:1] for key, several in names.items()}
    return Words(names=names, templates=chosen, own=templates == OWN and not first_name)


def classify(inputs: Inputs, split: str = "test", asked: Words | None = None) -> Float[np.ndarray, "N C"]:
    """The task's zero-shot logits, scale * x W^T, of a split's samples; pooled where the task pools another's classes.

    Args:
        asked: names and templates; the record's by default.
    """
    asked = words(inputs.task) if asked is None else asked
    pooled = inputs.task.superclass_of is not None
    # The record's own are left to the inputs, which may have a classifier without prompts.
    names = None if asked.own and not pooled else asked.names
    logits = inputs.logits(split, names, None if asked.own else asked.templates)
    return pool(logits, inputs.task) if pooled else logits


def labels_of(inputs: Inputs, split: str) -> np.ndarray:
    """The targets of a split.

    Raises:
        DataError: where it has none.
    """
    targets = inputs.features(split).targets
    if targets is None:
        raise DataError("the samples have no labels", source=f"{inputs.task.name}/{split}", expected="labels")
    return targets


def measure(
    task: Task,
    logits: Float[np.ndarray, "N C"],
    targets: Targets,
    groups: Groups | None = None,
    *,
    seed: int = 0,
    bins: int = metrics.CALIBRATION_BINS,
) -> tuple[dict[str, Metric], dict[str, Any]]:
    """What a classifier's logits are worth: the task's own score first, and the details that figures are drawn from.

    Returns:
        Metrics: the score; for one label a sample also "top1", "top5" (of more than five classes), "mean_per_class" and "ece".
        Details: "per_class" {label key: accuracy, or average precision of a multi-label task} of the classes that
        occur, "class_counts" {label key: samples}, "confusion" [[true key, predicted key, count], ...] of wrong answers, most
        frequent first, at most 200; "reliability" as `metrics.reliability` gives it; "groups" {cell: [accuracy, samples]}.
    """
    keys = list(task.display_names())
    found = scores(task, logits, targets, groups, seed=seed)
    if targets.ndim == 2:
        counts = targets.sum(axis=0)
        if task.metric == "pm_k":
            right = in_set(logits, targets)
            values = {label: float(right[targets[:, label] > 0].mean()) for label in np.flatnonzero(counts).tolist()}
        else:
            values = ranking.mean_over_labels(ranking.eleven_point_of, softmax(logits), targets > 0)[1]
        return found, {
            "per_class": {keys[label]: value for label, value in values.items()},
            "class_counts": {key: int(count) for key, count in zip(keys, counts, strict=True) if count},
        }
    predicted, count, classes = logits.argmax(axis=1), *logits.shape
    correct = predicted == targets
    places = metrics.ranks(logits, targets)
    found["top1"] = accuracy(correct, chance=1 / classes)
    if classes > 5:
        found["top5"] = accuracy(places < 5, chance=5 / classes)
    if "mean_per_class" not in found:
        found["mean_per_class"] = mean_per_class(predicted, targets, chance=1 / classes)
    table = metrics.reliability(top_probability(logits).clip(0, 1), correct, bins)
    error = sum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in table) / count
    found["ece"] = Metric(value=error, count=count, direction="lower")
    members = np.bincount(targets, minlength=classes)
    right = np.bincount(targets, weights=correct, minlength=classes)
    wrong = metrics.confusion(predicted[~correct], targets[~correct])
    wrong = wrong[np.argsort(-wrong[:, 2], kind="stable")][:LISTED_CONFUSIONS]
    details: dict[str, Any] = {
        "per_class": {keys[place]: float(right[place] / members[place]) for place in np.flatnonzero(members)},
        "class_counts": {keys[place]: int(members[place]) for place in np.flatnonzero(members)},
        "confusion": [[keys[true], keys[given], int(number)] for true, given, number in wrong.tolist()],
        "reliability": table,
    }
    if task.metric == "worst_group":
        cells = group_accuracies(task, correct, targets, groups)
        details["groups"] = {cell: [one.value, one.count] for cell, one in cells.items()}
    return found, details


def columns(
    task: Task, logits: Float[np.ndarray, "N C"], targets: Targets, groups: Groups | None = None
) -> dict[str, np.ndarray]:
    """`scores.per_sample`, and the next four classes with their probabilities: "predicted_2", "probability_2", ..."""
    found = per_sample(task, logits, targets, groups)
    keys = np.array(list(task.display_names()))
    order, probabilities = top_classes(logits, min(TOP_COLUMNS, logits.shape[1]))
    for place in range(1, order.shape[1]):
        found[f"predicted_{place + 1}"] = keys[order[:, place]]
        found[f"probability_{place + 1}"] = probabilities[:, place]
    return found


def top_classes(logits: Float[np.ndarray, "N C"], k: int) -> tuple[Int[np.ndarray, "N k"], Float[np.ndarray, "N k"]]:
    """The k classes of the largest logits in falling order, equal ones by index, and their probabilities."""
    order = np.empty((len(logits), k), dtype=np.int64)
    probabilities = np.empty((len(logits), k))
    for start in range(0, len(logits), ROWS):
        block = logits[start : start + ROWS].astype(np.float64)
        part, index = softmax(block), np.arange(len(block))
        left = np.maximum(block, np.finfo(np.float64).min)  # what is taken falls below classes at minus infinity
        for place in range(k):
            best = left.argmax(axis=1)
            order[start : start + ROWS, place], probabilities[start : start + ROWS, place] = best, part[index, best]
            left[index, best] = -np.inf
    return order, probabilities


def zero_shot(
    logits: Float[np.ndarray, "N C"],
    targets: Int[np.ndarray, " N"],
    *,
    subject: str,
    config: dict[str, Any],
    hashes: dict[str, str],
) -> Record:
    """The record of a classifier's `logits` on samples whose classes are `targets`.

    Intervals of accuracies are Wilson's at 95 %: samples count as independent.
    """
    count, classes = logits.shape
    found = metrics.ranks(logits, targets)
    measured = {f"top{k}": accuracy(found < k, chance=min(1.0, k / classes)) for k in TOP_K}
    predictions = logits.argmax(axis=1)
    measured["mean_per_class"] = Metric(
        value=metrics.mean_per_class_accuracy(predictions, targets), count=count, chance=1 / classes
    )
    confidences = softmax(logits).max(axis=1)
    error = metrics.expected_calibration_error(confidences, predictions == targets)
    measured["ece"] = Metric(value=error, count=count, direction="lower")
    return Record(
        protocol="zero-shot",
        subject=subject,
        metrics=measured,
        config={**config, "calibration_bins": metrics.CALIBRATION_BINS},
        hashes=hashes,
        counts={"samples": count, "classes": classes},
    )


def difference(ours: np.ndarray, theirs: np.ndarray, *, seed: int) -> Metric:
    """Mean of `ours` minus mean of `theirs` on the same samples (N,), with a paired bootstrap interval; chance is 0."""
    values = ours.astype(np.float64) - theirs.astype(np.float64)
    return Metric(
        value=float(values.mean()), count=len(values), chance=0.0, interval=metrics.bootstrap_interval(values, seed=seed)
    )
