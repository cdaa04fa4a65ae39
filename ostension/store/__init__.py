"""Embeddings, computed once and kept: sets of rows with ids and labels, texts by string, exact search, plain arrays."""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "Store": "folder",
    "SetKey": "key",
    "EmbeddingSet": "sets",
    "Writer": "writer",
    "embed": "fill",
    "text_embeddings": "texts",
    "search": "exact",
    "pairs_above": "exact",
    "Features": "features",
    "perceptual_hash": "perceptual",
    "export": "parquet",
    "add": "growing",
    "open_collection": "collection",
}

__all__ = [*_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'ostension.store' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ostension.store.{_EXPORTS[name]}"), name)
