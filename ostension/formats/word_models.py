"""Folders of models that predict words (`model.word_models`): their tensors and settings, and the tokenizer."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError

from ostension.config import from_tree, to_tree
from ostension.errors import CheckpointError
from ostension.files import read_json, write_json
from ostension.formats import ours
from ostension.formats.manifest import whole_folder, write_manifest
from ostension.formats.parts import fill_part, read_part, write_part
from ostension.model.clip import CLIP
from ostension.model.config import ModelConfig
from ostension.model.word_models import BagPredictor, LanguageModel, LanguageModelConfig, WordModel

NAME = "words"  # not "model", and the settings not "config.json": nobody is to take it for a model with two towers


def save_word_model(model: WordModel, folder: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Write a model, whole or not at all.

    Raises:
        CheckpointError: if the folder has something in it and `overwrite` is not set, or cannot be written.
    """
    head = to_tree(model.settings) if isinstance(model, LanguageModel) else {}
    try:
        with whole_folder(Path(folder), overwrite=overwrite) as partial:
            write_part(partial, NAME, model, {"kind": model.kind, "head": head, "model": to_tree(model.config)})
            model.tokenizer.save(partial)
            write_json(partial / ours.PROVENANCE, model.provenance)
            write_manifest(partial)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot be written: {error}", source=folder, fix="nothing was left behind") from None


def load_word_model(folder: str | os.PathLike) -> WordModel:
    """The model in a folder, in evaluation mode and float32.

    Raises:
        CheckpointError: if there is none, or anything in it is not as it was saved.
    """
    folder = Path(folder)
    settings, tensors = read_part(folder, NAME)
    source = folder / f"{NAME}.json"
    if not isinstance(settings, dict) or settings.get("kind") not in (LanguageModel.kind, BagPredictor.kind):
        raise CheckpointError("is not a model that predicts words", source=source)
    base = CLIP(from_tree(ModelConfig, settings["model"], source), seed=None)
    model: WordModel
    if settings["kind"] == LanguageModel.kind:
        model = LanguageModel(base, from_tree(LanguageModelConfig, settings["head"], source), seed=None)
    else:
        model = BagPredictor(base, seed=None)
    fill_part(model.to(torch.float32), tensors, None, folder / f"{NAME}.safetensors")
    model.provenance = read_json(folder / ours.PROVENANCE, CheckpointError)
    return model
