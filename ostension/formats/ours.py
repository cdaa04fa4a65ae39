"""Our own layout: a folder with `model.safetensors`, `config.json`, `tokenizer.json`, `provenance.json`, `manifest.json`.

config.json is the tree of `ModelConfig`, so nothing is inferred and nothing asked. The manifest holds the size and the
SHA-256 of every other file: a flipped byte in a safetensors file loads without complaint otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ostension.config import from_tree
from ostension.errors import CheckpointError, ConfigError
from ostension.formats.table import Entry, same, scalar
from ostension.model.config import ModelConfig, ResNetConfig, TextConfig, VitConfig
from ostension.text.config import SentencePieceConfig, TokenizerConfig

NAME = "ostension"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
PROVENANCE = "provenance.json"


def entry(name: str) -> Entry:
    """Our parameter `name`: itself."""
    return scalar(name, name) if name in ("logit_scale", "logit_bias") else same(name, name)


def is_config(tree: Any) -> bool:
    """Whether a config.json is ours and not Hugging Face's."""
    return isinstance(tree, Mapping) and "model_type" not in tree and {"vision", "text", "embed_dim"} <= set(tree)


def only_ours(config: ModelConfig) -> tuple[str, str] | None:
    """The first part of a model that no other layout can say, and its kind: a tower or tokenizer that is not CLIP's."""
    known = (VitConfig, ResNetConfig, TextConfig, TokenizerConfig, SentencePieceConfig)
    parts = {"vision": config.vision, "text": config.text, "tokenizer": config.tokenizer}
    return next(((name, part.kind) for name, part in parts.items() if not isinstance(part, known)), None)


def read_config(tree: Any, path: Path) -> ModelConfig:
    """The configuration in config.json.

    Raises:
        CheckpointError: for an unknown or missing setting, or a value that it refuses.
    """
    if isinstance(tree.get("text"), Mapping):
        # Folders of version 0.1 know one kind of text tower and do not say it.
        tree = {**tree, "text": {"kind": "transformer", **tree["text"]}}
    try:
        return from_tree(ModelConfig, tree, path)
    except ConfigError as error:
        raise CheckpointError(error.what, source=path, expected=error.expected, fix=error.fix) from None
