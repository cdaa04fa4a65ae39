"""Zero-shot with knowledge in the prompts beside zero-shot without it, on the same images.

What is appended is set by `folder`, `dictionaries` and `num_gpt3` (see `evals.elevater.knowledge`).
Both classifiers use the first name of each class and the task's own templates.

Details: "items" {label key: [texts]}, what was appended (null leaves the prompt as it is).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ostension.config import to_tree
from ostension.data.task import Task
from ostension.errors import ConfigError
from ostension.evals.elevater.knowledge import KnowledgeConfig, knowledge_classifier, read_items
from ostension.evals.elevater.probing import labels_of
from ostension.evals.elevater.runs import Run, Settings
from ostension.evals.inputs import Inputs, class_logits
from ostension.evals.protocol import Outcome
from ostension.evals.records import Record
from ostension.evals.scores import gain, per_sample, score_name, scores
from ostension.files import sha256_json

SPLITS = ("test",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(KnowledgeConfig):
    """What is appended to the prompts."""


def reason_not(task: Task) -> str | None:
    """Why it cannot be run on this task."""
    if task.kind == "retrieval":
        return "a retrieval task has no classes"
    return "its classes are pools of another task's" if task.superclass_of is not None else None


def run(inputs: Inputs, config: Config, *, seed: int) -> Outcome:
    """The score with knowledge, without, and what it gains.

    Raises:
        ConfigError: if no knowledge is asked for, or its folder is not there.
        DataError: for files of another form, or without some of the classes.
    """
    if not config.wanted:
        fix = "--set knowledge.folder=FOLDER --set knowledge.num_gpt3=5"
        raise ConfigError("no knowledge is asked for", source="knowledge", expected="a folder and what to take of it", fix=fix)
    task, test = inputs.task, inputs.features("test")
    targets, rows, name = labels_of(test), test.unit(), score_name(inputs.task)
    items = read_items(config, task.name, inputs.names())
    plain = Run(inputs, Settings())
    logits = [class_logits(rows, made, inputs.scale) for made in (knowledge_classifier(inputs, items), plain.classifier)]
    measured = scores(task, logits[0], targets, test.groups, seed=seed)
    measured["without"] = scores(task, logits[1], targets, test.groups, seed=seed)[name]
    measured["gain"] = gain(task, logits[0], logits[1], targets, test.groups, seed=seed)
    spoken = {key: list(texts) for key, texts in items.items()}
    record = Record(
        protocol="knowledge", subject=f"{inputs.model_name} with knowledge on {task.title}", metrics=measured,
        config={**to_tree(config), "scale": inputs.scale},
        hashes={**inputs.hashes(), **plain.hashes, "knowledge": sha256_json(spoken)},
        counts={"samples": len(test), "classes": task.num_classes, "items": sum(map(len, spoken.values()))},
        seeds=(seed,), task=task.name, model=inputs.model_name, split="test", details={"items": spoken},
    )  # fmt: skip
    return Outcome(record=record, samples={"id": np.array(test.ids), **per_sample(task, logits[0], targets, test.groups)})
