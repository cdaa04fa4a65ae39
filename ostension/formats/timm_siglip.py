"""SigLIP in open_clip: an image tower of timm (`visual.trunk.*`) and a text tower of open_clip (`text.*`).

open_clip's configuration names a timm model; what that name means for the activation is in `ACTIVATIONS` here, because it
is written nowhere else: open_clip computes exact GELU for the models of SigLIP's first paper, where big_vision and
Hugging Face compute tanh GELU with the same weights.

Source: timm 1.0, models/vision_transformer.py and layers/attention_pool.py; open_clip, model_configs/*SigLIP*.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ostension.errors import CheckpointError
from ostension.formats._blocks import rename, split_block
from ostension.formats.facts import Fact, Reading, mlp_ratio
from ostension.formats.settings import one_of, table
from ostension.formats.siglip import INITIAL, NO_CAP, TEXT_FORM, VISION_FORM
from ostension.formats.table import Entry, count_layers, fused, led, need, same, scalar, transposed
from ostension.model.config import VitConfig

NAME = "open_clip_siglip"
HEADS = {768: 12, 1024: 16, 1152: 16, 1536: 16}  # timm's SigLIP towers by width; SigLIP's text towers too
_TANH = (
    "vit_base_patch32_siglip_256",
    "vit_large_patch16_siglip_512",
    "vit_so400m_patch16_siglip_",
    "vit_giantopt_patch16_siglip_",
)
_EXACT = (
    "vit_base_patch16_siglip_",
    "vit_large_patch16_siglip_256",
    "vit_large_patch16_siglip_384",
    "vit_so400m_patch14_siglip_",
)
TIMM_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}
# The timm model that a tower of another size is written as, with the difference in `timm_model_kwargs`.
BASE_MODEL = "vit_base_patch16_siglip_224"
BASE: dict[str, Any] = {
    "img_size": 224,
    "patch_size": 16,
    "embed_dim": 768,
    "depth": 12,
    "num_heads": 12,
    "mlp_ratio": 4.0,
    "act_layer": "gelu",
}
_BLOCK = {"ln_1": "norm1", "ln_2": "norm2", "attn.out_proj": "attn.proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
_TRUNK = {
    "visual.conv1.weight": "patch_embed.proj.weight",
    "visual.conv1.bias": "patch_embed.proj.bias",
    "visual.ln_post.weight": "norm.weight",
    "visual.ln_post.bias": "norm.bias",
    "visual.attn_pool.probe": "attn_pool.latent",
    "visual.attn_pool.ln.weight": "attn_pool.norm.weight",
    "visual.attn_pool.ln.bias": "attn_pool.norm.bias",
    "visual.attn_pool.attn.out_proj.weight": "attn_pool.proj.weight",
    "visual.attn_pool.attn.out_proj.bias": "attn_pool.proj.bias",
    "visual.attn_pool.mlp.c_fc.weight": "attn_pool.mlp.fc1.weight",
    "visual.attn_pool.mlp.c_fc.bias": "attn_pool.mlp.fc1.bias",
    "visual.attn_pool.mlp.c_proj.weight": "attn_pool.mlp.fc2.weight",
    "visual.attn_pool.mlp.c_proj.bias": "attn_pool.mlp.fc2.bias",
}
TRUNK = "visual.trunk."


def entry(name: str) -> Entry:
    """Our parameter `name` in the names of open_clip with a timm image tower."""
    if name in ("logit_scale", "logit_bias"):
        return scalar(name, name)
    if name in _TRUNK:
        return same(name, TRUNK + _TRUNK[name])
    if name == "visual.positional_embedding":
        return led(name, f"{TRUNK}pos_embed")
    if name.startswith("visual.attn_pool.attn.in_proj_"):
        leaf = name.rsplit("_", 1)[1]
        return fused(name, (f"{TRUNK}attn_pool.q.{leaf}", f"{TRUNK}attn_pool.kv.{leaf}"), (1, 2))
    if name == "text.text_projection":
        return transposed(name, "text.text_projection.weight")
    if name == "text.text_projection_bias":
        return same(name, "text.text_projection.bias")
    block = split_block(name)
    if block is None or block[0] == "text":
        return same(name, name)
    prefix = f"{TRUNK}blocks.{block[1]}."
    if block[2].startswith("attn.in_proj_"):
        return same(name, f"{prefix}attn.qkv.{block[2].rsplit('_', 1)[1]}")
    return rename(name, prefix, block[2], _BLOCK)


def read(state: Mapping[str, Tensor], path: Path) -> Reading:
    """The architecture from the shapes; heads from the table of known widths, activations unknown."""
    embedding = need(state, "text.token_embedding.weight", path, NAME, 2)
    width = embedding.shape[1]
    hidden = need(state, "text.transformer.resblocks.0.mlp.c_fc.weight", path, NAME, 2).shape[0]
    text: dict[str, Any] = {
        "context_length": need(state, "text.positional_embedding", path, NAME, 2).shape[0],
        "vocab_size": embedding.shape[0],
        "width": width,
        "norm_eps": 1e-6,
        "mlp_ratio": mlp_ratio(width, hidden),
        "layers": count_layers(state, r"text\.transformer\.resblocks\.(\d+)\."),
        "head_width": _head_width("text", width, path),
    }
    embed_dim = need(state, "text.text_projection.weight", path, NAME, 2).shape[0]
    vision, settings = read_vision(state, path), dict(INITIAL)
    reading = Reading(path=path, layout=NAME, embed_dim=embed_dim, vision=vision, text=text | TEXT_FORM, settings=settings)
    reading.facts["logit_scale_cap"] = NO_CAP
    return reading


def read_vision(state: Mapping[str, Tensor], path: Path, heads: int | None = None) -> dict[str, Any]:
    """Settings of the image tower; `heads` where a configuration says it, else from the table of known widths."""
    patch = need(state, f"{TRUNK}patch_embed.proj.weight", path, NAME, 4)
    positions = need(state, f"{TRUNK}pos_embed", path, NAME, 3).shape[1]
    width, grid = patch.shape[0], math.isqrt(positions)
    if grid * grid != positions:
        raise CheckpointError(f"'{TRUNK}pos_embed' has {positions} positions", source=path, expected="a square number")
    if heads is not None and width % heads:
        raise CheckpointError(f"num_heads is {heads}", source=path, expected=f"a divisor of the width {width}")
    hidden = need(state, f"{TRUNK}blocks.0.mlp.fc1.weight", path, NAME, 2).shape[0]
    return VISION_FORM | {
        "image_size": patch.shape[-1] * grid,
        "patch_size": patch.shape[-1],
        "width": width,
        "norm_eps": 1e-6,
        "layers": count_layers(state, r"visual\.trunk\.blocks\.(\d+)\."),
        "mlp_ratio": mlp_ratio(width, hidden),
        "head_width": _head_width("vision", width, path) if heads is None else width // heads,
    }


def _head_width(tower: str, width: int, path: Path) -> int:
    if width in HEADS:
        return width // HEADS[width]
    raise CheckpointError(
        f"the {tower} tower's width {width} is not that of a known model, and shapes do not show the heads",
        source=path,
        fix="load a folder with open_clip_config.json",
    )


def vision_activation(vision_cfg: Mapping[str, Any], path: Path) -> Fact:
    """The activation of the timm model that open_clip's configuration names.

    Raises:
        CheckpointError: for a timm model that is not one of SigLIP's.
    """
    name = str(vision_cfg.get("timm_model_name"))
    own = table(vision_cfg, "timm_model_kwargs", path, optional=True)
    if "act_layer" in own:
        return Fact(one_of(own, "act_layer", TIMM_ACTIVATIONS, path), f"{path.name} (act_layer)")
    if name.startswith(_TANH):
        return Fact("gelu_tanh", f"the timm model {name}")
    if name.startswith(_EXACT):
        return Fact("gelu", f"the timm model {name}")
    raise CheckpointError(
        f"the image tower is timm's {name!r}", source=path, expected="one of its SigLIP models, or open_clip's own tower"
    )


def write_vision_cfg(config: VitConfig) -> dict[str, Any]:
    """open_clip's `vision_cfg` for an image tower of SigLIP's form: a base model of timm, and what differs from it."""
    own = {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "embed_dim": config.width,
        "depth": config.layers,
        "num_heads": config.heads,
        "mlp_ratio": config.mlp_ratio,
        "act_layer": config.activation,
    }
    # The activation is always said: what a model's name implies has changed between releases.
    different = {name: value for name, value in own.items() if value != BASE[name]} | {"act_layer": config.activation}
    return {
        "image_size": config.image_size,
        "timm_model_name": BASE_MODEL,
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
        "timm_model_kwargs": different,
    }
