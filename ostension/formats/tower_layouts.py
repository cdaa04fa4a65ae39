"""Encoders as their publishers wrote them, under our names: ViT and DINO, DINOv2, BERT, EfficientNet-Lite.

Each reader gives a configuration and a state dict without a projection. What is left out is told: a classifier, a
pooler, a mask token. DINOv2 scales what every half of a block adds (LayerScale); the scale is multiplied into the half's
last matrix and bias, which is the same function.

Source: transformers 5 (models/vit, models/dinov2, models/bert), the package efficientnet-lite-pytorch 0.1.0.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ostension.errors import CheckpointError
from ostension.formats.facts import mlp_ratio
from ostension.formats.hf_common import ACTIVATIONS
from ostension.formats.settings import integer, number, one_of
from ostension.formats.table import count_layers, ignored, need
from ostension.image.transforms import PreprocessConfig
from ostension.model.config import VitConfig
from ostension.model.positions import resize_image_positions
from ostension.model.towers.config import LITE0, BertConfig, EfficientNetConfig, Stage

# Pixels a side of each Lite, by its blocks and the channels of its fifth stage (efficientnet_lite_builder.py).
_LITE_SIZES = {(16, 112): 224, (21, 112): 240, (21, 120): 260, (24, 136): 280, (30, 160): 300}
# What the classifiers of the family crop away: 32 pixels of the short side.
_LITE_CROP = 32

State = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Read:
    """A tower's configuration (without a projection), its tensors by our names within the tower, and what was left out."""

    config: Any
    state: State
    left_out: tuple[str, ...] = ()


def is_lite(state: Iterable[str]) -> bool:
    """Whether the tensors are an EfficientNet-Lite's."""
    return "_conv_stem.weight" in set(state)


def read_lite(state: Mapping[str, Tensor], path: Path, image_size: int | None) -> tuple[Read, PreprocessConfig]:
    """An EfficientNet-Lite and its preprocessing: (x - 127) / 128 of bytes, bicubic, 224 cut from 256."""
    count = count_layers(state, r"_blocks\.(\d+)\.")
    blocks: list[tuple[int, int, int]] = []
    for index in range(count):
        depthwise = need(state, f"_blocks.{index}._depthwise_conv.weight", path, "EfficientNet-Lite", 4)
        project = need(state, f"_blocks.{index}._project_conv.weight", path, "EfficientNet-Lite", 4)
        entering = blocks[-1][2] if blocks else state["_conv_stem.weight"].shape[0]
        blocks.append((depthwise.shape[-1], depthwise.shape[0] // entering, project.shape[0]))
    stages: list[list[tuple[int, int, int]]] = []
    for block in blocks:
        if not stages or stages[-1][0][2] != block[2]:
            stages.append([])
        stages[-1].append(block)
    shape = [(stage[0][0], stage[0][1]) for stage in stages]
    if shape != [(stage.kernel, stage.expansion) for stage in LITE0]:
        raise CheckpointError(f"has stages of kernels and expansions {shape}", source=path, expected="an EfficientNet-Lite's")
    native = _LITE_SIZES.get((count, stages[4][0][2]))
    if native is None:
        raise CheckpointError(f"an EfficientNet of {count} blocks, which is none of Lite0 to Lite4", source=path)
    config = EfficientNetConfig(
        image_size=image_size or native,
        stem=state["_conv_stem.weight"].shape[0],
        stages=tuple(
            Stage(blocks=len(found), kernel=known.kernel, stride=known.stride, expansion=known.expansion, channels=found[0][2])
            for found, known in zip(stages, LITE0, strict=True)
        ),
        width=need(state, "_conv_head.weight", path, "EfficientNet-Lite", 4).shape[0],
        projection=False,
    )
    side = config.image_size
    preprocess = PreprocessConfig(
        image_size=side, short_side=round(side * (native + _LITE_CROP) / native), mean=(127 / 255,) * 3, std=(128 / 255,) * 3
    )  # fmt: skip
    names = {name: _lite_name(name) for name in state}
    return _renamed(config, state, names), preprocess


def _lite_name(name: str) -> str | None:
    parts = {"expand_conv": "expand.conv", "bn0": "expand.bn", "depthwise_conv": "depthwise.conv", "bn1": "depthwise.bn"}
    parts |= {"project_conv": "project.conv", "bn2": "project.bn"}
    outer = {"conv_stem": "stem.conv", "bn0": "stem.bn", "conv_head": "last.conv", "bn1": "last.bn"}
    if match := re.fullmatch(r"_blocks\.(\d+)\._(\w+)\.(\w+)", name):
        return f"blocks.{match[1]}.{parts[match[2]]}.{match[3]}" if match[2] in parts else None
    match = re.fullmatch(r"_(\w+)\.(\w+)", name)
    return f"{outer[match[1]]}.{match[2]}" if match and match[1] in outer else None


_VIT_PARTS = {
    "layernorm_before": "ln_1", "layernorm_after": "ln_2", "norm1": "ln_1", "norm2": "ln_2",
    "attention.output.dense": "attn.out_proj", "intermediate.dense": "mlp.c_fc", "output.dense": "mlp.c_proj",
    "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
}  # fmt: skip
_BERT_PARTS = {
    "attention.output.dense": "attn.out_proj", "attention.output.LayerNorm": "ln_1", "intermediate.dense": "mlp.c_fc",
    "output.dense": "mlp.c_proj", "output.LayerNorm": "ln_2",
}  # fmt: skip
_SCALES = {"layer_scale1.lambda1": "attn.out_proj", "layer_scale2.lambda1": "mlp.c_proj"}


def read_vit(state: Mapping[str, Tensor], tree: Mapping[str, Any], path: Path, image_size: int | None) -> Read:
    """Hugging Face's ViT (which DINO uses too) or DINOv2; the feature is the class token after the last LayerNorm."""
    kind = str(tree.get("model_type"))
    if tree.get("use_swiglu_ffn") or tree.get("qkv_bias") is False or kind not in ("vit", "dinov2"):
        raise CheckpointError("is a ViT of a form that has no module of our own", source=path)
    width, patch = integer(tree, "hidden_size", path), integer(tree, "patch_size", path)
    hidden = int(width * number(tree, "mlp_ratio", path)) if "mlp_ratio" in tree else integer(tree, "intermediate_size", path)
    native = integer(tree, "image_size", path)
    config = VitConfig(
        image_size=image_size or native, patch_size=patch, width=width, layers=integer(tree, "num_hidden_layers", path),
        head_width=width // integer(tree, "num_attention_heads", path), mlp_ratio=mlp_ratio(width, hidden),
        activation=one_of(tree, "hidden_act", ACTIVATIONS, path),  # type: ignore[arg-type]
        ln_pre=False, patch_bias=True, projection=False, norm_eps=number(tree, "layer_norm_eps", path),
    )  # fmt: skip
    state = _without_prefix(state, f"{kind}.")
    outer = {"embeddings.patch_embeddings.projection": "conv1", "layernorm": "ln_post"}
    found, left_out = _blocks(state, r"encoder\.layer\.(\d+)\.(.+)", "attention.attention", _VIT_PARTS, outer)
    table = need(state, "embeddings.position_embeddings", path, kind, 3)[0]
    found["positional_embedding"] = resize_image_positions(table, config.grid, class_row=True, antialias=False)
    found["class_embedding"] = need(state, "embeddings.cls_token", path, kind, 3)[0, 0]
    return Read(config, found, tuple(name for name in left_out if name not in _VIT_SINGLE))


_VIT_SINGLE = ("embeddings.position_embeddings", "embeddings.cls_token")


def read_bert(
    state: Mapping[str, Tensor], tree: Mapping[str, Any], path: Path, *, context_length: int | None, pool: str
) -> Read:
    """Hugging Face's BERT, its table of positions cut to `context_length`."""
    if tree.get("position_embedding_type", "absolute") != "absolute" or tree.get("is_decoder"):
        raise CheckpointError("is a BERT of a form that has no module of our own", source=path)
    width = integer(tree, "hidden_size", path)
    longest = integer(tree, "max_position_embeddings", path)
    length = context_length or longest
    if length > longest:
        raise CheckpointError(f"has {longest} positions", source=path, expected=f"the {length} that were asked for")
    config = BertConfig(
        context_length=length, vocab_size=integer(tree, "vocab_size", path), width=width,
        layers=integer(tree, "num_hidden_layers", path), head_width=width // integer(tree, "num_attention_heads", path),
        mlp_ratio=mlp_ratio(width, integer(tree, "intermediate_size", path)),
        activation=one_of(tree, "hidden_act", ACTIVATIONS, path),  # type: ignore[arg-type]
        pad_id=integer({"pad_token_id": 0, **tree}, "pad_token_id", path, at_least=0), pool=pool,  # type: ignore[arg-type]
        projection=False, norm_eps=number(tree, "layer_norm_eps", path),
    )  # fmt: skip
    state = _without_prefix(state, "bert.")
    outer = {"embeddings.word_embeddings": "token_embedding", "embeddings.LayerNorm": "ln_embedding"}
    found, left_out = _blocks(state, r"encoder\.layer\.(\d+)\.(.+)", "attention.self", _BERT_PARTS, outer)
    positions, types = (f"embeddings.{name}_embeddings.weight" for name in ("position", "token_type"))
    found["positional_embedding"] = need(state, positions, path, "bert", 2)[:length]
    found["type_embedding"] = need(state, types, path, "bert", 2)[0]
    return Read(config, found, tuple(name for name in left_out if name not in (positions, types)))


def _blocks(
    state: Mapping[str, Tensor], pattern: str, heads: str, parts: Mapping[str, str], outer: Mapping[str, str]
) -> tuple[State, list[str]]:
    """Blocks under our names, queries, keys and values fused, layer scales multiplied in; and the names of what is left."""
    found: State = {}
    fused: dict[str, State] = {}
    scales: State = {}
    left_out: list[str] = []
    for name, tensor in state.items():
        match = re.fullmatch(pattern, name)
        module, _, leaf = (match[2] if match else name).rpartition(".")
        prefix = f"transformer.resblocks.{match[1]}." if match else ""
        if match and match[2] in _SCALES:
            scales[prefix + _SCALES[match[2]]] = tensor
        elif match and module in {f"{heads}.{part}" for part in ("query", "key", "value")}:
            fused.setdefault(f"{prefix}attn.in_proj_{leaf}", {})[module.rpartition(".")[2]] = tensor
        elif module in (parts if match else outer):
            found[f"{prefix}{(parts if match else outer)[module]}.{leaf}"] = tensor
        elif not ignored(name):
            left_out.append(name)
    for name, three in fused.items():
        found[name] = torch.cat([three[part] for part in ("query", "key", "value") if part in three])
    for name, scale in scales.items():
        found[f"{name}.weight"] = scale[:, None] * found[f"{name}.weight"]
        found[f"{name}.bias"] = scale * found[f"{name}.bias"]
    return found, left_out


def _without_prefix(state: Mapping[str, Tensor], prefix: str) -> State:
    """Names as in the bare encoder: a model with a head has the family's name before them."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def _renamed(config: Any, state: Mapping[str, Tensor], names: Mapping[str, str | None]) -> Read:
    found = {ours: state[theirs] for theirs, ours in names.items() if ours is not None}
    return Read(config, found, tuple(theirs for theirs, ours in names.items() if ours is None))
