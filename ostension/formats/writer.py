"""Write a model as a folder of our layout, open_clip's or Hugging Face's, whole or not at all."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ostension.config import to_tree
from ostension.errors import CheckpointError, ConfigError, MissingExtraError, unknown_name
from ostension.files import write_json
from ostension.formats import hf_clip, hf_common, hf_tokenizer, open_clip, open_clip_write, ours, siglip
from ostension.formats.manifest import whole_folder, write_manifest
from ostension.formats.source import public_name
from ostension.formats.table import Layout, to_theirs
from ostension.model.clip import CLIP
from ostension.model.config import ModelConfig
from ostension.runtime import versions

logger = logging.getLogger("ostension.formats")
LAYOUTS = ("ostension", "open_clip", "hf")
OPEN_CLIP_WEIGHTS = open_clip.WEIGHT_FILES[0]
HF_WEIGHTS = "model.safetensors"

Check = Callable[[Path], None]


def write_model(
    model: CLIP, folder: str | os.PathLike, layout: str, *, overwrite: bool = False, check: Check | None = None
) -> None:
    """Write `model` into `folder`; see `load.save`.

    Args:
        check: called with the complete folder before it takes its final name; an error leaves nothing behind.
    """
    if layout not in LAYOUTS:
        raise unknown_name("layout to write", layout, LAYOUTS)
    target = Path(folder)
    if layout != "ostension":
        _check_published(model.config, target)
    writers = {"ostension": _write_ours, "open_clip": _write_open_clip, "hf": _write_hf}
    try:
        with whole_folder(target, overwrite=overwrite) as partial:
            notes = writers[layout](model, partial, target)
            for note in notes:
                logger.warning("%s: %s", target, note)
            write_json(partial / ours.PROVENANCE, _provenance(model, notes))
            if layout == "ostension":
                write_manifest(partial)
            if check is not None:
                check(partial)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise CheckpointError(f"cannot be written: {reason or error}", source=target, fix="nothing was left behind") from None


def _check_published(config: ModelConfig, target: Path) -> None:
    """Raise unless both towers are of CLIP's or SigLIP's form, which the layouts of others can say."""
    found = ours.only_ours(config)
    if found is not None:
        raise CheckpointError(
            f"only our own layout can say {found[0]}.kind = {found[1]!r}", source=target, fix="write --to ostension"
        )


def hf_kind(config: ModelConfig) -> Any:
    """The module of the Hugging Face layout for a model's form: `siglip` or `hf_clip`."""
    return siglip if open_clip_write.is_siglip(config) else hf_clip


def _write_ours(model: CLIP, folder: Path, target: Path) -> list[str]:
    _write_weights(model, folder / ours.WEIGHTS, ours.entry)
    write_json(folder / ours.CONFIG, to_tree(model.config))
    try:
        model.tokenizer.save(folder)
    except (CheckpointError, ConfigError, MissingExtraError) as error:
        return [_no_tokenizer(error)]
    return []


def _write_open_clip(model: CLIP, folder: Path, target: Path) -> list[str]:
    tree = open_clip_write.write_config(model.config, target)
    _write_weights(model, folder / OPEN_CLIP_WEIGHTS, open_clip_write.write_layout(model.config))
    write_json(folder / open_clip.CONFIG, tree)
    if tree["model_cfg"]["text_cfg"].get("hf_tokenizer_name"):
        return _write_hf_tokenizer(model, folder)
    return []


def _write_hf(model: CLIP, folder: Path, target: Path) -> list[str]:
    kind = hf_kind(model.config)
    kind.check_writable(model.config, target)
    preprocess = hf_common.preprocess_tree(model.config.preprocess, "Siglip" if kind is siglip else "CLIP", target)
    _write_weights(model, folder / HF_WEIGHTS, kind.entry)
    write_json(folder / ours.CONFIG, kind.write_config(model.config, str(model.dtype).removeprefix("torch.")))
    write_json(folder / hf_common.PREPROCESSOR, preprocess)
    return _write_hf_tokenizer(model, folder)


def _write_weights(model: CLIP, path: Path, layout: Layout) -> None:
    from safetensors.torch import save_file

    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    # The entry "format" is what transformers asks for.
    save_file(to_theirs(state, layout), path, metadata={"format": "pt"})


def _write_hf_tokenizer(model: CLIP, folder: Path) -> list[str]:
    try:
        return hf_tokenizer.write(model.tokenizer, folder, causal=model.config.text.causal)
    except (CheckpointError, ConfigError, MissingExtraError) as error:
        return [_no_tokenizer(error)]


def _no_tokenizer(error: Exception) -> str:
    return f"written without a tokenizer ({error})"


def _provenance(model: CLIP, notes: list[str]) -> dict[str, Any]:
    record = dict(model.provenance)
    if isinstance(record.get("source"), str):
        record["source"] = public_name(record["source"])
    record["written_by"] = versions() | {"torch": torch.__version__}
    if notes:
        record["written_with"] = notes
    return record
