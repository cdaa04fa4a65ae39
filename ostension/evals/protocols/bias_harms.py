"""Bias: which groups are called something harmful, by category, and what one more class (`child`) changes.

Details: {"texts": [...], "categories": [category of each text], "by": {split: {category: rates}}, "p_corrected": {split:
{category: p}}, "added": {"texts": [...], "share": ..., "by": {split: [change, ...]}}, "published": [{..., "measured"}]}, where
rates and changes are the trees of `evals.bias.groups` and `evals.bias.harms`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ostension.config import require, to_tree
from ostension.data.task import Task
from ostension.errors import ConfigError
from ostension.evals.bias.groups import CONFIDENCE, group_columns, known_groups, rate
from ostension.evals.bias.harms import ANY_HARM, NEUTRAL, Change, added_class, category_names, category_of, fallen, harm_rates
from ostension.evals.bias.label_sets import LabelSet, Published, read_label_set
from ostension.evals.inputs import Inputs
from ostension.evals.protocol import Outcome
from ostension.evals.records import Metric, Record
from ostension.evals.statistics import holm
from ostension.files import sha256_json

SPLITS = ("test",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What may be said of the samples, and how they are split.

    Attributes:
        label_set: a shipped label set's name, or a TOML file.
        neutral: whether the texts that are no harm are the label set's, or the task's own classes.
        by: "race", "race+gender", "race=White"; every field of the task if empty.
        confidence: of the intervals.
    """

    label_set: str = "fairface_harms"
    neutral: str = "label-set"
    by: tuple[str, ...] = ()
    confidence: float = CONFIDENCE

    def __post_init__(self):
        require(self.neutral in ("label-set", "task"), "neutral", self.neutral, "'label-set' or 'task'")
        require(0 < self.confidence < 1, "confidence", self.confidence, "above 0, below 1")


def reason_not(task: Task) -> str | None:
    """Why the probe cannot be run on this task."""
    return None if task.groups else "the task has no groups to compare"


def run(inputs: Inputs, config: Config, *, seed: int) -> Outcome:
    """The share of each group that falls into each harm category, on the split `test`.

    Raises:
        ConfigError: for a label set without harm categories, or a field that is not there.
    """
    labels = read_label_set(config.label_set)
    if not labels.categories:
        raise ConfigError(f"the label set {config.label_set!r} has no harm categories", expected="a table [categories]")
    features = inputs.features("test")
    columns = group_columns(known_groups(inputs.task, features), config.by)
    rows, neutral = text_rows(inputs, labels, own_classes=config.neutral == "task")
    logits = inputs.scale * (features.unit() @ rows.T)
    categories = category_of({name: len(texts) for name, texts in labels.categories.items()}, len(neutral))
    names = category_names(categories)
    category = fallen(logits, categories)
    texts = (*neutral, *(text for several in labels.categories.values() for text in several))
    said = np.array(texts, dtype=object)[logits.argmax(axis=1)].astype(str)
    rates = {
        split: harm_rates(category, names, groups, confidence=config.confidence, seed=seed) for split, groups in columns.items()
    }
    corrected = iter(holm([found.test.p for by in rates.values() for found in by.values()]))
    details: dict[str, Any] = {
        "texts": list(texts),
        "categories": list(categories),
        "by": {split: {name: found.tree() for name, found in by.items()} for split, by in rates.items()},
        "p_corrected": {split: {name: next(corrected) for name in by} for split, by in rates.items()},
    }
    count = len(features)
    happened = {name: category != NEUTRAL if name == ANY_HARM else category == name for name in names}
    shares = {name: rate("all", int(hits.sum()), count, config.confidence) for name, hits in happened.items()}
    metrics = {
        name: Metric(value=found.share, count=count, direction="lower", interval=found.interval)
        for name, found in shares.items()
    }
    for split, by in rates.items():
        for name, found in by.items():
            metrics[f"{name}_gap_{split}"] = Metric(value=found.gap, count=count, direction="lower")
    changes: dict[str, list[Change]] = {}
    if labels.added:
        more = inputs.scale * (features.unit() @ prompt_rows(inputs, labels.added, labels.templates).T)
        for split, groups in columns.items():
            changes[split], chosen = added_class(logits, more, categories, groups)
        details["added"] = {
            "texts": list(labels.added), "share": float((chosen >= 0).mean()),
            "by": {split: [change.tree() for change in several] for split, several in changes.items()},
        }  # fmt: skip
    if inputs.task.name.startswith("fairface"):  # whose numbers they are; of other pictures they would say nothing
        details["published"] = [beside(published, shares, rates, changes) for published in labels.published]
    hashes = {**inputs.hashes(), "label_set": sha256_json(to_tree(labels))}
    record = Record(
        protocol="bias-harms", subject=f"{inputs.model_name} on {inputs.task.title}: {labels.title}", metrics=metrics,
        config={**to_tree(config), "label_set_version": labels.version}, hashes=hashes,
        counts={"samples": count, "texts": len(texts), "splits": len(columns)}, seeds=(seed,), task=inputs.task.name,
        model=inputs.model_name, split=inputs.name_of("test"), details=details,
    )  # fmt: skip
    return Outcome(record=record, samples={"id": np.array(features.ids), "text": said, "category": category, **columns})


def text_rows(inputs: Inputs, labels: LabelSet, *, own_classes: bool = False) -> tuple[np.ndarray, tuple[str, ...]]:
    """The rows of all texts, neutral ones first, and the neutral texts: the label set's, or the task's classes."""
    harms = tuple(text for several in labels.categories.values() for text in several)
    if not own_classes:
        return prompt_rows(inputs, labels.texts, labels.templates), labels.neutral
    rows = inputs.classifier()
    if harms:
        rows = np.concatenate([rows, prompt_rows(inputs, harms, labels.templates)])
    return rows, tuple(inputs.names())


def prompt_rows(inputs: Inputs, texts: tuple[str, ...], templates: tuple[str, ...]) -> np.ndarray:
    """(T, E) unit rows of texts in templates."""
    return inputs.classifier({text: (text,) for text in texts}, templates)


def beside(published: Published, shares: dict, rates: dict, changes: dict[str, list[Change]]) -> dict[str, Any]:
    """A published share as JSON, with the one measured here (None where this run has no such group)."""
    name, measured = published.category, None
    if published.added:
        mine = {(change.category, change.group): change for change in changes.get(published.by, [])}
        change = mine.get((name, published.group))
        measured = None if change is None else change.after / change.count
    elif published.by:
        found = rates.get(published.by, {}).get(name)
        measured = next((one.share for one in found.rates if one.group == published.group), None) if found else None
    elif name in shares:
        measured = shares[name].share
    return {**to_tree(published), "measured": measured}
