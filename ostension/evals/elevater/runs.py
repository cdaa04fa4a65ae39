"""One model on one task under one setting of ELEVATER: zero-shot, and probes by shots and seed.

Only the first name of a class is used, as in the toolkit. The rows that a head stands on are not unit rows: the toolkit
gives batch norm what the tower gives. They are made from the rows before the projection, which stores keep; where only unit
rows are known, `rows = "unit"` says so in the record.

Letters: M test images, C classes, D width.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np

from ostension.config import require, to_tree
from ostension.evals.elevater.heads import HeadConfig, projection_of, start_of
from ostension.evals.elevater.knowledge import KnowledgeConfig, knowledge_classifier, read_items
from ostension.evals.elevater.parameters import Parameters
from ostension.evals.elevater.probing import FULL, ProbeConfig, Probed, Sets, probe
from ostension.evals.inputs import Inputs, class_logits
from ostension.evals.zero_shot import words
from ostension.files import sha256_json
from ostension.shapes import Float
from ostension.store import Features


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What does not differ between shots and seeds.

    Attributes:
        head: how the head starts and what it is.
        probe: how it is tuned and trained.
        knowledge: what is appended to the prompts.
        rows: "raw" for what the tower gives, "unit" for unit rows.
    """

    head: HeadConfig = dataclasses.field(default_factory=HeadConfig)
    probe: ProbeConfig = dataclasses.field(default_factory=ProbeConfig)
    knowledge: KnowledgeConfig = dataclasses.field(default_factory=KnowledgeConfig)
    rows: Literal["raw", "unit"] = "raw"

    def __post_init__(self):
        fits = self.rows == "raw" or self.head.init != "merged"
        require(fits, "rows", self.rows, "'raw' for a merged head, which stands before the projection")


class Run:
    """A model on a task.

    Attributes:
        classifier: (C, E) unit rows of the class texts.
        hashes: of the texts and the knowledge.
    """

    def __init__(self, inputs: Inputs, settings: Settings):
        self.inputs, self.settings, self.task = inputs, settings, inputs.task
        asked = words(self.task, first_name=True)
        self.hashes = {"names": sha256_json(to_tree(asked.names)), "templates": sha256_json(list(asked.templates))}
        if settings.knowledge.wanted:
            items = read_items(settings.knowledge, self.task.name, inputs.names())
            self.hashes["knowledge"] = sha256_json(to_tree(dict(items)))
            self.classifier = knowledge_classifier(inputs, items)
        else:
            alone = dict(asked.names) == dict(inputs.names())
            self.classifier = inputs.classifier() if alone else inputs.classifier(asked.names)
        self._sets: Sets | None = None

    @property
    def test(self) -> Features:
        """The unit rows of the test images."""
        return self.inputs.features("test")

    def zero_shot(self) -> Float[np.ndarray, "M C"]:
        """Logits without training."""
        return class_logits(self.test.unit(), self.classifier, self.inputs.scale)

    def probed(self, shots: int, seed: int) -> Probed:
        """A probe; its logits are of the test images in their order."""
        if self._sets is None:
            self._sets = Sets(task=self.task, train=self._stood_on("train"), test=self._stood_on("test"))
        width = self._sets.train.rows.shape[1]
        start = start_of(self.settings.head, width, self.classifier, self.inputs, seed=seed)
        return probe(self._sets, self.settings.head, start, self.settings.probe, shots=shots, seed=seed)

    def parameters(self, *, zero_shot: bool) -> Parameters | None:
        """Numbers of parameters; None where the model's are not known."""
        model = self.inputs.parameters()
        if not model:
            return None
        if zero_shot:
            return Parameters.of_zero_shot(model)
        dropped = projection_of(self.inputs)[0].size if self.settings.head.init == "merged" else 0
        return Parameters.of_head(model, self.settings.head, len(self.classifier), self.width, dropped=dropped)

    @property
    def width(self) -> int:
        """Of the rows that the head stands on."""
        joint = self.classifier.shape[1]
        return projection_of(self.inputs)[0].shape[0] if self.settings.head.init == "merged" else joint

    @property
    def trainable(self) -> int:
        """Parameters that a probe trains."""
        model = {"visual": 0, "backbone": 0}
        return Parameters.of_head(model, self.settings.head, len(self.classifier), self.width).trainable

    def _stood_on(self, split: str) -> Features:
        if self.settings.rows == "unit":
            return self.inputs.features(split)
        matrix, offset = projection_of(self.inputs)
        before = self.inputs.features(split, "pre")
        if self.settings.head.init == "merged":
            return before
        return dataclasses.replace(before, rows=(before.array() @ matrix + offset).astype(np.float32))


def trials_tree(probed: Probed) -> list[list[Any]]:
    """The trials as [rate, decay, score or null, what went wrong]."""
    if probed.search is None:
        return []
    return [[one.trial.learning_rate, one.trial.weight_decay, one.score, one.error] for one in probed.search.tried]


def shots_name(shots: int) -> str:
    """What a setting is called among metrics: "zero_shot", "5_shot", "full"."""
    return {0: "zero_shot", FULL: "full"}.get(shots, f"{shots}_shot")
