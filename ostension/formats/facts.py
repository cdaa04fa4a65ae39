"""What a file says about its model beyond the weights, what it does not say, and where each answer came from.

A layout's reader gives a `Reading`: the architecture, and a `Fact` for everything that shapes cannot tell. `resolve` adds
what the caller was asked for, and refuses to go on while something is unknown.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from ostension.config import to_tree
from ostension.errors import CheckpointError, ConfigError, unknown_name
from ostension.image.transforms import OPENAI_MEAN, OPENAI_STD, PreprocessConfig
from ostension.model.config import ACTIVATIONS, ModelConfig, ResNetConfig, TextConfig, VitConfig
from ostension.text.tokenizer import SentencePieceConfig, TokenizerConfig

Tokenizers = TokenizerConfig | SentencePieceConfig

# How the published families prepare pictures (open_clip's table of pre-trained weights, and Hugging Face's processors).
_HALF = (0.5, 0.5, 0.5)
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
PREPROCESS_FAMILIES: dict[str, dict[str, Any]] = {
    "openai": {"mean": OPENAI_MEAN, "std": OPENAI_STD, "mode": "openai-exact", "alpha": "drop"},
    "siglip": {"mean": _HALF, "std": _HALF, "resize": "squash", "alpha": "drop"},
    "clipa": {**_IMAGENET, "interpolation": "bilinear", "resize": "squash", "mode": "openai-exact", "alpha": "drop"},
    "mobileclip": {
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "interpolation": "bilinear",
        "mode": "openai-exact",
        "alpha": "drop",
    },
    "pe": {
        "mean": _HALF,
        "std": _HALF,
        "interpolation": "bilinear",
        "resize": "squash",
        "mode": "openai-exact",
        "alpha": "drop",
    },
}
TOKENIZER_FAMILIES = ("openai", "hf", "siglip", "siglip2")
# Vocabularies of the two published sentencepiece models.
_SENTENCEPIECE: dict[str, dict[str, Any]] = {"siglip": {"pad_id": 1}, "siglip2": {"pad_id": 0, "canonicalize": False}}


@dataclasses.dataclass(frozen=True)
class Fact:
    """A value and where it came from."""

    value: Any
    origin: str


@dataclasses.dataclass(kw_only=True)
class Reading:
    """What a layout's reader found in a file and its neighbours.

    Attributes:
        path: the file that messages name.
        vision, text: settings of the towers without their activations; `vision` is whole where it is a ResNet.
        facts: of "vision.activation", "text.activation", "preprocess", "tokenizer", "logit_scale_cap", "head_width".
        settings: the remaining settings of `ModelConfig`.
    """

    path: Path
    layout: str
    embed_dim: int
    vision: dict[str, Any] | ResNetConfig
    text: dict[str, Any]
    facts: dict[str, Fact] = dataclasses.field(default_factory=dict)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def image_size(self) -> int:
        return self.vision.image_size if isinstance(self.vision, ResNetConfig) else self.vision["image_size"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """What the caller says about a file that does not say it itself.

    Attributes:
        activation: of both towers: quick_gelu, gelu or gelu_tanh. One that contradicts the file is refused.
        preprocess: a family (openai, siglip, clipa, mobileclip, pe) or a whole configuration; replaces the file's.
        tokenizer: a family (openai, hf, siglip, siglip2) or a whole configuration; replaces the file's.
    """

    activation: str | None = None
    preprocess: str | PreprocessConfig | None = None
    tokenizer: str | Tokenizers | None = None


def family_preprocess(name: str, image_size: int) -> PreprocessConfig:
    """How a published family prepares pictures.

    Raises:
        ConfigError: for an unknown family, with the nearest ones.
    """
    if name not in PREPROCESS_FAMILIES:
        raise unknown_name("preprocessing family", name, PREPROCESS_FAMILIES)
    return PreprocessConfig(image_size=image_size, **PREPROCESS_FAMILIES[name])


def family_tokenizer(name: str, vocab_size: int, context_length: int, path: Path) -> Tokenizers:
    """The tokenizer of a published family, for a model's vocabulary and context length.

    Raises:
        ConfigError: for an unknown family.
        CheckpointError: if the vocabulary cannot be the family's.
    """
    if name not in TOKENIZER_FAMILIES:
        raise unknown_name("tokenizer family", name, TOKENIZER_FAMILIES)
    smallest, largest = TokenizerConfig(num_merges=0).vocab_size, TokenizerConfig().vocab_size
    if name not in _SENTENCEPIECE and not smallest <= vocab_size <= largest:
        raise CheckpointError(
            f"the model has {vocab_size} token embeddings",
            source=path,
            expected=f"{smallest} to {largest} for CLIP's byte pairs",
        )
    try:
        if name in _SENTENCEPIECE:
            return SentencePieceConfig(context_length=context_length, vocab_size=vocab_size, **_SENTENCEPIECE[name])
        return TokenizerConfig(
            mode="hf" if name == "hf" else "openai",
            pad="end" if name == "hf" else "zero",
            num_merges=vocab_size - smallest,
            context_length=context_length,
        )
    except ConfigError as error:
        raise CheckpointError(error.what, source=path, expected=error.expected) from None


def mlp_ratio(width: int, hidden: int) -> float:
    """The shortest decimal `ratio` with int(width * ratio) == hidden, e.g. 4.3637 for 1408 and 6144."""
    for digits in range(1, 17):
        for number in (round(hidden / width, digits), math.ceil(hidden / width * 10**digits) / 10**digits):
            if int(width * number) == hidden:
                return number
    return math.nextafter(hidden / width, math.inf)


def scale_cap(value: float, epsilon: float) -> Fact:
    """The cap of the logit scale: training with CLIP's loss keeps it at 100; a file past that was made without."""
    if value <= math.log(100) * (1 + epsilon):
        return Fact(100.0, "the layout (CLIP's training caps it)")
    return Fact(None, f"the file's own logit scale {math.exp(value):.1f} is past CLIP's cap of 100")


def resolve(reading: Reading, asked: Asked) -> tuple[ModelConfig, dict[str, Fact]]:
    """The whole configuration, and every fact with its origin.

    Raises:
        CheckpointError: listing what neither the file nor the caller says, or an activation that contradicts the file.
        ConfigError: for an unknown family or activation.
    """
    facts = dict(reading.facts)
    if asked.activation is not None:
        _ask_activation(reading, facts, asked.activation)
    if asked.preprocess is not None:
        value = asked.preprocess
        value = family_preprocess(value, reading.image_size) if isinstance(value, str) else value
        facts["preprocess"] = Fact(value, "given")
    if asked.tokenizer is not None:
        name = asked.tokenizer
        if isinstance(name, str):
            facts["tokenizer"] = Fact(
                family_tokenizer(name, reading.text["vocab_size"], reading.text["context_length"], reading.path), "given"
            )
        else:
            facts["tokenizer"] = Fact(name, "given")
    missing = unknown_facts(reading, facts)
    if missing:
        raise CheckpointError(
            f"the file does not say its {' nor its '.join(missing)}, and shapes cannot tell",
            source=reading.path,
            fix=f"say it: {_say(missing)}; or once and for all: ostension model convert with {_flags(missing)}",
        )
    try:
        vision = reading.vision
        if not isinstance(vision, ResNetConfig):
            vision = VitConfig(**vision, activation=facts["vision.activation"].value)  # type: ignore[assignment]
        return ModelConfig(
            embed_dim=reading.embed_dim,
            vision=vision,  # type: ignore[arg-type]
            layout=reading.layout,
            preprocess=facts["preprocess"].value,
            text=TextConfig(**reading.text, activation=facts["text.activation"].value),
            tokenizer=facts["tokenizer"].value,
            logit_scale_cap=facts["logit_scale_cap"].value,
            **reading.settings,
        ), facts
    except ConfigError as error:
        raise CheckpointError(error.what, source=reading.path, expected=error.expected) from None


_CHOICES = {"activation": ACTIVATIONS, "preprocess": tuple(PREPROCESS_FAMILIES), "tokenizer": TOKENIZER_FAMILIES}


def _say(names: list[str]) -> str:
    return f"load(..., {', '.join(f'{name}=...' for name in names)})"


def _flags(names: list[str]) -> str:
    return " ".join(f"--{name} {'|'.join(_CHOICES[name])}" for name in names)


def unknown_facts(reading: Reading, facts: dict[str, Fact]) -> list[str]:
    """What has to be asked for, of "activation", "preprocess" and "tokenizer"."""
    towers = ["text.activation"] + ([] if isinstance(reading.vision, ResNetConfig) else ["vision.activation"])
    missing = ["activation"] if any(name not in facts for name in towers) else []
    return missing + [name for name in ("preprocess", "tokenizer") if name not in facts]


def facts_tree(facts: dict[str, Fact]) -> dict[str, Any]:
    """The facts as plain JSON values, for the provenance record."""
    return {name: {"value": to_tree(fact.value), "from": fact.origin} for name, fact in sorted(facts.items())}


def _ask_activation(reading: Reading, facts: dict[str, Fact], activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise unknown_name("activation", activation, ACTIVATIONS)
    for tower in ("vision", "text"):
        name = f"{tower}.activation"
        if tower == "vision" and isinstance(reading.vision, ResNetConfig):
            continue
        known = facts.get(name)
        if known is not None and known.value != activation:
            raise CheckpointError(
                f"the activation {activation!r} was given, but the {tower} tower's is {known.value!r} ({known.origin})",
                source=reading.path,
                fix="leave it out, or correct the file's configuration",
            )
        facts[name] = known or Fact(activation, "given")
