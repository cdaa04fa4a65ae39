"""What a model's files say, as a JSON tree: container, layout, architecture, what is known and what has to be asked."""

from __future__ import annotations

import collections
import math
import os
from typing import Any

import torch

from ostension.config import to_tree
from ostension.errors import CheckpointError
from ostension.formats.convert import encode, probes
from ostension.formats.facts import Asked, Fact, facts_tree
from ostension.formats.load import build_model
from ostension.formats.reader import Examined, examine, open_weights
from ostension.formats.table import ignored


def describe(name: str | os.PathLike, *, layout: str | None = None, ema: bool = False, hashes: bool = True) -> dict[str, Any]:
    """Everything that can be said about a model without making it.

    Raises:
        CheckpointError: if the files cannot be found, trusted or recognised.
    """
    found = examine(name, layout=layout, ema=ema, verify=hashes)
    tensors = {key: tensor for key, tensor in found.tensors.items() if not ignored(key)}
    dtypes = collections.Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    tree: dict[str, Any] = {
        "source": found.source.name,
        "files": [path.name for path in found.source.files],
        "container": found.container,
        "layout": found.layout,
        "tensors": len(tensors),
        "dtypes": dict(sorted(dtypes.items())),
        "parameters": sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point()),
        "bytes": sum(path.stat().st_size for path in found.source.files),
        **_architecture(found),
        "asked_for": found.unknown(),
        "notes": found.notes,
        "sha256": found.hashes,
    }
    if found.source.revision is not None:
        tree["revision"] = found.source.revision
    return tree


def check(name: str | os.PathLike, *, asked: Asked | None = None, layout: str | None = None) -> list[str]:
    """Prove that a model can be used: files as saved, numbers finite, embeddings finite and of unit length.

    Gives one line for each thing that was checked.

    Raises:
        CheckpointError: for the first that does not hold.
    """
    opened = open_weights(name, asked=asked, layout=layout)
    lines = []
    if opened.layout == "ostension":
        lines.append(f"{len(opened.hashes)} files are as the manifest says")
    model = build_model(opened, torch.device("cpu"), torch.float32)  # which also checks every name and shape
    tensors = {key: tensor for key, tensor in opened.tensors.items() if not ignored(key)}
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            raise CheckpointError(
                f"the tensor {key!r} has {count} values that are not finite",
                source=opened.source.path,
                expected="finite numbers",
            )
    lines.append(f"{len(tensors)} tensors are finite")
    for kind, rows in zip(("images", "texts"), encode(model, *probes(model)), strict=True):
        if not torch.isfinite(rows).all() or not torch.allclose(rows.norm(dim=1), torch.ones(len(rows)), atol=1e-3):
            raise CheckpointError(
                f"probe {kind} do not have embeddings of unit length",
                source=opened.source.path,
                fix="train or convert it again",
            )
        lines.append(f"{len(rows)} probe {kind} have finite embeddings of {rows.shape[1]} dimensions")
    return lines


def as_lines(tree: dict[str, Any]) -> list[str]:
    """The tree of `describe` for people."""
    kinds = ", ".join(f"{count} {name}" for name, count in tree["dtypes"].items())
    lines = [
        f"{'source':<12}{tree['source']} ({', '.join(tree['files'])}; {tree['bytes'] / 1e6:,.1f} MB)",
        f"{'container':<12}{tree['container']}",
        f"{'layout':<12}{tree['layout']}",
        f"{'tensors':<12}{tree['tensors']} ({kinds}), {tree['parameters']:,} numbers",
    ]
    for part in ("embed_dim", "vision", "text"):
        value = tree["architecture"][part]
        shown = ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else value
        lines.append(f"{part:<12}{shown}")
    lines += [f"{'known':<12}{name} = {_short(fact['value'])}, from {fact['from']}" for name, fact in tree["facts"].items()]
    lines.append(f"{'asked for':<12}{', '.join(tree['asked_for']) or 'nothing'}")
    lines += [f"{'note':<12}{note}" for note in tree["notes"]]
    lines += [f"{'sha256':<12}{digest}  {name}" for name, digest in tree["sha256"].items()]
    return lines


def _architecture(found: Examined) -> dict[str, Any]:
    if found.reading is None:
        assert found.config is not None
        tree = to_tree(found.config)
        architecture = {part: tree[part] for part in ("embed_dim", "vision", "text")}
        known = {part: Fact(tree[part], "config.json") for part in ("preprocess", "tokenizer", "logit_scale_cap")}
        return {"architecture": architecture, "facts": facts_tree(known)}
    reading = found.reading
    architecture = {"embed_dim": reading.embed_dim, "vision": to_tree(reading.vision), "text": to_tree(reading.text)}
    return {"architecture": architecture, "facts": facts_tree(reading.facts)}


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items() if key not in ("max_pixels", "max_bytes"))
    return f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value)
