"""Pairs of images and texts: sources, order, loading, the embedded set, task records."""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "Pair": "pairs",
    "PairSource": "pairs",
    "open_pairs": "open",
    "check_disjoint": "leaks",
    "Sampler": "sampler",
    "load_emoji": "embedded",
    "read_task": "task",
    "open_task": "task_data",
    "read_suite": "suite",
}

__all__ = [*_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'ostension.data' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ostension.data.{_EXPORTS[name]}"), name)
