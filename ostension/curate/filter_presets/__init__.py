"""Named rules for the filter, one TOML file each: [captions] and [pictures], the source, and where we differ from it."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ostension.config import from_tree, to_tree
from ostension.registry import RecordRegistry

PRESETS = RecordRegistry(Path(__file__).parent, "preset")
T = TypeVar("T")


def read_preset(name: str) -> Mapping[str, Any]:
    """The record of a preset.

    Raises:
        ConfigError: for an unknown name, with the nearest three.
    """
    return tomllib.loads(PRESETS.path(name).read_text(encoding="utf-8"))


def over(preset: Mapping[str, Any], given: T, source: object) -> T:
    """The rules of a preset, with those that are given (not None) in their place."""
    mine = {name: value for name, value in to_tree(given).items() if value is not None}
    return from_tree(type(given), {**preset, **mine}, source=source)


def is_given(rules: Any) -> bool:
    """Whether any rule says something."""
    return any(getattr(rules, field.name) is not None for field in dataclasses.fields(rules))
