"""Near misses: accuracy with almost-right captions beside the classes, and how many samples choose them.

Details: {"near": {class: [texts]}, "p", "by_class": {class: {"before", "after", "to_own"}}, "chosen": [[text, count], ...]}.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ostension.config import require, to_tree
from ostension.data.task import Task
from ostension.errors import ConfigError, unknown_name
from ostension.evals.bias.groups import CONFIDENCE, Rate
from ostension.evals.bias.near_miss import near_miss
from ostension.evals.inputs import Inputs
from ostension.evals.protocol import Outcome
from ostension.evals.records import Metric, Record
from ostension.text.prompts import as_templates, check_template, fill

SPLITS = ("test",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The near misses.

    Attributes:
        near: label key -> captions that almost describe that class.
        near_templates: templates that make a near miss of every class's name, such as "a toy {}".
        templates: what the captions are put into; by default the bare caption.
        confidence: of the intervals.
    """

    near: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    near_templates: tuple[str, ...] = ()
    templates: tuple[str, ...] = ("{}",)
    confidence: float = CONFIDENCE

    def __post_init__(self):
        as_templates(self.templates)
        for template in self.near_templates:
            check_template(template, "near_templates")
        require(all(self.near.values()), "near", self.near, "one caption or more for each class named")
        require(0 < self.confidence < 1, "confidence", self.confidence, "above 0, below 1")


def reason_not(task: Task) -> str | None:
    """Why the test cannot be run on this task."""
    if not task.num_classes:
        return "a retrieval task has no classes"
    return "samples have several labels" if task.takes_several else None


def run(inputs: Inputs, config: Config, *, seed: int) -> Outcome:
    """Accuracy before and after, on the split `test`.

    Raises:
        ConfigError: without near misses, or for a class that is not the task's.
    """
    keys = list(inputs.names())
    if not config.near and not config.near_templates:
        raise ConfigError("no near misses are given", expected="near = {class = [captions]}, or near_templates")
    for key in config.near:
        if key not in keys:
            raise unknown_name("class in near", key, keys)
    captions = [(caption, keys.index(key)) for key, several in config.near.items() for caption in several]
    for place, several in enumerate(inputs.names().values()):
        captions += [(fill(template, several[0]), place) for template in config.near_templates]
    if len({caption for caption, _ in captions}) < len(captions):
        raise ConfigError("a near miss is given twice", expected="each caption once")
    features = inputs.features("test")
    if features.targets is None:
        raise ConfigError("the samples have no labels", expected="labels, to tell a near miss from a hit")
    rows = features.unit()
    near_rows = inputs.classifier({caption: (caption,) for caption, _ in captions}, config.templates)
    owners = np.array([owner for _, owner in captions])
    found = near_miss(
        inputs.scale * (rows @ inputs.classifier().T), inputs.scale * (rows @ near_rows.T), features.targets, owners,
        confidence=config.confidence,
    )  # fmt: skip
    chosen = np.bincount(found.chosen[found.chosen >= 0], minlength=len(captions))
    chance = 1 / (len(keys) + len(captions))
    details = {
        "near": {key: [caption for caption, owner in captions if owner == place] for place, key in enumerate(keys)},
        "p": found.p,
        "by_class": {
            keys[place]: dict(zip(("before", "after", "to_own"), (one.tree() for one in several), strict=True))
            for place, several in found.by_class.items()
        },
        "chosen": [[captions[place][0], int(chosen[place])] for place in np.argsort(-chosen, kind="stable")],
    }
    metrics = {
        "accuracy_with_near_misses": _metric(found.after, chance=chance),
        "accuracy": _metric(found.before, chance=1 / len(keys)),
        "to_own_near_miss": _metric(found.to_own, lower=True),
        "to_any_near_miss": _metric(found.to_any, lower=True),
        "right_lost_to_near_miss": _metric(found.lost, lower=True),
    }
    record = Record(
        protocol="near-miss", subject=f"{inputs.model_name} on {inputs.task.title}: near misses", metrics=metrics,
        config=to_tree(config), hashes=inputs.hashes(),
        counts={"samples": len(features), "classes": len(keys), "near_misses": len(captions)}, seeds=(seed,),
        task=inputs.task.name, model=inputs.model_name, split=inputs.name_of("test"), details=details,
    )  # fmt: skip
    names = np.array([*(caption for caption, _ in captions), ""], dtype=object).astype(str)
    samples = {
        "id": np.array(features.ids), "target": features.targets, "correct": found.right_before,
        "correct_with_near_misses": found.right_after, "near_miss": names[found.chosen],
    }  # fmt: skip
    return Outcome(record=record, samples=samples)


def _metric(one: Rate, *, chance: float | None = None, lower: bool = False) -> Metric:
    return Metric(
        value=one.share, count=one.count, direction="lower" if lower else "higher", chance=chance, interval=one.interval
    )
