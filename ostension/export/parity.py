"""How far an exported graph is from the model that it came from, on inputs of several sizes.

The probes are a few pictures that ship with Ostension and a few sentences, one of them alone, some together, and texts
padded further than they need: what a graph with a size frozen into it would fail on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ostension.errors import CheckpointError, ConfigError, MissingExtraError
from ostension.export.lengths import used_lengths
from ostension.model.clip import CLIP
from ostension.runtime import torch_generator

# The largest difference of a unit vector's coordinate that float32's rounding explains; measured 1e-7 to 4e-7 over 12 blocks
# (docs/decisions/engines.md).
FLOAT32_BOUND = 1e-4
SENTENCES = (
    "a photo of a cat.",
    "two dogs run along the beach while the sun goes down behind the pier",
    "rain",
    "a close-up of an old map of the harbour, with the names of the streets in small letters and a compass rose",
    "a red bicycle leaning on a wall",
)


@dataclasses.dataclass(frozen=True)
class Difference:
    """Two encodings of the same inputs.

    Attributes:
        largest: difference of a coordinate of unit embeddings.
        cosine: the least between an embedding and its counterpart.
        rows: how many were compared.
        sizes: the shapes of the batches.
    """

    largest: float
    cosine: float
    rows: int
    sizes: tuple[tuple[int, ...], ...]

    def line(self) -> str:
        """In words."""
        shapes = ", ".join("x".join(map(str, size)) for size in self.sizes)
        return f"largest difference {self.largest:.2g}, least cosine {self.cosine:.7f} ({self.rows} rows; batches {shapes})"


def probe_batches(model: CLIP, side: str) -> list[Tensor]:
    """Inputs in batches of several sizes."""
    return _picture_batches(model) if side == "image" else _text_batches(model)


def compare(
    reference: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor], batches: Sequence[Tensor]
) -> Difference:
    """Both encodings of every batch, as unit rows in float64."""
    largest, cosine, rows = 0.0, 1.0, 0
    with torch.no_grad():
        for batch in batches:
            one, two = (F.normalize(encode(batch).double(), dim=-1) for encode in (reference, other))
            if one.shape != two.shape or not bool(two.isfinite().all()):
                raise CheckpointError(f"gives {tuple(two.shape)} with numbers that are not finite, or of another shape")
            largest = max(largest, float((one - two).abs().max()))
            cosine = min(cosine, float((one * two).sum(-1).min()))
            rows += len(one)
    return Difference(largest, min(cosine, 1.0), rows, tuple(tuple(batch.shape) for batch in batches))


def encoder_of(model: CLIP, side: str) -> Callable[[Tensor], Tensor]:
    """The plain embeddings of one side."""
    return model.encode_image if side == "image" else model.encode_text


def _picture_batches(model: CLIP) -> list[Tensor]:
    from ostension.data.embedded import open_emoji

    source = open_emoji()
    pictures = model.transform.batch([source.read(index).image for index in range(0, len(source), len(source) // 4)][:4])
    noise = torch.randn(3, *pictures.shape[1:], generator=torch_generator("export probe"))
    return [pictures[:1], noise[:2], torch.cat([pictures, noise[2:]])]


def _text_batches(model: CLIP) -> list[Tensor]:
    try:
        room = model.config.text.context_length - 2  # start and end
        tokens = model.tokenizer([text for text in SENTENCES if len(model.tokenizer.encode(text)) <= room] or [""])
    except (ConfigError, CheckpointError, MissingExtraError):  # token ids only, without the tokenizer's package or model
        tokens = _made_tokens(model)
    tokens = tokens.to(torch.int64)
    if model.config.text.sees_padding:
        return [tokens[:1], tokens[-2:], tokens]
    used = used_lengths(model.config.text, tokens).tolist()
    short = int(np.argmin(used))
    return [tokens[short : short + 1, : used[short]], tokens[:2, : max(used[:2])], tokens[:, : max(used)], tokens]


def _made_tokens(model: CLIP) -> Tensor:
    """Rows of ids that end with the end token, then padding."""
    text = model.config.text
    tokens = torch.randint(1, max(2, text.vocab_size - 2), (4, text.context_length), generator=torch_generator("export probe"))
    if text.sees_padding:
        return tokens
    end = getattr(text, "eos_id", None)
    for row, ids in enumerate(tokens):
        last = text.context_length - 1 - row * text.context_length // 5
        ids[last], ids[last + 1 :] = text.vocab_size - 1 if end is None else end, getattr(text, "pad_id", 0)
    return tokens
