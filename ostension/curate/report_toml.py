"""A work folder's stages as the TOML file that `ostension curate run` takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ostension.curate.report_data import Report


def chain_toml(found: Report) -> str:
    """The source, and every stage with its settings; those that are None are left out, as they have no other value."""
    head = {"source": list(found.source), "part_size": found.facts["part_size"]}
    layout = {name: value for name, value in found.facts["layout"].items() if value}
    lines = [f"{name} = {_value(value)}" for name, value in {**head, **({"layout": layout} if layout else {})}.items()]
    for stage in found.stages[1:]:
        lines += ["", "[[stages]]", f"name = {_value(stage.name)}"]
        lines += [f"{_key(name)} = {_value(value)}" for name, value in stage.settings.items() if value is not None]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_key(name)} = {_value(one)}" for name, one in value.items() if one is not None)
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(one) for one in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else json.dumps(name, ensure_ascii=False)
