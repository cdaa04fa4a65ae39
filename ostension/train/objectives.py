"""What a run can minimise, by the `kind` of its settings; the modules are imported when they are asked for."""

from __future__ import annotations

import importlib

from ostension.errors import unknown_name
from ostension.train.objective import ObjectiveConfig

KINDS = {
    "contrastive": ("ostension.train.objective", "ContrastiveConfig"),
    "captioning": ("ostension.train.captioning", "CaptioningConfig"),
    "distillation": ("ostension.train.distillation", "DistillationConfig"),
    "language-model": ("ostension.train.prediction", "NextTokenConfig"),
    "bag-prediction": ("ostension.train.prediction", "BagPredictionConfig"),
    "nlip": ("ostension.train.nlip", "NlipConfig"),
    "labels": ("ostension.train.labels", "LabelsConfig"),
}


def objective_config(kind: str, source: object = None) -> type[ObjectiveConfig]:
    """The dataclass of settings for `kind`.

    Raises:
        ConfigError: for another kind, with the nearest ones.
    """
    if kind not in KINDS:
        raise unknown_name("objective.kind", kind, KINDS, source=source)
    module, name = KINDS[kind]
    return getattr(importlib.import_module(module), name)
