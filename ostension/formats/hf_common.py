"""What Hugging Face's CLIP and SigLIP folders share: sub-configurations, the image processor's file, tokenizer files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ostension.errors import CheckpointError, ConfigError
from ostension.files import read_json
from ostension.formats.facts import Fact, Reading, family_tokenizer, mlp_ratio
from ostension.formats.settings import integer, number, one_of, table, triple
from ostension.image.transforms import PreprocessConfig
from ostension.model.config import TextConfig, VitConfig

# Hugging Face's names of the activations; "gelu_new" and "gelu_pytorch_tanh" are the same function.
ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
HF_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # PIL's numbers
PREPROCESSOR = "preprocessor_config.json"
END_TOKEN = "<|endoftext|>"


def sub_config(tree: Mapping[str, Any], tower: str, defaults: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A tower's settings with the format's defaults, old `*_config_dict` entries on top."""
    settings = dict(defaults)
    for key in (f"{tower}_config", f"{tower}_config_dict"):
        own = table(tree, key, path, optional=True)
        # An entry that is null stands for the default, as in the exports of old releases.
        settings |= {name: value for name, value in own.items() if name in defaults and value is not None}
    return settings


def vision_settings(settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Settings of `VitConfig` that both image towers share."""
    return _tower(settings, path) | {name: integer(settings, name, path) for name in ("image_size", "patch_size")}


def text_settings(settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Settings of `TextConfig` that both text towers share."""
    return _tower(settings, path) | {
        "context_length": integer(settings, "max_position_embeddings", path),
        "vocab_size": integer(settings, "vocab_size", path),
    }


def _tower(settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    width, heads = integer(settings, "hidden_size", path), integer(settings, "num_attention_heads", path)
    if width % heads:
        raise CheckpointError(f"num_attention_heads is {heads}", source=path, expected=f"a divisor of hidden_size {width}")
    return {
        "width": width,
        "layers": integer(settings, "num_hidden_layers", path),
        "head_width": width // heads,
        "mlp_ratio": mlp_ratio(width, integer(settings, "intermediate_size", path)),
        "norm_eps": number(settings, "layer_norm_eps", path),
    }


def tower_tree(config: VitConfig | TextConfig) -> dict[str, Any]:
    """What both towers' sub-configurations hold."""
    return {
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "hidden_act": HF_ACTIVATIONS[config.activation],
        "layer_norm_eps": config.norm_eps,
    }


def add_activations(reading: Reading, vision: Mapping[str, Any], text: Mapping[str, Any], path: Path) -> None:
    """The activations that config.json names."""
    for tower, settings in (("vision", vision), ("text", text)):
        reading.facts[f"{tower}.activation"] = Fact(one_of(settings, "hidden_act", ACTIVATIONS, path), path.name)


def add_preprocess(reading: Reading, folder: Path, *, crops: bool) -> None:
    """The preprocessing that preprocessor_config.json describes, if the folder has one.

    Args:
        crops: whether a processor that says nothing crops the middle (CLIP's does, SigLIP's does not).
    """
    path = folder / PREPROCESSOR
    if not path.is_file():
        return
    tree = read_json(path, CheckpointError)
    if not isinstance(tree, Mapping):
        raise CheckpointError("is not a table of settings", source=path)
    for name in ("do_resize", "do_rescale", "do_normalize"):
        if tree.get(name, True) is False:
            raise CheckpointError(
                f"{name} is false", source=path, expected="pictures that are resized, scaled to 0..1 and normalised"
            )
    if abs(number({"rescale_factor": 1 / 255, **tree}, "rescale_factor", path) - 1 / 255) > 1e-9:
        raise CheckpointError(f"rescale_factor is {tree['rescale_factor']!r}", source=path, expected="1/255")
    try:
        reading.facts["preprocess"] = Fact(_preprocess(tree, path, crops), path.name)
    except ConfigError as error:
        raise CheckpointError(error.what, source=path, expected=error.expected) from None


def _preprocess(tree: Mapping[str, Any], path: Path, crops: bool) -> PreprocessConfig:
    crops = bool(crops if tree.get("do_center_crop") is None else tree["do_center_crop"])
    size, squash = _size(tree.get("size"), path)
    crop = _size(tree.get("crop_size", size), path)[0] if crops else size
    if crop != size and (squash or crop > size):
        raise CheckpointError(f"crop_size is {crop} and size is {size}", source=path, expected="the same, or a longer size")
    if not crops and not squash:
        raise CheckpointError("pictures keep their shape (do_center_crop is false)", source=path, expected="square pictures")
    interpolation: Any = one_of({"resample": 3, **tree}, "resample", _RESAMPLE, path)
    return PreprocessConfig(
        image_size=crop,
        short_side=None if crop == size else size,
        mean=triple(tree, "image_mean", path),
        std=triple(tree, "image_std", path),
        interpolation=interpolation,
        resize="squash" if squash else "shortest",
        crop_rounding="floor",
    )


def _size(size: Any, path: Path) -> tuple[int, bool]:
    """Pixels a side, and whether both sides are forced to it. Old releases wrote a number for the short side."""
    if isinstance(size, Mapping) and "shortest_edge" in size:
        return integer(size, "shortest_edge", path), False
    if isinstance(size, Mapping) and {"height", "width"} <= set(size):
        if size["height"] != size["width"]:
            raise CheckpointError(f"size is {dict(size)}", source=path, expected="a square")
        return integer(size, "height", path), True
    if isinstance(size, int):
        return integer({"size": size}, "size", path), False
    raise CheckpointError(f"size is {size!r}", source=path, expected="shortest_edge, or height and width")


def preprocess_tree(config: PreprocessConfig, kind: str, target: Path) -> dict[str, Any]:
    """preprocessor_config.json for `config`.

    Raises:
        CheckpointError: for padding to a square, which this layout cannot say.
    """
    if config.resize == "longest":
        refuse({"preprocess.resize": (config.resize, "shortest")}, "a Hugging Face image processor", target)
    side = {"height": config.image_size, "width": config.image_size}
    squash = config.resize == "squash"
    tree = {
        "image_processor_type": f"{kind}ImageProcessor",
        "processor_class": f"{kind}Processor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": side if squash else {"shortest_edge": config.short_side or config.image_size},
        "do_center_crop": not squash,
        "resample": next(number for number, name in _RESAMPLE.items() if name == config.interpolation),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.mean),
        "image_std": list(config.std),
    }
    return tree if squash else tree | {"crop_size": side}


def add_clip_tokenizer(reading: Reading, folder: Path) -> None:
    """The tokenizer, if the folder has one's files: Hugging Face's cleaning, and the pad token that they name."""
    found = [name for name in ("tokenizer.json", "vocab.json") if (folder / name).is_file()]
    if not found:
        return
    tokenizer = family_tokenizer("hf", reading.text["vocab_size"], reading.text["context_length"], reading.path)
    pad = END_TOKEN
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            tree = read_json(folder / name, CheckpointError)
            token = tree.get("pad_token") if isinstance(tree, Mapping) else None
            token = token.get("content") if isinstance(token, Mapping) else token
            pad = pad if token is None else token
    if pad not in (END_TOKEN, "!"):
        raise CheckpointError(f"the pad token is {pad!r}", source=folder, expected=f"{END_TOKEN!r} or '!'")
    import dataclasses

    chosen = dataclasses.replace(tokenizer, pad="end" if pad == END_TOKEN else "zero")  # type: ignore[arg-type]
    reading.facts["tokenizer"] = Fact(chosen, found[0])


def refuse(wanted: Mapping[str, tuple[object, object]], kind: str, target: Path) -> None:
    """Raise for the first setting (found, expected) that a layout cannot say."""
    for name, (found, expected) in wanted.items():
        if found != expected:
            raise CheckpointError(
                f"{kind} cannot say {name} = {found!r}", source=target, expected=repr(expected), fix="write --to ostension"
            )
