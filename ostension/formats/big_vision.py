"""SigLIP as Google's big_vision stores it: one npz of Flax parameters, with or without `params/` in front.

Kernels are (in, out), attention kernels keep the heads apart: query (W, H, D), out (H, D, W). Blocks are numbered
(`encoderblock_3/...`) or stacked into one array each (`encoderblock/...`, first dimension the block). Flax's GELU is the
tanh form. Read only: nothing but big_vision takes this layout.

Source: google-research/big_vision, models/vit.py and models/proj/image_text/two_towers.py; open_clip, convert.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ostension.errors import CheckpointError
from ostension.formats._blocks import split_block
from ostension.formats.facts import Fact, Reading, mlp_ratio
from ostension.formats.siglip import INITIAL, NO_CAP, TEXT_FORM, VISION_FORM
from ostension.formats.table import Entry, count_layers, led, need, same, scalar, transposed

NAME = "big_vision"
_ACTIVATION = Fact("gelu_tanh", "the layout (Flax's GELU is the tanh form)")
_STACKED = "/encoderblock/"
_TOWERS = {"visual": "img/Transformer", "text": "txt/Encoder_0"}
_SAME = {
    "visual.conv1.bias": "img/embedding/bias",
    "visual.ln_post.weight": "img/Transformer/encoder_norm/scale",
    "visual.ln_post.bias": "img/Transformer/encoder_norm/bias",
    "visual.attn_pool.probe": "img/MAPHead_0/probe",
    "text.token_embedding.weight": "txt/Embed_0/embedding",
    "text.ln_final.weight": "txt/Encoder_0/encoder_norm/scale",
    "text.ln_final.bias": "txt/Encoder_0/encoder_norm/bias",
    "text.text_projection": "txt/head/kernel",  # (W, E) on both sides
    "text.text_projection_bias": "txt/head/bias",
}


def plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The arrays without `params/`, stacked blocks taken apart (views, no copies)."""
    flat: dict[str, Tensor] = {}
    for name, tensor in state.items():
        name = name.removeprefix("params/")
        if _STACKED in name and tensor.ndim:
            for index, part in enumerate(tensor):
                flat[name.replace(_STACKED, f"/encoderblock_{index}/")] = part
        else:
            flat[name] = tensor
    return flat


def layout(heads: Mapping[str, int]):
    """The layout for towers with these numbers of heads ("visual" and "text"), which the kernels' shapes carry."""

    def entry(name: str) -> Entry:
        if name in ("logit_scale", "logit_bias"):
            return scalar(name, "t" if name == "logit_scale" else "b", (1,))
        if name == "visual.conv1.weight":
            return Entry(
                name, ("img/embedding/kernel",), lambda parts: parts[0].permute(3, 2, 0, 1), lambda x: (x.permute(2, 3, 1, 0),)
            )
        if name in ("visual.positional_embedding", "text.positional_embedding"):
            return led(name, f"{'img' if name[0] == 'v' else 'txt'}/pos_embedding")
        if name in _SAME:
            return same(name, _SAME[name])
        if name.startswith("visual.attn_pool."):
            return _part(name, "img/MAPHead_0/", name.removeprefix("visual.attn_pool."), {"ln": "LayerNorm_0"}, heads["visual"])
        block = split_block(name)
        if block is None:
            return same(name, name)  # a part that this layout does not have
        prefix = f"{_TOWERS[block[0]]}/encoderblock_{block[1]}/"
        return _part(name, prefix, block[2], {"ln_1": "LayerNorm_0", "ln_2": "LayerNorm_1"}, heads[block[0]])

    return entry


def read(state: Mapping[str, Tensor], path: Path) -> tuple[Reading, dict[str, int]]:
    """The architecture from the shapes of the plain arrays, and both towers' numbers of heads."""
    patch = need(state, "img/embedding/kernel", path, NAME, 4)
    positions = need(state, "img/pos_embedding", path, NAME, 3)
    table = need(state, "txt/Embed_0/embedding", path, NAME, 2)
    grid = math.isqrt(positions.shape[1])
    if grid * grid != positions.shape[1]:
        raise CheckpointError(
            f"'img/pos_embedding' has {positions.shape[1]} positions", source=path, expected="a square number"
        )
    vision, vision_heads = _tower(state, path, "img/Transformer", patch.shape[3])
    text, text_heads = _tower(state, path, "txt/Encoder_0", table.shape[1])
    vision |= {"image_size": patch.shape[0] * grid, "patch_size": patch.shape[0]}
    text |= {"context_length": need(state, "txt/pos_embedding", path, NAME, 3).shape[1], "vocab_size": table.shape[0]}
    reading = Reading(
        path=path,
        layout=NAME,
        embed_dim=need(state, "txt/head/kernel", path, NAME, 2).shape[1],
        vision=vision | VISION_FORM,
        text=text | TEXT_FORM,
        settings=dict(INITIAL),
    )
    reading.facts |= {"vision.activation": _ACTIVATION, "text.activation": _ACTIVATION, "logit_scale_cap": NO_CAP}
    return reading, {"visual": vision_heads, "text": text_heads}


def _tower(state: Mapping[str, Tensor], path: Path, prefix: str, width: int) -> tuple[dict, int]:
    block = f"{prefix}/encoderblock_0/"
    query = need(state, f"{block}MultiHeadDotProductAttention_0/query/kernel", path, NAME, 3)
    hidden = need(state, f"{block}MlpBlock_0/Dense_0/kernel", path, NAME, 2).shape[1]
    layers = count_layers(state, rf"{prefix}/encoderblock_(\d+)/")
    settings = {
        "width": width,
        "layers": layers,
        "head_width": query.shape[2],
        "mlp_ratio": mlp_ratio(width, hidden),
        "norm_eps": 1e-6,
    }
    return settings, query.shape[1]


def _part(ours: str, prefix: str, rest: str, norms: Mapping[str, str], heads: int) -> Entry:
    """A parameter of a block or of the pooling head, which are made of the same layers."""
    module, leaf = rest.rsplit(".", 1)
    if module in norms:
        return same(ours, f"{prefix}{norms[module]}/{'scale' if leaf == 'weight' else 'bias'}")
    if module in ("mlp.c_fc", "mlp.c_proj"):
        theirs = f"{prefix}MlpBlock_0/Dense_{int(module == 'mlp.c_proj')}/"
        return transposed(ours, f"{theirs}kernel") if leaf == "weight" else same(ours, f"{theirs}bias")
    attention = f"{prefix}MultiHeadDotProductAttention_0/"
    if module == "attn.out_proj":
        return _out(ours, f"{attention}out/kernel", heads) if leaf == "weight" else same(ours, f"{attention}out/bias")
    kind = "kernel" if leaf == "in_proj_weight" else "bias"
    return _heads(ours, tuple(f"{attention}{name}/{kind}" for name in ("query", "key", "value")), heads, kind)


def _heads(ours: str, theirs: tuple[str, ...], heads: int, kind: str) -> Entry:
    """Query, key and value, (W, H, D) or (H, D) each, as one (3 W, W) or (3 W)."""

    def read(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([part.flatten(1).t() if kind == "kernel" else part.flatten() for part in parts])

    def write(tensor: Tensor) -> Sequence[Tensor]:
        parts = tensor.chunk(3)
        return [part.t().unflatten(1, (heads, -1)) if kind == "kernel" else part.unflatten(0, (heads, -1)) for part in parts]

    return Entry(ours, theirs, read, write)


def _out(ours: str, theirs: str, heads: int) -> Entry:
    """The output kernel (H, D, W) as (W, H D)."""
    return Entry(ours, (theirs,), lambda parts: parts[0].flatten(0, 1).t(), lambda x: (x.t().unflatten(0, (heads, -1)),))
