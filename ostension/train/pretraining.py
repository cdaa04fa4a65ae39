"""A whole pre-training run as one value: model, batches, objective, settings.

Recipes return it; the command builds it from flags.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ostension.config import changed_keys, from_tree, require, to_tree
from ostension.errors import ConfigError, unknown_name
from ostension.formats.duplicate_detector import load_detector
from ostension.formats.load import load
from ostension.model.clip import CLIP
from ostension.model.config import ModelConfig
from ostension.model.duplicate_detector import DetectorConfig, DuplicateDetector
from ostension.model.fingerprint import NOT_BEHAVIOUR, fingerprint
from ostension.runlog import Tracker
from ostension.train.batches import BatchSource
from ostension.train.freeze import FreezeConfig
from ostension.train.loop import Evaluate, TrainResult, train
from ostension.train.objective import ContrastiveConfig, ObjectiveConfig
from ostension.train.objectives import objective_config
from ostension.train.towers import TowersConfig
from ostension.train.train_config import TrainConfig
from ostension.train.two_views import TwoViewsConfig

if TYPE_CHECKING:
    AnyModelConfig = Any  # who reads a setting of one kind knows which of the two it is
else:
    AnyModelConfig = ModelConfig | DetectorConfig


class BatchesConfig(Protocol):
    """A frozen dataclass that says how batches are made, and makes them."""

    def build(self, model: CLIP) -> BatchSource:
        """The batches for a model: its transform, its tokenizer."""
        ...


class EvaluationConfig(Protocol):
    """A frozen dataclass that says what is measured on the way, such as `evals.during_training.EvaluationConfig`."""

    def build(self, model: CLIP) -> Evaluate:
        """The evaluation, for a model's transform and tokenizer."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretraining:
    """What a recipe returns.

    Attributes:
        model: of random weights, drawn from `train.seed`, unless there is a `start`. A `DetectorConfig` trains a detector of
            near-duplicates, which goes with an objective and batches of pictures alone (`train.two_views`).
        batches: a frozen dataclass with `build(model)`, such as `PairBatchesConfig`.
        train: everything else.
        objective: what is minimised, a frozen dataclass with `build(model)`.
        start: a model's folder or file (any layout that `formats.load` reads) whose weights the run begins with. It may be
            for another image size or context length than `model`: its positions are interpolated. Otherwise it must be
            what `model` says.
        towers: where one or both towers' first weights come from.
        freeze: what is not trained.
        evaluation: what is measured every `train.evaluate_every` steps; it decides nothing about the result.
    """

    model: AnyModelConfig
    batches: BatchesConfig
    train: TrainConfig
    objective: ObjectiveConfig = dataclasses.field(default_factory=ContrastiveConfig)
    start: Path | None = None
    towers: TowersConfig = dataclasses.field(default_factory=TowersConfig)
    freeze: FreezeConfig = dataclasses.field(default_factory=FreezeConfig)
    evaluation: EvaluationConfig | None = None

    def __post_init__(self):
        if isinstance(self.model, DetectorConfig) != isinstance(self.objective, TwoViewsConfig):
            what = f"objective.kind is {getattr(self.objective, 'kind', None)!r} and the model is {self.model.name!r}"
            raise ConfigError(what, expected="'two-views' for a duplicate detector, and for no other model")
        if isinstance(self.model, DetectorConfig):
            still = self.towers == TowersConfig() and self.freeze == FreezeConfig()
            require(still, "towers and freeze", "set", "nothing for a duplicate detector, which has no towers")
            for name in ("stochastic_rounding", "checkpointing"):
                value = getattr(self.train, name)
                require(value in ("none", "image"), f"train.{name}", value, "'image' or 'none': there is no text tower")

    def tree(self) -> dict[str, Any]:
        """Its parts as JSON."""
        return {field.name: to_tree(getattr(self, field.name)) for field in dataclasses.fields(self)}

    def changed(self, settings: Mapping[str, Any], source: object = None) -> Pretraining:
        """With dotted settings replaced, e.g. {"train.optim.lr": 1e-3, "model.vision.width": 256}.

        Another `objective.kind` takes over the settings that both kinds have, such as `objective.loss`.

        Raises:
            ConfigError: for a setting that does not exist, or a value that it cannot have.
        """
        tree = self.tree()
        objective: type[ObjectiveConfig] = type(self.objective)
        if settings.get("objective.kind", tree["objective"]["kind"]) != tree["objective"]["kind"]:
            objective = objective_config(str(settings["objective.kind"]), source)
            fields = {field.name for field in dataclasses.fields(objective)}  # type: ignore[arg-type]
            tree["objective"] = {key: value for key, value in tree["objective"].items() if key in fields}
        for key, value in settings.items():
            *path, last = key.split(".")
            place: Any = tree
            for name in path:
                place = place.get(name) if isinstance(place, dict) else None
            if not isinstance(place, dict) or not (path or key == "start"):
                raise unknown_name("setting", key, _leaves(tree), source=source)
            place[last] = value
        return Pretraining(
            model=from_tree(type(self.model), tree["model"], source),
            batches=from_tree(type(self.batches), tree["batches"], source),
            train=from_tree(TrainConfig, tree["train"], source),
            objective=from_tree(objective, tree["objective"], source),
            start=None if tree["start"] is None else Path(tree["start"]),
            towers=from_tree(TowersConfig, tree["towers"], source),
            freeze=from_tree(FreezeConfig, tree["freeze"], source),
            evaluation=None if self.evaluation is None else from_tree(type(self.evaluation), tree["evaluation"], source),
        )

    def initial_model(self) -> Any:
        """The model before the first step, in float32: random weights, or those of `start` and of `towers`; and frozen.

        It is a `CLIP`, or a `DuplicateDetector` where the settings are a detector's.

        Raises:
            CheckpointError: for a start or a tower that cannot be loaded.
            ConfigError: for one that is another model, or if nothing would be trained.
        """
        if isinstance(self.model, DetectorConfig):
            return DuplicateDetector(self.model, seed=self.train.seed) if self.start is None else self._started_detector()
        model = CLIP(self.model, seed=self.train.seed) if self.start is None else self._started()
        self.towers.fill(model)
        self.freeze.apply(model)
        return model

    def _started(self) -> CLIP:
        """The model of `start`."""
        assert self.start is not None
        model = load(self.start, device="cpu", dtype="float32")
        sizes = {"image_size": self.model.vision.image_size, "context_length": self.model.text.context_length}
        if sizes != {"image_size": model.config.vision.image_size, "context_length": model.config.text.context_length}:
            model = model.resized(**sizes)
        self._check_start(model.config)
        model.provenance = {"start": {**model.provenance, "fingerprint": fingerprint(model)}}
        model.config = dataclasses.replace(self.model, layout=model.config.layout)
        return model

    def _started_detector(self) -> DuplicateDetector:
        """The detector of `start`."""
        assert self.start is not None
        detector = load_detector(self.start, device="cpu")
        self._check_start(detector.config)
        detector.provenance = {"start": {**detector.provenance, "fingerprint": fingerprint(detector)}}
        return detector

    def _check_start(self, config: ModelConfig | DetectorConfig) -> None:
        changes = changed_keys(_behaviour(config), _behaviour(self.model))
        if changes:
            listed = ", ".join(f"model.{key} is {old!r} in it and {new!r} here" for key, (old, new) in changes.items())
            raise ConfigError(
                f"is another model: {listed}", source=self.start, expected="the run's model, of whatever image size",
                fix="give the run the start's settings with --set, or leave --model out",
            )  # fmt: skip

    def run(
        self,
        folder: Path | str,
        *,
        resume: str | Path = "auto",
        allow_change: Sequence[str] = (),
        trackers: Sequence[Tracker] = (),
    ) -> TrainResult:
        """Train it (see `train.loop.train`)."""
        model = self.initial_model()
        batches = self.batches.build(model)
        objective = self.objective.build(model)
        evaluate = None if self.evaluation is None else self.evaluation.build(model)
        return train(
            objective, batches, self.train, folder, resume=resume, allow_change=allow_change, trackers=trackers,
            evaluate=evaluate,
        )  # fmt: skip


def _behaviour(config: ModelConfig | DetectorConfig) -> dict[str, Any]:
    """The settings of a model that its weights were made for; the cap of the logits may change from run to run."""
    return {key: value for key, value in to_tree(config).items() if key not in (*NOT_BEHAVIOUR, "logit_scale_cap")}


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
