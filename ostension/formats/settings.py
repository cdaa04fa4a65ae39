"""Values out of other people's configuration files, each checked as it is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ostension.errors import CheckpointError


def integer(settings: Mapping[str, Any], name: str, path: Path, *, at_least: int = 1) -> int:
    """A count; a square given by its two sides counts as one side.

    Raises:
        CheckpointError: for anything else.
    """
    value = square(settings.get(name))
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise CheckpointError(f"{name} is {value!r}", source=path, expected=f"a whole number, {at_least} or more")
    return value


def number(settings: Mapping[str, Any], name: str, path: Path) -> float:
    """A finite number.

    Raises:
        CheckpointError: for anything else.
    """
    return _finite(settings.get(name), name, path)


def triple(settings: Mapping[str, Any], name: str, path: Path) -> tuple[float, float, float]:
    """Three finite numbers, one a colour.

    Raises:
        CheckpointError: for anything else.
    """
    value = settings.get(name)
    if not isinstance(value, list) or len(value) != 3:
        raise CheckpointError(f"{name} is {value!r}", source=path, expected="three numbers")
    red, green, blue = (_finite(item, name, path) for item in value)
    return red, green, blue


def table(settings: Any, name: str, path: Path, *, optional: bool = False) -> Mapping[str, Any]:
    """A table of settings; with `optional` an empty one where there is none.

    Raises:
        CheckpointError: for anything else.
    """
    value = settings.get(name) if isinstance(settings, Mapping) else None
    if value is None and optional:
        return {}
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{name} is {value!r}", source=path, expected="a table of settings")
    return value


def one_of(settings: Mapping[str, Any], name: str, known: Mapping[Any, str], path: Path) -> str:
    """What a value stands for in the table `known`.

    Raises:
        CheckpointError: for a value that it does not have.
    """
    value = settings.get(name)
    if isinstance(value, (str, int)) and value in known:
        return known[value]
    listed = ", ".join(f"{key!r} ({meaning})" if isinstance(key, int) else repr(key) for key, meaning in known.items())
    raise CheckpointError(f"{name} is {value!r}", source=path, expected=f"one of {listed}")


def square(value: Any) -> Any:
    """One side, where a size is given as a square's two sides; any other value as it is."""
    return value[0] if isinstance(value, list) and len(value) == 2 and value[0] == value[1] else value


def _finite(value: Any, name: str, path: Path) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise CheckpointError(f"{name} is {value!r}", source=path, expected="a finite number")
    return float(value)
