"""What int8 is calibrated with, and what it is judged by: pictures of the user's, and texts.

Of the pictures every second one calibrates; the others are what agreement is counted on, so that nothing is judged by what
it was fitted to. Texts are the captions beside the pictures, and prompts of ImageNet's class names.

Letters: N pictures, C classes, T tokens, S pixels a side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from ostension.data.pairs import Pair
from ostension.data.pictures import open_pictures
from ostension.errors import DataError, LimitError
from ostension.export.lengths import used_lengths
from ostension.model.clip import CLIP
from ostension.text.prompts import class_names, fill

PICTURES, TEXTS = 256, 256
BATCH = 8
TEMPLATE = "a photo of a {}."


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Inputs.

    Attributes:
        pixels: batches (8, 3, S, S) that calibrate the image tower.
        tokens: batches (8, T) that calibrate the text tower, of similar lengths.
        held_out: (N, 3, S, S), for judging.
        skipped: pictures that could not be read.
    """

    pixels: tuple[Tensor, ...]
    tokens: tuple[Tensor, ...]
    held_out: Tensor
    skipped: int


def read_calibration(model: CLIP, source: str, count: int = PICTURES) -> Calibration:
    """Pictures and texts of a folder, shards, or whatever holds pictures, taken at even distances.

    Raises:
        DataError: for fewer than two pictures that can be read.
    """
    pairs = open_pictures(source)
    places = sorted({index * len(pairs) // count for index in range(count)}) if len(pairs) > count else range(len(pairs))
    pictures: list[Tensor] = []
    captions: list[str] = []
    skipped = 0
    for place in places:
        try:
            pair: Pair = pairs.read(place)
            pictures.append(model.transform(pair.image))
            captions += pair.texts[:1]
        except (DataError, LimitError):
            skipped += 1
    if len(pictures) < 2:
        raise DataError(f"{len(pictures)} pictures that can be read", source=source, expected="two or more, better hundreds")
    fitted = torch.stack(pictures[::2])
    return Calibration(fitted.split(BATCH), _token_batches(model, captions[::2]), torch.stack(pictures[1::2]), skipped)


def prompts(model: CLIP) -> list[str]:
    """A prompt for each of ImageNet's classes that the context has room for, without repetition."""
    room = model.config.text.context_length - 2
    filled = dict.fromkeys(fill(TEMPLATE, name) for name in class_names("imagenet"))
    return [text for text in filled if len(model.tokenizer.encode(text)) <= room]


def _token_batches(model: CLIP, captions: Sequence[str]) -> tuple[Tensor, ...]:
    """Token rows of the captions and of as many prompts as are wanted besides, sorted by length and cut."""
    listed = [text for text in dict.fromkeys(captions) if text.strip()][:TEXTS]
    every = prompts(model)
    listed += every[:: max(1, len(every) // max(1, TEXTS - len(listed)))]
    tokens = model.tokenizer(listed, truncate=True)
    if model.config.text.sees_padding:
        return tokens.split(BATCH)
    used = used_lengths(model.config.text, tokens)
    order = used.argsort(stable=True)
    return tuple(tokens[part, : int(used[part].max())] for part in order.split(BATCH))
