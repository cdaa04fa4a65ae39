"""Writing open_clip's hub folders: the configuration and the names, or a refusal that names the setting.

A model in CLIP's form is written with OpenAI's names, which every release and every tool reads; one with a text tower of
its own form for `CustomTextCLIP`; SigLIP with a timm image tower.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ostension.errors import CheckpointError
from ostension.formats import open_clip, openai, timm_siglip
from ostension.formats.hf_common import refuse
from ostension.formats.siglip import VISION_FORM
from ostension.formats.table import Layout
from ostension.model.config import ModelConfig, ResNetConfig, VitConfig
from ostension.text.tokenizer import SentencePieceConfig, TokenizerConfig


def write_config(config: ModelConfig, target: Path) -> dict[str, Any]:
    """open_clip_config.json for `config`.

    Raises:
        CheckpointError: naming the setting that the layout cannot say.
    """
    model: dict[str, Any] = {"embed_dim": config.embed_dim}
    text_cfg = _write_text(config)
    if is_siglip(config):
        assert isinstance(config.vision, VitConfig)
        vision_cfg = timm_siglip.write_vision_cfg(config.vision)
    else:
        vision_cfg = _write_vision(config, target)
        if _quick(config, target):
            model["quick_gelu"] = True
    if is_siglip(config) and config.text.activation == "quick_gelu":
        model["quick_gelu"] = True
    if not is_plain(config):
        model["custom_text"] = True
    model |= {"vision_cfg": vision_cfg, "text_cfg": text_cfg, "init_logit_scale": config.init_logit_scale}
    if config.init_logit_bias is not None:
        model["init_logit_bias"] = config.init_logit_bias
    preprocess = config.preprocess
    refuse({"preprocess.short_side": (preprocess.short_side, None)}, "open_clip's preprocessing", target)
    return {
        "model_cfg": model,
        "preprocess_cfg": {
            "size": [preprocess.image_size, preprocess.image_size],
            "mode": "RGB",
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
            "interpolation": preprocess.interpolation,
            "resize_mode": preprocess.resize,
            "fill_color": preprocess.fill,
        },
    }


def write_layout(config: ModelConfig) -> Layout:
    """The names in which `config`'s weights are written."""
    if is_siglip(config):
        return timm_siglip.entry
    if is_plain(config):
        return openai.entry
    return open_clip.biased_entry if config.text.projection_bias else open_clip.entry


def is_plain(config: ModelConfig) -> bool:
    """Whether open_clip's first class, `CLIP`, can hold it, which every release and every tool reads."""
    text = config.text
    return not is_siglip(config) and text.causal and text.pool == "argmax" and not text.projection_bias


def is_siglip(config: ModelConfig) -> bool:
    """Whether the image tower has SigLIP's form, for which open_clip uses timm."""
    vision = config.vision
    return isinstance(vision, VitConfig) and all(getattr(vision, name) == value for name, value in VISION_FORM.items())


def _write_vision(config: ModelConfig, target: Path) -> dict[str, Any]:
    vision = config.vision
    if isinstance(vision, ResNetConfig):
        refuse({"vision.pool": (vision.pool, "attention")}, "open_clip's ResNet", target)
        return {
            "image_size": vision.image_size,
            "layers": list(vision.layers),
            "width": vision.width,
            "head_width": vision.head_width,
            "patch_size": None,
        }
    refuse(
        {
            "vision.class_token": (vision.class_token, True),
            "vision.pool": (vision.pool, "class"),
            "vision.ln_pre": (vision.ln_pre, True),
            "vision.patch_bias": (vision.patch_bias, False),
            "vision.projection": (vision.projection, True),
        },
        "open_clip's vision transformer",
        target,
    )
    cfg: dict[str, Any] = {
        "image_size": vision.image_size,
        "layers": vision.layers,
        "width": vision.width,
        "head_width": vision.head_width,
        "mlp_ratio": vision.mlp_ratio,
        "patch_size": vision.patch_size,
    }
    return cfg | _common(vision.activation, vision.norm_eps)


def _write_text(config: ModelConfig) -> dict[str, Any]:
    text = config.text
    cfg: dict[str, Any] = {
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "width": text.width,
        "heads": text.heads,
        "layers": text.layers,
        "mlp_ratio": text.mlp_ratio,
        "pool_type": text.pool,
    }
    if text.pool == "eos":
        cfg["eos_id"] = text.eos_id
    if not text.causal:
        cfg["no_causal_mask"] = True
    if text.projection_bias:
        cfg["proj_bias"] = True
    tokenizer = config.tokenizer
    if isinstance(tokenizer, SentencePieceConfig):
        cfg["hf_tokenizer_name"] = "timm/ViT-B-16-SigLIP" if tokenizer.pad_id else "timm/ViT-B-16-SigLIP2"
        if tokenizer.canonicalize:
            cfg["tokenizer_kwargs"] = {"clean": "canonicalize"}
    elif tokenizer.mode == "hf" or tokenizer.num_merges != TokenizerConfig().num_merges:
        # open_clip's own tokenizer has OpenAI's cleaning and the whole vocabulary; any other comes from the folder.
        cfg["hf_tokenizer_name"] = "openai/clip-vit-base-patch32"
    return cfg | _common(text.activation, text.norm_eps)


def _common(activation: str, epsilon: float) -> dict[str, Any]:
    cfg: dict[str, Any] = {"act_kwargs": {"approximate": "tanh"}} if activation == "gelu_tanh" else {}
    return cfg if epsilon == 1e-5 else cfg | {"norm_kwargs": {"eps": epsilon}}


def _quick(config: ModelConfig, target: Path) -> bool:
    """Whether both towers use QuickGELU, which open_clip says once for both."""
    activations = {config.text.activation}
    if isinstance(config.vision, VitConfig):
        activations.add(config.vision.activation)
    if "quick_gelu" in activations and len(activations) > 1:
        raise CheckpointError(
            f"open_clip cannot say two activations, {' and '.join(sorted(activations))}",
            source=target,
            expected="quick_gelu in both towers or in none",
            fix="write --to ostension or hf",
        )
    return "quick_gelu" in activations
