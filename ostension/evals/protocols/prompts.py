"""Prompts: what templates and ensembles gain over bare class names, and with `search` a set chosen on validation samples.

Three ways of asking, as in the paper's Figure 4: "bare", the class name alone; "single", one template ("a photo of a {}." where
the task has it, else its first); "ensemble", all of the task's templates. Gains are differences of the task's own score, as
shares: "gain" of the ensemble over bare names, "engineering" of the single template, "ensembling" of the rest, each with a
paired interval.

With `search` the templates of `candidates` are chosen one by one on the split "val", or on "train" where there is none, never
on the samples that are measured: "search" is the chosen set's score on those, "search_gain" what it gains over the ensemble.

Details: "cost" {way: prompts}, "templates" {way: [...]}; with search "search" {"path": [[template, validation score], ...],
"singles": {template: validation score}, "ensemble": validation score of all candidates, "fitted_on", "tried", "openai":
[[template, validation score], ...] along the order that OpenAI published for ImageNet, where all of these are candidates}.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from ostension.config import require, to_tree
from ostension.data.task import Task
from ostension.errors import ConfigError
from ostension.evals.class_maps import pool
from ostension.evals.inputs import Inputs
from ostension.evals.prompt_search import forward_selection, judge_of, path_scores, template_rows
from ostension.evals.protocol import Outcome
from ostension.evals.records import Metric, Record
from ostension.evals.scores import gain, per_sample, score, score_name
from ostension.evals.zero_shot import OWN, Words, classify, labels_of, words
from ostension.runtime import numpy_generator
from ostension.store import Features
from ostension.text.prompts import templates as template_set

SPLITS = ("test",)  # and for the search one of val and train
PLAIN = "photo"
BARE = "bare"
PUBLISHED_ORDER = "openai_imagenet_best7"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Whether templates are searched for, and among which.

    Attributes:
        search: choose a set of templates on validation samples.
        candidates: "own" for the task's templates, or a set by name, as for zero-shot.
        max_templates: where the search ends at the latest; 0 for when the score does not rise.
        max_samples: validation samples that the search looks at, at most; drawn where there are more.
    """

    search: bool = False
    candidates: str = OWN
    max_templates: int = 0
    max_samples: int = 5_000

    def __post_init__(self):
        require(self.max_templates >= 0, "max_templates", self.max_templates, "0 or more")
        require(self.max_samples >= 1, "max_samples", self.max_samples, "1 or more")
        require(self.search or self.candidates == OWN, "candidates", self.candidates, "'own' without search")


def reason_not(task: Task) -> str | None:
    """Why it cannot be run on this task."""
    return "a retrieval task has no classes" if task.kind == "retrieval" else None


def run(inputs: Inputs, config: Config, *, seed: int) -> Outcome:
    """Scores of the three ways and their gains, and of the set that was found.

    Raises:
        ConfigError: for a search without validation or training samples.
        DataError: for samples without labels.
    """
    task, name = inputs.task, score_name(inputs.task)
    features, targets = inputs.features("test"), labels_of(inputs, "test")
    asked = three_ways(task)
    details: dict[str, Any] = {}
    if config.search:
        asked["search"], details["search"] = searched(inputs, config, seed)
    logits = {way: classify(inputs, "test", one) for way, one in asked.items()}
    pairs = {"gain": ("ensemble", "bare"), "engineering": ("single", "bare"), "ensembling": ("ensemble", "single")}
    if config.search:
        pairs["search_gain"] = ("search", "ensemble")
    measured: dict[str, Metric] = {
        what: gain(task, logits[ours], logits[theirs], targets, features.groups, seed=seed)
        for what, (ours, theirs) in pairs.items()
    }
    measured |= {way: score(task, one, targets, features.groups, seed=seed) for way, one in logits.items()}
    details["cost"] = {way: one.num_prompts for way, one in asked.items()}
    details["templates"] = {way: list(one.templates) for way, one in asked.items()}
    record = Record(
        protocol="prompts", subject=f"{inputs.model_name} on {task.title}: what prompts gain", metrics=measured,
        config={**to_tree(config), "scale": inputs.scale, "metric": name, "pooled_from": task.superclass_of},
        hashes=inputs.hashes(), counts={"samples": len(features), "classes": task.num_classes}, seeds=(seed,), task=task.name,
        model=inputs.model_name, split=inputs.name_of("test"), details=details,
    )  # fmt: skip
    samples = {"id": np.array(features.ids)}
    for way, one in logits.items():
        said = per_sample(task, one, targets, features.groups)
        samples |= {f"predicted_{way}": said["predicted"], f"correct_{way}": said["correct"]}
    return Outcome(record=record, samples=samples)


def three_ways(task: Task) -> dict[str, Words]:
    """Names and templates of the ways of asking."""
    own = words(task)
    (plain,) = template_set(PLAIN)
    single = plain if plain in own.templates else own.templates[0]
    return {"bare": words(task, BARE), "single": dataclasses.replace(own, templates=(single,), own=False), "ensemble": own}


def searched(inputs: Inputs, config: Config, seed: int) -> tuple[Words, Mapping[str, Any]]:
    """The set that was found, and how."""
    task = inputs.task
    fitted_on = next((name for name in ("val", "train") if inputs.has(name)), None)
    if fitted_on is None:
        raise ConfigError(f"{task.name or task.title}: neither val nor train is there", expected="samples to choose on")
    features: Features = inputs.features(fitted_on)
    labels_of(inputs, fitted_on)
    if len(features) > config.max_samples:
        chosen = numpy_generator(seed, "prompt-search").choice(len(features), size=config.max_samples, replace=False)
        features = features.take(np.sort(chosen))
    asked = words(task, config.candidates)
    rows = template_rows(inputs, asked.names, asked.templates)
    pooled = None if task.superclass_of is None else (lambda logits: pool(logits, task))
    assert features.targets is not None
    judge = judge_of(task, features.targets, features.groups, pooled)
    unit_rows = features.unit()
    found = forward_selection(rows, unit_rows, judge, scale=inputs.scale, max_templates=config.max_templates or None)
    path = [[asked.templates[number], value] for number, value in zip(found.chosen, found.scores, strict=True)]
    details: dict[str, Any] = {
        "path": path,
        "singles": dict(zip(asked.templates, found.singles.tolist(), strict=True)),
        "ensemble": path_scores(rows.mean(axis=0, keepdims=True), unit_rows, [0], judge, scale=inputs.scale)[0],
        "fitted_on": fitted_on, "samples": len(features), "tried": found.tried,
    }  # fmt: skip
    order = template_set(PUBLISHED_ORDER)
    if set(order) <= set(asked.templates):
        numbers = [asked.templates.index(template) for template in order]
        values = path_scores(rows, unit_rows, numbers, judge, scale=inputs.scale)
        details["openai"] = [[template, value] for template, value in zip(order, values, strict=True)]
    chosen_templates = tuple(asked.templates[number] for number in found.chosen)
    return dataclasses.replace(asked, templates=chosen_templates, own=False), details
