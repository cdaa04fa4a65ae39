"""Known architectures by name, read from `presets.toml`."""

from __future__ import annotations

import functools
import tomllib
from pathlib import Path
from typing import Any

from ostension.config import from_tree
from ostension.errors import unknown_name
from ostension.model.config import ModelConfig

FILE = Path(__file__).with_name("presets.toml")


def preset(name: str) -> ModelConfig:
    """The configuration called `name`.

    Raises:
        ConfigError: for an unknown name, with the nearest three.
    """
    tables = _tables()
    if name not in tables:
        raise unknown_name("model", name, tables)
    table = dict(tables[name])
    table["name"] = name
    # What follows from the towers is not repeated in the file.
    table["preprocess"] = {"image_size": table["vision"]["image_size"], **table.get("preprocess", {})}
    table["text"] = {"kind": "transformer", **table["text"]}
    tokenizer: dict[str, Any] = {"kind": "clip", **table.get("tokenizer", {})}
    if "context_length" in table["text"]:
        tokenizer["context_length"] = table["text"]["context_length"]
    table["tokenizer"] = tokenizer
    if "init_logit_bias" in table:
        table.setdefault("logit_scale_cap", None)  # the sigmoid loss has no cap, and TOML has no null
    return from_tree(ModelConfig, table, FILE.name)


def preset_names() -> list[str]:
    """The names of the known architectures, in the order of the file."""
    return list(_tables())


@functools.cache
def _tables() -> dict[str, dict[str, Any]]:
    return tomllib.loads(FILE.read_text(encoding="utf-8"))
