"""Hugging Face's SigLIP folders (`SiglipModel`): names, config.json and what it means.

The towers' blocks are named as in `hf_clip`. The attention-pool head keeps its query, key and value fused; the text
tower's projection is a linear layer with a bias. config.json leaves out what has its default value. The logit scale has
no cap: Google's own weights pass 100.

Source: transformers 5, models/siglip/configuration_siglip.py and modeling_siglip.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ostension.errors import CheckpointError
from ostension.files import read_json
from ostension.formats import hf_common
from ostension.formats._blocks import rename, split_block, split_heads
from ostension.formats.facts import Fact, Reading, family_tokenizer
from ostension.formats.hf_clip import BLOCK, HEADS, TOWERS
from ostension.formats.settings import integer
from ostension.formats.table import Entry, same, scalar, transposed
from ostension.model.config import ModelConfig, VitConfig

NAME = "siglip"
# What every SigLIP tower has, in the terms of `VitConfig` and `TextConfig`.
VISION_FORM: dict[str, Any] = {"class_token": False, "ln_pre": False, "pool": "map", "patch_bias": True, "projection": False}
TEXT_FORM: dict[str, Any] = {"causal": False, "pool": "last", "projection_bias": True}
INITIAL = {"init_logit_scale": math.log(10), "init_logit_bias": -10.0}
NO_CAP = Fact(None, "the layout (the sigmoid loss has no cap)")
_POOL = {
    "probe": "probe",
    "attn.in_proj_weight": "attention.in_proj_weight",
    "attn.in_proj_bias": "attention.in_proj_bias",
    "attn.out_proj.weight": "attention.out_proj.weight",
    "attn.out_proj.bias": "attention.out_proj.bias",
    "ln.weight": "layernorm.weight",
    "ln.bias": "layernorm.bias",
    "mlp.c_fc.weight": "mlp.fc1.weight",
    "mlp.c_fc.bias": "mlp.fc1.bias",
    "mlp.c_proj.weight": "mlp.fc2.weight",
    "mlp.c_proj.bias": "mlp.fc2.bias",
}
_SAME = {
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.conv1.bias": "vision_model.embeddings.patch_embedding.bias",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    **{f"visual.attn_pool.{ours}": f"vision_model.head.{theirs}" for ours, theirs in _POOL.items()},
    "text.token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "text.positional_embedding": "text_model.embeddings.position_embedding.weight",
    "text.ln_final.weight": "text_model.final_layer_norm.weight",
    "text.ln_final.bias": "text_model.final_layer_norm.bias",
    "text.text_projection_bias": "text_model.head.bias",
}

_TEXT_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 64,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "projection_size": None,
}
_VISION_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "vision_use_head": True,
}


def entry(name: str) -> Entry:
    """Our parameter `name` in Hugging Face's names."""
    if name in ("logit_scale", "logit_bias"):
        return scalar(name, name, (1,))
    if name in _SAME:
        return same(name, _SAME[name])
    if name == "text.text_projection":
        return transposed(name, "text_model.head.weight")
    block = split_block(name)
    if block is None:
        return same(name, name)  # a part that this layout does not have
    prefix = f"{TOWERS[block[0]]}.encoder.layers.{block[1]}."
    return split_heads(name, prefix, block[2], HEADS) or rename(name, prefix, block[2], BLOCK)


def read(state: Mapping[str, Tensor], path: Path, config_path: Path, tree: Mapping[str, Any]) -> Reading:
    """The architecture and the facts in config.json and its neighbours."""
    vision = hf_common.sub_config(tree, "vision", _VISION_DEFAULTS, config_path)
    text = hf_common.sub_config(tree, "text", _TEXT_DEFAULTS, config_path)
    if vision["vision_use_head"] is not True:
        raise CheckpointError("vision_use_head is false", source=config_path, expected="SigLIP with its attention-pool head")
    embed_dim = text["hidden_size"] if text["projection_size"] is None else integer(text, "projection_size", config_path)
    reading = Reading(
        path=path,
        layout=NAME,
        embed_dim=embed_dim,
        settings=dict(INITIAL),
        vision=hf_common.vision_settings(vision, config_path) | VISION_FORM,
        text=hf_common.text_settings(text, config_path) | TEXT_FORM,
    )
    hf_common.add_activations(reading, vision, text, config_path)
    reading.facts["logit_scale_cap"] = NO_CAP
    hf_common.add_preprocess(reading, path.parent, crops=False)
    add_tokenizer(reading, path.parent)
    return reading


def add_tokenizer(reading: Reading, folder: Path) -> None:
    """The tokenizer, if the folder has one's files: SigLIP pads with its end token, SigLIP 2 (Gemma's vocabulary) with 0."""
    found = [name for name in ("spiece.model", "tokenizer.model", "tokenizer.json") if (folder / name).is_file()]
    if not found:
        hf_common.add_clip_tokenizer(reading, folder)  # a small model of ours can have CLIP's byte pairs
        return
    family, path = "siglip", folder / "tokenizer_config.json"
    if path.is_file():
        tree = read_json(path, CheckpointError)
        kind = str(tree.get("tokenizer_class", "")) if isinstance(tree, Mapping) else ""
        family = "siglip2" if "Gemma" in kind or "Siglip2" in kind else "siglip"
    tokenizer = family_tokenizer(family, reading.text["vocab_size"], reading.text["context_length"], reading.path)
    reading.facts["tokenizer"] = Fact(tokenizer, found[0])


def check_writable(config: ModelConfig, target: Path, kind: str = "Hugging Face's SigLIP") -> None:
    """Raise unless `config` has SigLIP's form.

    Raises:
        CheckpointError: naming the setting that the layout cannot say.
    """
    vision, text = config.vision, config.text
    if not isinstance(vision, VitConfig):
        hf_common.refuse({"vision.kind": (vision.kind, "vit")}, kind, target)
    wanted: dict[str, tuple[object, object]] = {
        f"vision.{name}": (getattr(vision, name), value) for name, value in VISION_FORM.items()
    }
    wanted |= {f"text.{name}": (getattr(text, name), value) for name, value in TEXT_FORM.items()}
    wanted["a bias of the logits"] = (config.init_logit_bias is not None, True)
    wanted["logit_scale_cap"] = (config.logit_scale_cap, None)
    hf_common.refuse(wanted, kind, target)


def write_config(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """config.json of a model that `check_writable` accepts."""
    assert isinstance(config.vision, VitConfig)
    text = hf_common.tower_tree(config.text) | {
        "model_type": "siglip_text_model",
        "vocab_size": config.text.vocab_size,
        "projection_size": config.embed_dim,
        "max_position_embeddings": config.text.context_length,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    vision = hf_common.tower_tree(config.vision) | {
        "model_type": "siglip_vision_model",
        "image_size": config.vision.image_size,
        "patch_size": config.vision.patch_size,
        "num_channels": 3,
    }
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "dtype": dtype,
        "text_config": text,
        "vision_config": vision,
    }
