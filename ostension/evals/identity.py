"""What a result depends on, so that it is computed again exactly when something of it has changed.

    protocol, code       its name, and a hash of what its module and the modules of `evals`, `adapt` and `train` that it uses
                         compute; of a method likewise
    config, seed, limit  its settings
    files                hashes of what its settings name (`FILES` of the protocol): files, or all files of a folder
    task, split          a hash of the record without what is only said of the data (titles, notes, published values)
    weights, preprocess, tokenizer
    data                 hashes of the splits that were looked at, by "task/split"; empty for one that was missing

Versions of torch and numpy, which can move last bits, stand in the result but not in its identity.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ostension.config import changed_keys, to_tree
from ostension.data.task import Task
from ostension.files import sha256_file, sha256_json

# Said of the data, and without effect on a number.
ABOUT = ("title", "licence", "citation", "notes", "oracles", "sources")
# Packages whose code makes numbers out of rows. What makes the rows is in their hashes.
FOLLOWED = ("ostension.evals.", "ostension.adapt.", "ostension.train.")
SAID = ("title", "paper", "trains", "departures")  # words of a method's `Spec`


def task_sha256(task: Task) -> str:
    """The hash of what a record decides."""
    tree = {name: value for name, value in to_tree(task).items() if name not in ABOUT}
    if task.written is None:  # younger than results that are kept, and without effect here
        del tree["written"]
    return sha256_json(tree)


def files_sha256(config: Any, fields: Sequence[str]) -> dict[str, str]:
    """The hashes of what settings name, by "SETTING" for a file, "SETTING/FILE" for all files of a folder, "SETTING/NAME" for
    the files of a list (whose other names are no files); empty for one that is missing.
    """
    found: dict[str, str] = {}
    for field in fields:
        value = getattr(config, field)
        if not isinstance(value, str):
            found |= {f"{field}/{name}": sha256_file(name) for name in value if Path(name).is_file()}
        elif Path(value).is_dir() and value:
            inside = sorted(one for one in Path(value).rglob("*") if one.is_file())
            found |= {f"{field}/{one.relative_to(value)}": sha256_file(one) for one in inside}
        elif value:
            found[field] = sha256_file(value) if Path(value).is_file() else ""
    return found


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two identities, in words."""
    found = []
    for key, (before, after) in changed_keys(dict(old), dict(new)).items():
        found.append(f"{key} was {_short(before)}, is {_short(after)}")
    return found


def _short(value: Any) -> str:
    text = str(value)
    if value is None or text == "":
        return "nothing"
    return text[:12] if isinstance(value, str) and len(text) >= 64 else text if len(text) <= 60 else text[:57] + "..."


def code_sha256(module: str) -> str:
    """The hash of what a module computes with all that it imports of `FOLLOWED`; comments, docstrings and what a `Spec` says do
    not count."""
    seen: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen or (path := _path(name)) is None:
            continue
        seen[name], imported = _read(path, path.stat().st_mtime_ns)
        waiting += [other for other in imported if other.startswith(FOLLOWED)]
    return sha256_json(seen)


def method_sha256(method: str) -> str:
    """The same of a method that adapts, by its name; of zero-shot, which has no module, that of nothing."""
    return code_sha256(f"ostension.adapt.{method.replace('-', '_')}")


def _path(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # a name inside a module
        return None
    return Path(spec.origin) if spec is not None and spec.origin else None


@functools.lru_cache(maxsize=512)
def _read(path: Path, _changed: int) -> tuple[str, tuple[str, ...]]:
    """The hash of a module's code, and all names that it imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Spec":
            node.keywords = [keyword for keyword in node.keywords if keyword.arg not in SAID]
    return sha256_json(ast.dump(tree)), tuple(sorted(set(imported)))
