"""open_clip's layouts: plain `CLIP` (OpenAI's names), `CustomTextCLIP` (text names under `text.`), hub folders.

A hub folder has `open_clip_config.json` beside the weights: `model_cfg` with the architecture, `preprocess_cfg` with the
preprocessing. What a key's absence means is open_clip's own default, and that is a fact of the format: without
`quick_gelu` the activation is exact GELU. A setting that we cannot compute is refused by name; none is passed over.

Source: mlfoundations/open_clip, src/open_clip/model.py (CLIPVisionCfg, CLIPTextCfg), transform.py, factory.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ostension.config import from_tree
from ostension.errors import CheckpointError, ConfigError
from ostension.formats import hf_common, native, timm_siglip
from ostension.formats.facts import Fact, Reading, family_tokenizer, mlp_ratio
from ostension.formats.openai import read_cap
from ostension.formats.settings import integer, number, one_of, square, table
from ostension.formats.siglip import NO_CAP
from ostension.formats.table import Entry, same, scalar, transposed
from ostension.image.transforms import PreprocessConfig
from ostension.model.config import ResNetConfig
from ostension.text.tokenizer import SentencePieceConfig

NAME = "open_clip"
CONFIG = "open_clip_config.json"
# The order in which open_clip looks for the weights of a folder.
WEIGHT_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
_VISION_KEYS = {"image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size", "act_kwargs", "norm_kwargs"}
_TIMM_KEYS = {"image_size", "timm_model_name", "timm_model_pretrained", "timm_pool", "timm_proj", "timm_model_kwargs"}
_TEXT_KEYS = {
    "context_length",
    "vocab_size",
    "width",
    "heads",
    "layers",
    "mlp_ratio",
    "act_kwargs",
    "norm_kwargs",
    "no_causal_mask",
    "pool_type",
    "eos_id",
    "proj_bias",
    "hf_tokenizer_name",
    "tokenizer_kwargs",
    "pad_id",
    "bos_id",
}
# Settings that change nothing with these values: dropout in training, outputs beside the embedding, defaults written out.
_NEUTRAL = {
    "patch_dropout": None,
    "timm_drop": None,
    "timm_drop_path": None,
    "output_tokens": False,
    "pos_embed_type": "learnable",
    "text_arch": "clip",
    "proj_type": "linear",
    "custom_text": None,
    "image_seq_len": None,
    "timm_proj_bias": False,
    "variable_text": None,
}
_TOP_KEYS = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_scale", "init_logit_bias"}
# Neither is used in evaluation: the dtype that training computed in, and whether the logits have no bias by default.
_TOP_NEUTRAL = {"cast_dtype", "nonscalar_logit_scale", "output_dict"}


def entry(name: str) -> Entry:
    """Our parameter `name` in the names of `CustomTextCLIP`, which are ours but for a projection with a bias."""
    if name in ("logit_scale", "logit_bias"):
        return scalar(name, name)
    return same(name, name)


def biased_entry(name: str) -> Entry:
    """As `entry`, for a text projection with a bias, which open_clip keeps as a linear layer."""
    if name == "text.text_projection":
        return transposed(name, "text.text_projection.weight")
    return same(name, "text.text_projection.bias") if name == "text.text_projection_bias" else entry(name)


def read_bare(state: Mapping[str, Tensor], path: Path) -> Reading:
    """`CustomTextCLIP` with its own towers, without a configuration: the architecture from the shapes, nothing else."""
    vision, heads = native.read_vision(state, path, NAME)
    text, embed_dim = native.read_text(state, path, NAME, "text.")
    reading = Reading(path=path, layout=NAME, embed_dim=embed_dim, vision=vision, text=text)
    reading.facts |= {"head_width": heads, "logit_scale_cap": read_cap(state)}
    if "logit_bias" in state:
        reading.settings["init_logit_bias"] = float(state["logit_bias"])
    return reading


def read(state: Mapping[str, Tensor], path: Path, config_path: Path, tree: Any) -> Reading:
    """The architecture and the facts in open_clip_config.json.

    Raises:
        CheckpointError: for a malformed file, or a setting that this library cannot compute.
    """
    model = table(tree, "model_cfg", config_path)
    unknown = [key for key in model if key not in _TOP_KEYS | _TOP_NEUTRAL]
    if unknown:
        raise _unsupported(f"model_cfg.{unknown[0]}", model[unknown[0]], config_path)
    vision_cfg, text_cfg = table(model, "vision_cfg", config_path), table(model, "text_cfg", config_path)
    quick = model.get("quick_gelu", False) is True
    embed_dim = integer(model, "embed_dim", config_path)
    settings = {
        name: number(model, name, config_path)
        for name in ("init_logit_scale", "init_logit_bias")
        if model.get(name) is not None
    }
    timm = bool(vision_cfg.get("timm_model_name"))
    reading = Reading(
        path=path, layout=NAME, embed_dim=embed_dim, vision={}, text=_read_text(text_cfg, config_path), settings=settings
    )
    reading.facts["text.activation"] = _activation(text_cfg, quick, config_path)
    if timm:
        _check_keys("vision_cfg", vision_cfg, _TIMM_KEYS, config_path)
        # timm's own settings hold the heads where a tower is not one of the published sizes.
        own = table(vision_cfg, "timm_model_kwargs", config_path, optional=True)
        heads = integer(own, "num_heads", config_path) if "num_heads" in own else None
        size = integer({"image_size": 224, **vision_cfg}, "image_size", config_path)
        reading.layout, reading.vision = timm_siglip.NAME, timm_siglip.read_vision(state, path, heads)
        # The grid hides the pixels that no patch covers: 384 pixels make 27 patches of 14, as 378 do.
        vision, patch = reading.vision, reading.vision["patch_size"]
        grid = vision["image_size"] // patch
        if size // patch != grid:
            raise CheckpointError(
                f"vision_cfg.image_size is {size}, the weights have {grid} x {grid} patches of {patch}", source=config_path
            )
        vision["image_size"] = size
        reading.settings = timm_siglip.INITIAL | settings
        reading.facts["vision.activation"] = timm_siglip.vision_activation(vision_cfg, config_path)
        reading.facts["logit_scale_cap"] = NO_CAP
    else:
        reading.vision = _read_vision(vision_cfg, config_path)
        reading.facts["vision.activation"] = _activation(vision_cfg, quick, config_path)
        reading.facts["logit_scale_cap"] = read_cap(state) if "init_logit_bias" not in settings else NO_CAP
    if isinstance(tree.get("preprocess_cfg"), Mapping):
        reading.facts["preprocess"] = _read_preprocess(tree["preprocess_cfg"], reading.image_size, config_path)
    _add_tokenizer(reading, text_cfg, config_path)
    return reading


def _read_vision(cfg: Mapping[str, Any], path: Path) -> dict[str, Any] | ResNetConfig:
    _check_keys("vision_cfg", cfg, _VISION_KEYS, path)
    cfg = {"image_size": 224, "layers": 12, "width": 768, "head_width": 64, "mlp_ratio": 4.0, "patch_size": 16, **cfg}
    if isinstance(cfg["layers"], list):
        counts = [integer({"layers": count}, "layers", path) for count in cfg["layers"]]
        if len(counts) != 4:
            raise CheckpointError(f"vision_cfg.layers is {counts}", source=path, expected="a number for each of four stages")
        layers = (counts[0], counts[1], counts[2], counts[3])
        try:
            return ResNetConfig(
                image_size=integer(cfg, "image_size", path),
                layers=layers,
                width=integer(cfg, "width", path),
                head_width=integer(cfg, "head_width", path),
            )
        except ConfigError as error:
            raise CheckpointError(f"vision_cfg cannot be a residual network ({error})", source=path) from None
    width = integer(cfg, "width", path)
    return {name: integer(cfg, name, path) for name in ("image_size", "patch_size", "width", "layers", "head_width")} | {
        "mlp_ratio": _mlp_ratio(cfg, width, path),
        "norm_eps": _epsilon(cfg, path),
    }


def _read_text(cfg: Mapping[str, Any], path: Path) -> dict[str, Any]:
    if cfg.get("hf_model_name"):
        raise _unsupported("text_cfg.hf_model_name", cfg["hf_model_name"], path)
    _check_keys("text_cfg", cfg, _TEXT_KEYS, path)
    cfg = {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 512,
        "heads": 8,
        "layers": 12,
        "mlp_ratio": 4.0,
        "pool_type": "argmax",
        **cfg,
    }
    width, heads = integer(cfg, "width", path), integer(cfg, "heads", path)
    if width % heads:
        raise CheckpointError(f"text_cfg.heads is {heads}", source=path, expected=f"a divisor of the width {width}")
    pool = one_of(cfg, "pool_type", {"argmax": "argmax", "eos": "eos", "last": "last"}, path)
    settings = {name: integer(cfg, name, path) for name in ("context_length", "vocab_size", "width", "layers")}
    return settings | {
        "head_width": width // heads,
        "mlp_ratio": _mlp_ratio(cfg, width, path),
        "pool": pool,
        "eos_id": integer(cfg, "eos_id", path, at_least=0) if pool == "eos" else None,
        "causal": not cfg.get("no_causal_mask", False),
        "projection_bias": bool(cfg.get("proj_bias", False)),
        "norm_eps": _epsilon(cfg, path),
    }


def _mlp_ratio(cfg: Mapping[str, Any], width: int, path: Path) -> float:
    hidden = int(width * number(cfg, "mlp_ratio", path))
    if hidden < 1:
        raise CheckpointError(f"mlp_ratio is {cfg['mlp_ratio']!r}", source=path, expected="a positive number")
    return mlp_ratio(width, hidden)


def _activation(cfg: Mapping[str, Any], quick: bool, path: Path) -> Fact:
    own = cfg.get("act_kwargs")
    if own is None:
        return Fact("quick_gelu" if quick else "gelu", f"{path.name} ({'quick_gelu' if quick else 'no quick_gelu'})")
    if not quick and own == {"approximate": "tanh"}:
        return Fact("gelu_tanh", f"{path.name} (act_kwargs)")
    if not quick and own in ({}, {"approximate": "none"}):
        return Fact("gelu", f"{path.name} (act_kwargs)")
    raise _unsupported("act_kwargs", own, path)


def _read_preprocess(cfg: Mapping[str, Any], image_size: int, path: Path) -> Fact:
    size = square(cfg.get("size", image_size))
    names = {"mean": "mean", "std": "std", "interpolation": "interpolation", "resize_mode": "resize", "fill_color": "fill"}
    unknown = [key for key in cfg if key not in {*names, "size", "mode"}]
    if unknown or cfg.get("mode", "RGB") != "RGB":
        key = unknown[0] if unknown else "mode"
        raise _unsupported(f"preprocess_cfg.{key}", cfg[key], path)
    values = {
        ours: tuple(cfg[theirs]) if isinstance(cfg[theirs], list) else cfg[theirs]
        for theirs, ours in names.items()
        if theirs in cfg
    }
    try:
        # open_clip resizes and crops in the picture's own mode and converts to RGB last, as OpenAI's code does.
        return Fact(
            from_tree(PreprocessConfig, {"image_size": size, "mode": "openai-exact", "alpha": "drop", **values}, path),
            path.name,
        )
    except ConfigError as error:
        raise CheckpointError(error.what, source=path, expected=error.expected) from None


def _add_tokenizer(reading: Reading, cfg: Mapping[str, Any], path: Path) -> None:
    name, options = cfg.get("hf_tokenizer_name"), table(cfg, "tokenizer_kwargs", path, optional=True)
    vocab_size, context_length = reading.text["vocab_size"], reading.text["context_length"]
    if not name:
        if not options:  # open_clip's own tokenizer, which cleans text as OpenAI's does
            reading.facts["tokenizer"] = Fact(family_tokenizer("openai", vocab_size, context_length, path), path.name)
        return
    family = None
    if "siglip" in str(name).lower():
        family = "siglip2" if "siglip2" in str(name).lower() else "siglip"
    elif "clip" in str(name).lower() and 514 <= vocab_size <= 49408:
        family = "hf"
    if family is None:
        return
    if family == "hf":
        # open_clip takes the folder's own files where it has them.
        hf_common.add_clip_tokenizer(reading, path.parent)
        if "tokenizer" in reading.facts:
            return
    tokenizer = family_tokenizer(family, vocab_size, context_length, path)
    if isinstance(tokenizer, SentencePieceConfig):
        tokenizer = dataclasses.replace(tokenizer, canonicalize=options.get("clean") == "canonicalize")
    reading.facts["tokenizer"] = Fact(tokenizer, f"{path.name} (hf_tokenizer_name {name})")


def _check_keys(name: str, cfg: Mapping[str, Any], known: set[str], path: Path) -> None:
    for key, value in cfg.items():
        if key in known:
            continue
        neutral = _NEUTRAL.get(key, False) if key in _NEUTRAL else None
        # None in the table of neutral settings: any value is; elsewhere an unused setting is written as null or false.
        if (key in _NEUTRAL and neutral is None) or value == neutral or value in (None, False):
            continue
        raise _unsupported(f"{name}.{key}", value, path)


def _unsupported(key: str, value: object, path: Path) -> CheckpointError:
    return CheckpointError(
        f"{key} is {value!r}, which this library does not compute", source=path, expected="CLIP or SigLIP as published"
    )


def _epsilon(cfg: Mapping[str, Any], path: Path) -> float:
    options = table(cfg, "norm_kwargs", path, optional=True)
    if set(options) - {"eps"}:
        raise _unsupported("norm_kwargs", dict(options), path)
    return number({"eps": 1e-5, **options}, "eps", path)
