"""Class-design audit: class names that are ambiguous, close, sensitive to thresholds or to groups, before deployment.

Details: the tree of `evals.audit.run.Audit`: {"summary", "findings": [{"kind", "classes", "severity", "evidence", "value",
"interval", "count", "rule", "suggestion"}, ...], "skipped", "neighbours", "removals", "additions", "thresholds", "settings"}.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ostension.config import to_tree
from ostension.data.task import Task
from ostension.evals.audit.parts import SEVERITIES, Answers, Thresholds
from ostension.evals.audit.run import Audit, audit
from ostension.evals.audit.subject import subject_of
from ostension.evals.inputs import Inputs
from ostension.evals.protocol import Outcome
from ostension.evals.records import Metric, Record
from ostension.text.prompts import as_templates

SPLITS: tuple[str, ...] = ()  # names alone are audited too; pictures of the split `test` are used if they are there


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What the audit uses.

    Attributes:
        labels: whether labels are used; without them it is what one sees before anything is labelled.
        templates: a named set of templates to try names in, where the task has fewer than three of its own; none if empty.
        add: names of classes that might be added.
        thresholds: where findings begin.
    """

    labels: bool = True
    templates: str = "openai_imagenet_best7"
    add: tuple[str, ...] = ()
    thresholds: Thresholds = dataclasses.field(default_factory=Thresholds)

    def __post_init__(self):
        if self.templates:
            as_templates(self.templates)


def reason_not(task: Task) -> str | None:
    """Why the audit cannot be run on this task."""
    return None if task.num_classes else "a retrieval task has no classes"


def run(inputs: Inputs, config: Config, *, seed: int) -> Outcome:
    """The audit of the task's classes."""
    pictures = inputs.features("test") if inputs.has("test") else None
    subject = subject_of(
        inputs, pictures=pictures, labels=config.labels, added=config.add,
        templates=as_templates(config.templates) if config.templates else (),
    )  # fmt: skip
    found = audit(subject, config.thresholds)
    samples: dict[str, np.ndarray] = {}
    if subject.images is not None and subject.rows is not None:
        answers = Answers.of(subject.scale * (subject.images @ subject.rows.T))
        samples = {
            "id": np.array(subject.ids), "predicted": answers.best, "second": answers.order[:, 1],
            "probability": answers.probabilities.max(axis=1), "margin": answers.margins,
        }  # fmt: skip
    return Outcome(record=record_of(found, inputs, config, seed=seed), samples=samples)


def record_of(found: Audit, inputs: Inputs, config: Config, *, seed: int = 0) -> Record:
    """The audit as a record; its metrics are the shares of the classes that have a finding."""
    classes = found.summary["classes"]
    metrics = {
        name: Metric(value=len(found.concerned(severities)) / classes, count=classes, direction="lower")
        for name, severities in (("classes_to_change", SEVERITIES[:1]), ("classes_to_look_at", SEVERITIES[:2]))
    }
    counts = {"classes": classes, "templates": found.summary["templates"]}
    counts |= {f"findings_{severity}": found.count(severity) for severity in SEVERITIES}
    return Record(
        protocol="audit", subject=f"{inputs.model_name} on {inputs.task.title}: class-design audit", metrics=metrics,
        config=to_tree(config), hashes=inputs.hashes(), counts={**counts, "samples": found.summary.get("images", 0)},
        seeds=(seed,), task=inputs.task.name, model=inputs.model_name,
        split=inputs.name_of("test") if "images" in found.summary else "", details=found.tree(),
    )  # fmt: skip
