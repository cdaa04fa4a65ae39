"""The architecture of a model in OpenAI's names, read off the shapes of its tensors.

OpenAI's own rule (`build_model` in clip/model.py) with the head widths of open_clip's larger models added, which shapes do
not show. Used for OpenAI's files and for open_clip's without their configuration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ostension.errors import CheckpointError
from ostension.formats.facts import Fact, mlp_ratio
from ostension.formats.table import count_layers, need
from ostension.model.config import ResNetConfig

# Width: head width, where it is not 64. ViT-H, g, bigG and e of open_clip's configurations.
HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104, 1792: 112}


def is_resnet(state: Mapping[str, Tensor]) -> bool:
    """Whether the image tower is a residual network."""
    return any(name.startswith(("visual.layer1.", "visual.attnpool.")) for name in state)


def read_vision(state: Mapping[str, Tensor], path: Path, kind: str) -> tuple[dict[str, Any] | ResNetConfig, Fact]:
    """Settings of the image tower, and the fact of its head width."""
    if is_resnet(state):
        return _read_resnet(state, path, kind), Fact(64, "the architecture (32 W / 64 heads)")
    convolution = need(state, "visual.conv1.weight", path, kind, 4)
    width, patch = convolution.shape[0], convolution.shape[-1]
    rows = need(state, "visual.positional_embedding", path, kind, 2).shape[0]
    grid = _side(rows - 1, "visual.positional_embedding", path)
    layers = count_layers(state, r"visual\.transformer\.resblocks\.(\d+)\.")
    if not layers:
        raise CheckpointError(
            "no tensor is named 'visual.transformer.resblocks.0...'", source=path, expected=f"the {kind} layout"
        )
    hidden = need(state, "visual.transformer.resblocks.0.mlp.c_fc.weight", path, kind, 2).shape[0]
    head_width = _head_width(width, "vision", path)
    settings = {
        "image_size": patch * grid,
        "patch_size": patch,
        "width": width,
        "layers": layers,
        "mlp_ratio": mlp_ratio(width, hidden),
        "head_width": head_width.value,
    }
    return settings, head_width


def read_text(state: Mapping[str, Tensor], path: Path, kind: str, prefix: str) -> tuple[dict[str, Any], int]:
    """Settings of the text tower, whose names begin with `prefix`, and the width of the embedding."""
    table = need(state, f"{prefix}token_embedding.weight", path, kind, 2)
    positions = need(state, f"{prefix}positional_embedding", path, kind, 2)
    projection = need(state, f"{prefix}text_projection", path, kind, 2)
    escaped = prefix.replace(".", r"\.")
    layers = count_layers(state, escaped + r"transformer\.resblocks\.(\d+)\.")
    width = table.shape[1]
    hidden = need(state, f"{prefix}transformer.resblocks.0.mlp.c_fc.weight", path, kind, 2).shape[0]
    settings = {
        "context_length": positions.shape[0],
        "vocab_size": table.shape[0],
        "width": width,
        "layers": layers,
        "mlp_ratio": mlp_ratio(width, hidden),
        "head_width": _head_width(width, "text", path, {}).value,
    }
    return settings, projection.shape[1]


def _read_resnet(state: Mapping[str, Tensor], path: Path, kind: str) -> ResNetConfig:
    rows = need(state, "visual.attnpool.positional_embedding", path, kind, 2).shape[0]
    width = need(state, "visual.layer1.0.conv1.weight", path, kind, 4).shape[0]
    stages = [count_layers(state, rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)]
    if min(stages) < 1:
        raise CheckpointError(
            f"the residual network has {stages} blocks in its stages", source=path, expected="at least one in each of four"
        )
    side = _side(rows - 1, "visual.attnpool.positional_embedding", path)
    return ResNetConfig(image_size=32 * side, layers=(stages[0], stages[1], stages[2], stages[3]), width=width)


def _side(patches: int, name: str, path: Path) -> int:
    side = math.isqrt(max(patches, 0))
    if side * side != patches or side < 1:
        raise CheckpointError(
            f"the tensor {name!r} has {patches + 1} rows",
            source=path,
            expected="a square number of patches and the class token",
        )
    return side


def _head_width(width: int, tower: str, path: Path, table: Mapping[int, int] = HEAD_WIDTHS) -> Fact:
    if width in table:
        return Fact(table[width], f"the table of known models (width {width})")
    if width % 64 == 0:
        return Fact(64, "OpenAI's rule (64)")
    raise CheckpointError(
        f"the {tower} tower's width {width} is no multiple of 64, and shapes do not show the number of heads",
        source=path,
        fix="load a folder with the model's configuration",
    )
