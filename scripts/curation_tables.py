"""Curation: the tables of its study (what each stage kept, what models learned from each variant), and the list of stages."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tuning_tables import spread

from ostension.config import to_tree
from ostension.curate.base import STAGES, load_stage

COLUMNS = {
    "local_tiny_imagenet": "Tiny ImageNet", "local_caltech101": "Caltech-101", "local_cifar10": "CIFAR-10",
    "pacs": "PACS photos", "text_to_image": "find the photo, R@5", "image_to_text": "find the caption, R@5",
}  # fmt: skip


def curation_tables(record: dict[str, Any]) -> str:
    """The chain, then the models."""
    found = list(record["records"].values())
    stages = [one for one in found if one["protocol"] == "curation-stage"]
    lines = ["| stage | given | kept | dropped |", "|---|---|---|---|"]
    for one in stages:
        kept = one["metrics"]["kept"]
        reasons = sorted(
            ((name, metric["value"]) for name, metric in one["metrics"].items() if name != "kept"), key=lambda pair: -pair[1]
        )
        dropped = ", ".join(f"{value:,.0f} {name}" for name, value in reasons)
        lines.append(f"| {one['subject']} | {kept['count']:,} | {kept['value']:,.0f} | {dropped} |")
    models = [one for one in found if one["protocol"] == "curation"]
    names = list(models[0]["details"]["values"])
    heads = [next((words for key, words in COLUMNS.items() if key in name), name) for name in names]
    table = ["| learned from | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    for one in models:
        cells = [spread(one["details"]["values"][name]) for name in names]
        table.append(f"| {one['subject']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\n" + "\n".join(table)


def stage_list(folder: Path) -> str:
    """What each stage of curation says of itself, with its settings."""
    parts = []
    for name in STAGES.names():
        kind = load_stage(name)
        said = inspect.getdoc(importlib.import_module(kind.__module__)) or ""
        lines = [f"## {name}", "", said, "", "| setting | default | what it is |", "|---|---|---|"]
        lines += [f"| `{key}` | {value} | {text} |" for key, value, text in _settings(kind.config_type)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _settings(config: type, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Each setting's key, default and line; those of a group after it."""
    said = dict(re.findall(r"^    (\w+): ((?:.|\n        )+)", inspect.cleandoc(config.__doc__ or ""), flags=re.MULTILINE))
    for field in dataclasses.fields(config):
        made = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        text = " ".join(said.get(field.name, "").split()).replace("|", "\\|")
        if dataclasses.is_dataclass(made):
            yield from _settings(type(made), f"{prefix}{field.name}.")
        else:
            default = "required" if made is dataclasses.MISSING else f"`{json.dumps(to_tree(made))}`"
            yield prefix + field.name, default, text
