"""A part that stands beside a model in its folder, such as a captioner: `NAME.safetensors`, and `NAME.json` with its settings.

The folder loads as a model by itself; the manifest holds the part's files too.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ostension.config import from_tree
from ostension.errors import CheckpointError
from ostension.files import read_json, write_json
from ostension.formats.load import load
from ostension.formats.manifest import verify as verify_manifest
from ostension.formats.manifest import write_manifest
from ostension.formats.writer import write_model
from ostension.model.captioner import NAME, Captioner, CaptionModel
from ostension.model.clip import CLIP
from ostension.model.decoder import DecoderConfig


def save_with_part(
    model: CLIP, folder: str | os.PathLike, name: str, part: nn.Module, settings: Any, *, overwrite: bool = False
) -> None:
    """Write `model` in our layout and `part` beside it, whole or not at all.

    Raises:
        CheckpointError: if the folder has something in it and `overwrite` is not set, or cannot be written.
    """

    def add(partial: Path) -> None:
        write_part(partial, name, part, settings)
        write_manifest(partial)

    write_model(model, folder, "ostension", overwrite=overwrite, check=add)


def write_part(folder: Path, name: str, part: nn.Module, settings: Any) -> None:
    """The two files of a part."""
    state = {key: value.detach().contiguous() for key, value in part.state_dict().items()}
    save_file(state, folder / f"{name}.safetensors", metadata={"format": "pt"})
    write_json(folder / f"{name}.json", settings)


def read_part(folder: Path, name: str, *, verify: bool = True) -> tuple[Any, dict[str, Tensor]]:
    """The settings and the tensors of a part.

    Raises:
        CheckpointError: if the folder has no such part, or its files are not those that were saved.
    """
    for file in (folder / f"{name}.json", folder / f"{name}.safetensors"):
        if not file.is_file():
            raise CheckpointError(f"has no {file.name}", source=folder, expected=f"a folder that was saved with a {name}")
    if verify:
        verify_manifest(folder)
    try:
        tensors = load_file(folder / f"{name}.safetensors")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot be read: {error}", source=folder / f"{name}.safetensors") from None
    return read_json(folder / f"{name}.json", CheckpointError), tensors


def fill_part(part: nn.Module, tensors: dict[str, Tensor], like: CLIP | None, source: object) -> None:
    """Give a part its tensors, in the type and place of a model's weights.

    Raises:
        CheckpointError: naming what is missing, unknown or of another shape.
    """
    expected = part.state_dict()
    for key in [*expected, *tensors]:
        if key not in expected or key not in tensors or expected[key].shape != tensors[key].shape:
            raise CheckpointError(f"the tensor {key!r} is not what the part's settings say", source=source)
    part.load_state_dict(tensors)
    if like is not None:
        part.to(like.device, like.dtype)
    part.eval()


def load_captioner(folder: str | os.PathLike, *, device: str = "auto", dtype: str = "auto") -> CaptionModel:
    """The model in a folder with the captioner beside it.

    Raises:
        CheckpointError: if it has none, or anything in it is not as it was saved.
    """
    settings, tensors = read_part(Path(folder), NAME)
    model = load(folder, device=device, dtype=dtype)
    captioner = Captioner(from_tree(DecoderConfig, settings, Path(folder) / f"{NAME}.json"), model, seed=None)
    fill_part(captioner, tensors, model, Path(folder) / f"{NAME}.safetensors")
    return CaptionModel(model, captioner)
