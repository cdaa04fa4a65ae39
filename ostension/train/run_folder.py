"""What a run is, on paper: the tree of settings that decides its result, written before step 0 and held to on resume."""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ostension import runtime
from ostension.config import changed_keys
from ostension.errors import ConfigError, DataError, unknown_name
from ostension.files import sha256_json, write_json

CONFIG_NAME, FACTS_NAME = "config.json", "run.json"


def check_unchanged(
    before: Mapping[str, Any], now: Mapping[str, Any], allowed: Sequence[str], source: object
) -> dict[str, tuple[Any, Any]]:
    """The settings that differ between two trees and were allowed to, with their old and new values.

    Args:
        allowed: dotted keys, or the beginnings of some (`train.optim` allows all below it).

    Raises:
        ConfigError: naming each setting that differs and was not allowed to, or an allowed key that exists in neither tree.
    """
    known = {*dotted_keys(before), *dotted_keys(now)}
    for key in allowed:
        if key not in known:
            raise unknown_name("setting", key, known, source="--allow-change")
    changes = changed_keys(before, now)
    refused = {key: change for key, change in changes.items() if not any(_covers(name, key) for name in allowed)}
    if refused:
        listed = ", ".join(f"{key} was {old!r} and is {new!r}" for key, (old, new) in refused.items())
        flags = " ".join(f"--allow-change {key}" for key in refused)
        what = f"the run was made with other settings: {listed}"
        raise ConfigError(what, source=source, fix=f"restore them, or resume with {flags}")
    return changes


def write_run(folder: Path, tree: Mapping[str, Any], changes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Write `config.json` (the tree) and `run.json` (its hash, versions, git state, machine, allowed changes); the latter.

    Raises:
        DataError: if the folder cannot be written.
    """
    facts = {
        "config_hash": sha256_json(tree),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "versions": runtime.versions(),
        "git": runtime.git_state(),
        "processor": runtime.cpu_name(),
        "threads": _threads(),
        "process": os.getpid(),
        "changes": list(changes),
    }
    try:
        write_json(folder / CONFIG_NAME, tree)
        write_json(folder / FACTS_NAME, facts)
    except OSError as problem:
        raise DataError(f"cannot be written: {problem.strerror}", source=folder, expected="a folder for the run") from None
    return facts


def dotted_keys(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Every key of a tree, inner ones too, e.g. `train`, `train.optim`, `train.optim.lr`."""
    found = []
    for name, value in tree.items():
        found.append(prefix + name)
        if isinstance(value, Mapping):
            found += dotted_keys(value, f"{prefix}{name}.")
    return found


def _covers(allowed: str, key: str) -> bool:
    return key == allowed or key.startswith(allowed + ".")


def _threads() -> int:
    import torch

    return torch.get_num_threads()
