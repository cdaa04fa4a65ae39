"""A whole pre-training run as one value: model, batches, objective, settings.

Recipes return it; the command builds it from flags.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ostension.config import from_tree, to_tree
from ostension.errors import ConfigError, unknown_name
from ostension.model.clip import CLIP
from ostension.model.config import ModelConfig
from ostension.runlog import Tracker
from ostension.train.batches import BatchSource
from ostension.train.loop import TrainConfig, TrainResult, train
from ostension.train.objective import ContrastiveConfig, ObjectiveConfig


class BatchesConfig(Protocol):
    """A frozen dataclass that says how batches are made, and makes them."""

    def build(self, model: CLIP) -> BatchSource:
        """The batches for a model: its transform, its tokenizer."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretraining:
    """What a recipe returns.

    Attributes:
        model: of random weights, drawn from `train.seed`.
        batches: a frozen dataclass with `build(model)`, such as `PairBatchesConfig`.
        train: everything else.
        objective: what is minimised, a frozen dataclass with `build(model)`.
    """

    model: ModelConfig
    batches: BatchesConfig
    train: TrainConfig
    objective: ObjectiveConfig = dataclasses.field(default_factory=ContrastiveConfig)

    def tree(self) -> dict[str, Any]:
        """Its parts as JSON."""
        return {field.name: to_tree(getattr(self, field.name)) for field in dataclasses.fields(self)}

    def changed(self, settings: Mapping[str, Any], source: object = None) -> Pretraining:
        """With dotted settings replaced, e.g. {"train.optim.lr": 1e-3, "model.vision.width": 256}.

        Raises:
            ConfigError: for a setting that does not exist, or a value that it cannot have.
        """
        tree = self.tree()
        for key, value in settings.items():
            *path, last = key.split(".")
            place: Any = tree
            for name in path:
                place = place.get(name) if isinstance(place, dict) else None
            if not isinstance(place, dict) or not path:
                raise unknown_name("setting", key, _leaves(tree), source=source)
            place[last] = value
        return Pretraining(
            model=from_tree(ModelConfig, tree["model"], source),
            batches=from_tree(type(self.batches), tree["batches"], source),
            train=from_tree(TrainConfig, tree["train"], source),
            objective=from_tree(type(self.objective), tree["objective"], source),
        )

    def run(
        self,
        folder: Path | str,
        *,
        resume: str | Path = "auto",
        allow_change: Sequence[str] = (),
        trackers: Sequence[Tracker] = (),
    ) -> TrainResult:
        """Train it (see `train.loop.train`)."""
        model = CLIP(self.model, seed=self.train.seed)
        batches = self.batches.build(model)
        objective = self.objective.build(model)
        return train(objective, batches, self.train, folder, resume=resume, allow_change=allow_change, trackers=trackers)


def parse_settings(texts: Sequence[str], source: object = "--set") -> dict[str, Any]:
    """`KEY=VALUE` texts as a mapping; values are JSON where they can be, else text.

    Raises:
        ConfigError: for a text without an equals sign.
    """
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"{text!r} is no setting", source=source, expected="KEY=VALUE, such as train.optim.beta2=0.999")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    return [
        leaf
        for name, value in tree.items()
        for leaf in (_leaves(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [prefix + name])
    ]
