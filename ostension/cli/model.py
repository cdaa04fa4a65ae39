"""List known architectures; inspect, check and convert models on disk."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Annotated, Any, Literal

import tyro

from ostension.errors import ConfigError

Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]
Preprocess = Literal["openai", "siglip", "clipa", "mobileclip", "pe"]
Tokenizer = Literal["openai", "hf", "siglip", "siglip2"]
Layout = Literal["ostension", "openai", "open_clip", "open_clip_siglip", "hf_clip", "siglip", "big_vision"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class List:
    """List the known architectures: parameters, pixels a side, GFLOPs for a picture and for a text of full length.

    One multiply-add is two operations; every position of every block counts, as in the published tables.

    Args:
        json: Print one JSON object a line instead of a table.
    """

    json: bool = False

    def run(self) -> int:
        rows = known_architectures()
        if self.json:
            for row in rows:
                print(json.dumps(row))
            return 0
        print(f"{'name':<26}{'parameters':>15}{'px':>6}{'tokens':>8}{'embed':>7}{'GFLOPs image':>14}{'text':>8}")
        for row in rows:
            image, text = (f"{row[key]:.2f}" if row[key] is not None else "-" for key in ("gflops_image", "gflops_text"))
            numbers = f"{row['parameters']:>15,}{row['image_size']:>6}{row['context_length']:>8}{row['embed_dim']:>7}"
            print(f"{row['name']:<26}{numbers}{image:>14}{text:>8}")
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspect:
    """Say what a model's files are: container, layout, architecture, what is known and what has to be asked for.

    Args:
        source: A model's folder or weight file, or hf-hub:ORG/NAME.
        layout: Read it as this layout instead of finding out.
        ema: Look at the averaged weights of a training checkpoint.
        json: Print one JSON object instead of lines.
    """

    source: Annotated[str, tyro.conf.Positional]
    layout: Layout | None = None
    ema: bool = False
    json: bool = False

    def run(self) -> int:
        from ostension.formats.inspect import as_lines, describe

        tree = describe(self.source, layout=self.layout, ema=self.ema)
        print(json.dumps(tree, indent=2) if self.json else "\n".join(as_lines(tree)))
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """Prove that a model can be used: files as saved, numbers finite, probe inputs encode to unit rows.

    Args:
        source: A model's folder or weight file, or hf-hub:ORG/NAME.
        layout: Read it as this layout instead of finding out.
        activation: The activation, where the file does not say it.
        preprocess: The family whose preprocessing it takes, where the file does not say it.
        tokenizer: The family whose tokenizer it takes, where the file does not say it.
    """

    source: Annotated[str, tyro.conf.Positional]
    layout: Layout | None = None
    activation: Activation | None = None
    preprocess: Preprocess | None = None
    tokenizer: Tokenizer | None = None

    def run(self) -> int:
        from ostension.formats.facts import Asked
        from ostension.formats.inspect import check

        asked = Asked(activation=self.activation, preprocess=self.preprocess, tokenizer=self.tokenizer)
        for line in check(self.source, asked=asked, layout=self.layout):
            print(line)
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convert:
    """Write a model in another layout, encode the same inputs with both, and print the largest difference.

    Examples:
      ostension model convert ViT-B-32.pt my-model
      ostension model convert my-model for-transformers --to hf
      ostension model convert weights.pt my-model --activation gelu --preprocess openai --tokenizer openai

    Args:
        source: A model's folder or weight file, or hf-hub:ORG/NAME.
        target: The folder to write.
        to: Our layout, open_clip's hub folder, or Hugging Face's (CLIP's or SigLIP's, as the model is).
        dtype: Type of the written weights.
        layout: Read the source as this layout instead of finding out.
        activation: The activation, where the file does not say it.
        preprocess: The family whose preprocessing it takes, where the file does not say it.
        tokenizer: The family whose tokenizer it takes, where the file does not say it.
        ema: Take the averaged weights of a training checkpoint.
        overwrite: Replace a target folder that has something in it.
    """

    source: Annotated[str, tyro.conf.Positional]
    target: Annotated[str, tyro.conf.Positional]
    to: Literal["ostension", "open_clip", "hf"] = "ostension"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    layout: Layout | None = None
    activation: Activation | None = None
    preprocess: Preprocess | None = None
    tokenizer: Tokenizer | None = None
    ema: bool = False
    overwrite: bool = False

    def run(self) -> int:
        from ostension.formats.convert import NUM_PROBES, convert
        from ostension.formats.facts import Asked

        asked = Asked(activation=self.activation, preprocess=self.preprocess, tokenizer=self.tokenizer)
        model, compared = convert(
            self.source, self.target, self.to, dtype=self.dtype, asked=asked, layout=self.layout, ema=self.ema,
            overwrite=self.overwrite,
        )
        for note in model.provenance["notes"]:
            print(f"ostension: {note}", file=sys.stderr)
        print(f"{self.source} ({model.provenance['layout']}) -> {self.target} ({self.to}, {self.dtype})")
        print(
            f"largest difference of unit embeddings over {NUM_PROBES} probe images {compared.image:.2g}, "
            f"texts {compared.text:.2g} (encoded by {compared.by})"
        )
        return 0


COMMAND = {"list": List, "inspect": Inspect, "convert": Convert, "check": Check}


def known_architectures() -> list[dict[str, Any]]:
    """A row for every preset, in the order of the file."""
    import math

    from ostension.formats.table import expected_shapes
    from ostension.model.flops import forward_gflops
    from ostension.model.presets import preset, preset_names

    rows = []
    for name in preset_names():
        config = preset(name)
        shapes = expected_shapes(config)
        # Running statistics of batch norm are in the state dict, but nobody trains them.
        trained = [
            shape for key, shape in shapes.items() if not key.endswith(("running_mean", "running_var", "num_batches_tracked"))
        ]
        try:
            image, text = (round(value, 6) for value in forward_gflops(config))
        except ConfigError:  # a tower whose products nobody has counted
            image, text = None, None
        row: dict[str, Any] = {"name": name, "parameters": sum(map(math.prod, trained)), "embed_dim": config.embed_dim}
        row |= {"image_size": config.vision.image_size, "context_length": config.text.context_length}
        rows.append(row | {"gflops_image": image, "gflops_text": text})
    return rows
