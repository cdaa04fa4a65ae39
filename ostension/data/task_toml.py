"""A task record as TOML, in the order in which the shipped ones are written."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from ostension.config import to_tree
from ostension.data.task import Task

LINE = 120
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_LAST = ("classes", "texts", "superclass_map")  # long tables stand at the end


def to_toml(task: Task) -> str:
    """The record's text; reading it again gives an equal task. Settings at their defaults are left out."""
    tree = _changed(task)
    tree.pop("name", None)
    lines = [f"{name} = {_value(value)}" for name, value in tree.items() if not _is_table(value)]
    tables = {name: value for name, value in tree.items() if _is_table(value)}
    for name in sorted(tables, key=lambda name: name in _LAST):
        value = tables[name]
        if isinstance(value, list):
            for item in value:
                lines += ["", f"[[{name}]]", *_pairs(item)]
        elif value and all(isinstance(item, Mapping) for item in value.values()):
            for key, item in value.items():
                lines += ["", f"[{name}.{_key(key)}]", *_pairs(item)]
        else:
            lines += ["", f"[{name}]", *_pairs(_single(value) if name in _LAST[:2] else value)]
    return "\n".join(lines) + "\n"


def _changed(config: Any) -> dict[str, Any]:
    """The settings that are not at their defaults, as plain values."""
    tree = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        if value != default:
            tree[field.name] = _plain(value)
    return tree


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return _changed(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return to_tree(value)


def _single(table: Mapping[str, Any]) -> dict[str, Any]:
    """A list of one name as the name."""
    return {key: value[0] if len(value) == 1 else value for key, value in table.items()}


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and bool(value) and isinstance(value[0], Mapping))


def _pairs(table: Mapping[str, Any]) -> list[str]:
    return [f"{_key(key)} = {_value(value)}" for key, value in table.items()]


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _text(key)


def _text(text: str) -> str:
    """A basic string: JSON's escapes are TOML's, except that TOML wants DEL escaped too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(_pairs(value)) + " }"
    one = "[" + ", ".join(map(_value, value)) + "]"
    return one if len(one) <= LINE else "[\n" + "".join(f"    {_value(item)},\n" for item in value) + "]"
