"""Tiny models on disk, related and unrelated, made on the spot."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from ostension.formats.load import load, save
from ostension.model.clip import CLIP
from ostension.model.presets import preset


def tiny(kind: str = "tiny-vit", seed: int = 0, **changes: Any) -> CLIP:
    return CLIP(dataclasses.replace(preset(kind), **changes), seed=seed).eval()


def moved(model: CLIP, seed: int, size: float = 0.01) -> CLIP:
    """Another model near this one."""
    other = CLIP(model.config, seed=None).eval()
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: value + size * torch.randn(value.shape, generator=generator).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in model.state_dict().items()
    }
    other.load_state_dict({name: value.abs() if "running_var" in name else value for name, value in state.items()})
    return other


def written(model: CLIP, folder: Path, **provenance: Any) -> Path:
    model.provenance = provenance
    save(model, folder)
    return folder


def state(folder: Path) -> dict[str, torch.Tensor]:
    return load(folder, dtype="float32").state_dict()


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()
