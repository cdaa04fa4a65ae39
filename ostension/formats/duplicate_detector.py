"""Folders of near-duplicate detectors (`model.duplicate_detector`): tensors, settings, where they come from, the manifest."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError

from ostension.config import from_tree, to_tree
from ostension.errors import CheckpointError, ConfigError
from ostension.files import read_json, write_json
from ostension.formats import ours
from ostension.formats.manifest import whole_folder, write_manifest
from ostension.formats.parts import fill_part, read_part, write_part
from ostension.model.duplicate_detector import DetectorConfig, DuplicateDetector
from ostension.runtime import pick_device, pick_dtype

NAME = "detector"  # not "model" and "config.json": nobody is to take it for a model with two towers


def save_detector(detector: DuplicateDetector, folder: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Write a detector, whole or not at all.

    Raises:
        CheckpointError: if the folder has something in it and `overwrite` is not set, or cannot be written.
    """
    try:
        with whole_folder(Path(folder), overwrite=overwrite) as partial:
            write_part(partial, NAME, detector, to_tree(detector.config))
            write_json(partial / ours.PROVENANCE, detector.provenance)
            write_manifest(partial)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot be written: {error}", source=folder, fix="nothing was left behind") from None


def load_detector(folder: str | os.PathLike, *, device: str = "auto", dtype: str = "float32") -> DuplicateDetector:
    """The detector in a folder, in evaluation mode.

    Raises:
        CheckpointError: if there is none, or anything in it is not as it was saved.
        ConfigError: for an unknown device or dtype.
    """
    folder = Path(folder)
    settings, tensors = read_part(folder, NAME)
    source = folder / f"{NAME}.json"
    try:
        config = from_tree(DetectorConfig, settings, source)
    except ConfigError as error:
        raise CheckpointError(error.what, source=source, expected=error.expected, fix=error.fix) from None
    detector = DuplicateDetector(config, seed=None)
    fill_part(detector.to(torch.float32), tensors, None, folder / f"{NAME}.safetensors")
    detector.provenance = read_json(folder / ours.PROVENANCE, CheckpointError)
    place = pick_device(device)
    return detector.to(place, pick_dtype(dtype, place)).eval()
