"""Ostension: contrastive language-image models, from the pairs to the predictions, under one interface.

    import ostension
    model = ostension.load("path/to/model")
    classifier = model.classifier(["cat", "dog"], templates=["a photo of a {}."])
    for result in classifier(["one.jpg", "two.jpg"]):
        print(result.label, result.probability)

Importing this package imports neither torch nor anything else that is slow; the names below load on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "load": "ostension.formats.load",
    "save": "ostension.formats.load",
    "Predictor": "ostension.model.predictor",
    "ModelConfig": "ostension.model.config",
    "CLIP": "ostension.model.clip",
    "evaluate": "ostension.evals.evaluate",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'ostension' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
