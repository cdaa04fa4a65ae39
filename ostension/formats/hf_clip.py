"""Hugging Face's CLIP folders (`CLIPModel`): names, config.json and what it means.

Facts of the format that are easy to miss: `hidden_act` is quick_gelu where it is absent; `eos_token_id` 2 is a historical
error that means "read at the highest id"; projections are transposed against ours; a `*_config_dict` left over by old
releases overrides the `*_config` beside it. There is no residual network in this layout.

Source: transformers 5, models/clip/configuration_clip.py and modeling_clip.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ostension.errors import CheckpointError
from ostension.formats import hf_common
from ostension.formats._blocks import rename, split_block, split_heads
from ostension.formats.facts import Reading
from ostension.formats.openai import read_cap
from ostension.formats.settings import integer
from ostension.formats.table import Entry, same, scalar, transposed
from ostension.model.config import ModelConfig, VitConfig

NAME = "hf_clip"
TOWERS = {"visual": "vision_model", "text": "text_model"}
BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
HEADS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_SAME = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # so spelt
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "text.token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "text.positional_embedding": "text_model.embeddings.position_embedding.weight",
    "text.ln_final.weight": "text_model.final_layer_norm.weight",
    "text.ln_final.bias": "text_model.final_layer_norm.bias",
}
_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text.text_projection": "text_projection.weight"}

_TEXT_DEFAULTS = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}
_VISION_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}


def entry(name: str) -> Entry:
    """Our parameter `name` in Hugging Face's names."""
    if name in ("logit_scale", "logit_bias"):
        return scalar(name, name)
    if name in _SAME:
        return same(name, _SAME[name])
    if name in _TRANSPOSED:
        return transposed(name, _TRANSPOSED[name])
    block = split_block(name)
    if block is None:
        return same(name, name)  # a part that this layout does not have, e.g. of a residual network
    prefix = f"{TOWERS[block[0]]}.encoder.layers.{block[1]}."
    return split_heads(name, prefix, block[2], HEADS) or rename(name, prefix, block[2], BLOCK)


def read(state: Mapping[str, Tensor], path: Path, config_path: Path, tree: Mapping[str, Any]) -> Reading:
    """The architecture and the facts in config.json and its neighbours."""
    vision = hf_common.sub_config(tree, "vision", _VISION_DEFAULTS, config_path)
    text = hf_common.sub_config(tree, "text", _TEXT_DEFAULTS, config_path)
    settings = hf_common.text_settings(text, config_path)
    if text["eos_token_id"] != 2:
        settings |= {"pool": "eos", "eos_id": integer(text, "eos_token_id", config_path, at_least=0)}
    embed_dim = integer({"projection_dim": 512, **tree}, "projection_dim", config_path)
    reading = Reading(
        path=path, layout=NAME, embed_dim=embed_dim, vision=hf_common.vision_settings(vision, config_path), text=settings
    )
    hf_common.add_activations(reading, vision, text, config_path)
    reading.facts["logit_scale_cap"] = read_cap(state)
    hf_common.add_preprocess(reading, path.parent, crops=True)
    hf_common.add_clip_tokenizer(reading, path.parent)
    return reading


def check_writable(config: ModelConfig, target: Path) -> None:
    """Raise unless this layout can say everything that `config` says.

    Raises:
        CheckpointError: naming the setting that it cannot say.
    """
    vision, text = config.vision, config.text
    if not isinstance(vision, VitConfig):
        raise CheckpointError(
            "Hugging Face's CLIP has no residual network",
            source=target,
            expected="a model with a vision transformer",
            fix="write --to open_clip or ostension",
        )
    wanted: dict[str, tuple[object, object]] = {
        "vision.class_token": (vision.class_token, True),
        "vision.ln_pre": (vision.ln_pre, True),
        "vision.pool": (vision.pool, "class"),
        "vision.patch_bias": (vision.patch_bias, False),
        "vision.projection": (vision.projection, True),
        "text.causal": (text.causal, True),
        "text.projection_bias": (text.projection_bias, False),
        "init_logit_bias": (config.init_logit_bias, None),
    }
    hf_common.refuse(wanted, "Hugging Face's CLIP", target)
    if text.pool == "last":
        hf_common.refuse({"text.pool": (text.pool, "argmax")}, "Hugging Face's CLIP", target)


def write_config(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """config.json of a model that `check_writable` accepts."""
    assert isinstance(config.vision, VitConfig)
    text = hf_common.tower_tree(config.text) | {
        "model_type": "clip_text_model",
        "vocab_size": config.text.vocab_size,
        "projection_dim": config.embed_dim,
        "max_position_embeddings": config.text.context_length,
        "bos_token_id": config.text.vocab_size - 2,
        "pad_token_id": 1,
        "eos_token_id": 2 if config.text.pool == "argmax" else config.text.eos_id,
    }
    vision = hf_common.tower_tree(config.vision) | {
        "model_type": "clip_vision_model",
        "image_size": config.vision.image_size,
        "patch_size": config.vision.patch_size,
        "num_channels": 3,
        "projection_dim": config.embed_dim,
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embed_dim,
        "logit_scale_init_value": config.init_logit_scale,
        "dtype": dtype,
        "text_config": text,
        "vision_config": vision,
    }
