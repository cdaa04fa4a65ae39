"""Convert a model to another layout, and check the result by encoding the same inputs on both sides.

The check runs on the finished folder before it takes its name: a conversion that changed the model leaves nothing behind.
A Hugging Face folder is encoded by transformers where that is installed, any other by our own reader.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ostension.errors import CheckpointError, unknown_name
from ostension.formats.facts import Asked
from ostension.formats.load import build_model
from ostension.formats.reader import open_weights
from ostension.formats.writer import LAYOUTS, hf_kind, write_model
from ostension.model.clip import CLIP
from ostension.runtime import pick_dtype, torch_generator

NUM_PROBES = 4
# Largest difference between unit embeddings that rounding explains: measured 1e-6 in float32 over 12 blocks; half types
# keep 11 and 8 bits of each number.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How far two encodings of the same inputs are apart.

    Attributes:
        image, text: the largest difference between unit embeddings.
        by: what encoded the written folder: "transformers" or "ostension".
    """

    image: float
    text: float
    by: str


def convert(
    source: str | os.PathLike,
    target: str | os.PathLike,
    to: str = "ostension",
    *,
    dtype: str = "float32",
    asked: Asked | None = None,
    layout: str | None = None,
    ema: bool = False,
    overwrite: bool = False,
) -> tuple[CLIP, Comparison]:
    """Write the model `source` into the folder `target` in another layout, checked.

    Args:
        to: "ostension", "open_clip" or "hf".
        dtype: of the written weights; float32 holds every published file without loss.
        asked, layout, ema: what the source does not say, see `load.load`.

    Raises:
        CheckpointError: if the source cannot be read, the layout cannot say what it is, or both sides encode differently.
    """
    if to not in LAYOUTS:
        raise unknown_name("layout to write", to, LAYOUTS)
    opened = open_weights(source, asked=asked, layout=layout, ema=ema)
    model = build_model(opened, torch.device("cpu"), pick_dtype(dtype))
    compared: list[Comparison] = []

    def check(folder: Path) -> None:
        compared.append(compare(model, folder, to))
        image, text, limit = compared[0].image, compared[0].text, TOLERANCE[model.dtype]
        if not max(image, text) <= limit:  # also for what is not a number
            raise CheckpointError(
                f"the written folder encodes otherwise: images differ by {image:.2g}, texts by {text:.2g}",
                source=target,
                expected=f"at most {limit:.0e} in {str(model.dtype).removeprefix('torch.')}",
            )

    write_model(model, target, to, overwrite=overwrite, check=check)
    return model, compared[0]


def compare(model: CLIP, folder: Path, to: str) -> Comparison:
    """Encode the probes with `model` and with what was written to `folder`, both in float32."""
    images, tokens = probes(model)
    ours = encode(as_float32(model), images, tokens)
    if to == "hf" and importlib.util.find_spec("transformers") is not None:
        theirs, by = _encode_with_transformers(model, folder, images, tokens), "transformers"
    else:
        asked = Asked(preprocess=model.config.preprocess, tokenizer=model.config.tokenizer)
        again = build_model(open_weights(folder, asked=asked), torch.device("cpu"), torch.float32)
        theirs, by = encode(again, images, tokens), "ostension"
    image, text = (float((one - other).abs().max()) for one, other in zip(ours, theirs, strict=True))
    return Comparison(image, text, by)


def probes(model: CLIP, count: int = NUM_PROBES) -> tuple[Tensor, Tensor]:
    """Random pictures (count, 3, S, S) and token rows (count, T) that depend on nothing but the model's shapes.

    A token row is as a tokenizer makes it: it ends with the end token where the tower reads there, then padding.
    """
    config = model.config
    generator = torch_generator("conversion probe", config.vision.image_size)
    images = torch.randn(count, 3, config.vision.image_size, config.vision.image_size, generator=generator)
    length, vocabulary = config.text.context_length, config.text.vocab_size
    tokens = torch.randint(0, max(vocabulary - 2, 1), (count, length), generator=generator)
    if config.text.pool != "last":
        end = vocabulary - 1 if config.text.eos_id is None else config.text.eos_id
        for row, ids in enumerate(tokens):
            last = length - 1 - row * length // (2 * count)
            ids[last], ids[last + 1 :] = end, 0
    return images, tokens


def encode(model: CLIP, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Unit embeddings of pictures and token rows, in evaluation mode."""
    with torch.inference_mode():
        model.eval()
        return model.encode_image(images, normalize=True).float(), model.encode_text(tokens, normalize=True).float()


def as_float32(model: CLIP) -> CLIP:
    """The model with float32 weights: itself where it has them, else a copy."""
    if model.dtype in (torch.float32, torch.float64):
        return model
    with torch.device("meta"):
        copy = CLIP(model.config)
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()}
    copy.load_state_dict(state, assign=True)
    return copy


def _encode_with_transformers(model: CLIP, folder: Path, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    import transformers

    name: str = hf_kind(model.config).write_config(model.config, "float32")["architectures"][0]
    progress = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        theirs: Any = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32).eval()
    finally:
        if progress:
            transformers.utils.logging.enable_progress_bar()
    with torch.inference_mode():
        out = theirs(pixel_values=images, input_ids=tokens)
    return out.image_embeds.float(), out.text_embeds.float()
