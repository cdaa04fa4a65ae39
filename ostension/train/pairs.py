"""Batches from a source of encoded pairs: the sampler's order, one caption and one square of each picture drawn by key."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from ostension.config import require, to_tree
from ostension.data.open import open_pairs
from ostension.data.pairs import Pair, PairSource
from ostension.data.sampler import Sampler
from ostension.errors import DataError, LimitError
from ostension.image.decode import open_image
from ostension.image.transforms import Transform
from ostension.model.clip import CLIP
from ostension.model.config import TextConfig
from ostension.runtime import numpy_generator
from ostension.text.tokenizer import Tokenizer
from ostension.train.batches import Batch, pad_tokens

MAX_REPLACEMENTS = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairBatchesConfig:
    """How batches are made from a source of pairs.

    Attributes:
        data: what `open_pairs` opens.
        batch_size: pairs in a global batch.
        seed: of the order, the captions and the crops.
        captions: of a pair's several, "random" draws one at each visit, "first" always takes the first.
        crop: "random" cuts a square of the short side's length at a random place (the paper's only augmentation),
            "center" takes the model's own preprocessing.
        groups: "caption" makes pairs of equal caption one group (see `losses`); "none" treats all pairs as different.
        replacement: draw samples with replacement.
    """

    kind: Literal["pairs"] = "pairs"
    data: str
    batch_size: int = 256
    seed: int = 0
    captions: Literal["random", "first"] = "random"
    crop: Literal["random", "center"] = "random"
    groups: Literal["none", "caption"] = "none"
    replacement: bool = False

    def __post_init__(self):
        require(self.batch_size >= 1, "batches.batch_size", self.batch_size, "1 or more")

    def build(self, model: CLIP) -> PairBatches:
        """The batches for a model: its transform, its tokenizer.

        Raises:
            DataError: if the data cannot be opened, or is smaller than one batch.
        """
        return PairBatches(open_pairs(self.data), self, model.transform, model.tokenizer, model.config.text)


class PairBatches:
    """A `BatchSource` over encoded pairs.

    A pair that cannot be used (a broken picture, no caption) is replaced by another one, drawn by its place in the run, and
    told in `Batch.rejects`, so that every batch is full and the same in every run.
    """

    def __init__(
        self, source: PairSource, config: PairBatchesConfig, transform: Transform, tokenizer: Tokenizer, text: TextConfig
    ):
        self.source, self.config, self.transform, self.tokenizer, self.text = source, config, transform, tokenizer, text
        self.sampler = Sampler(len(source), config.batch_size, config.seed, config.replacement)

    @property
    def batch_size(self) -> int:
        return self.config.batch_size

    @property
    def num_samples(self) -> int:
        """Samples that an epoch visits: whole batches."""
        return self.sampler.steps_per_epoch * self.batch_size

    def identity(self) -> Mapping[str, Any]:
        # Not the path: the same data may lie elsewhere tomorrow.
        settings = {name: value for name, value in to_tree(self.config).items() if name != "data"}
        return {**settings, "fingerprint": self.source.fingerprint(), "num_pairs": len(self.source)}

    def batch(self, step: int) -> Batch:
        visit = self.sampler.visit(step)
        rejects: list[tuple[str, str]] = []
        images, rows, keys, groups, cut = [], [], [], [], 0
        for place, index in enumerate(self.sampler.batch(step).tolist()):
            image, caption, key = self._usable(index, visit, (step, place), rejects)
            row, was_cut = self._tokens(caption)
            images.append(image)
            rows.append(row)
            keys.append(key)
            groups.append(_group_of(caption))
            cut += was_cut
        return Batch(
            images=torch.stack(images),
            tokens=pad_tokens(rows, self.tokenizer.pad_id, self.text),
            keys=keys,
            groups=torch.tensor(groups) if self.config.groups == "caption" else None,
            rejects=rejects,
            texts_cut=cut,
        )

    def _usable(self, index: int, visit: int, place: tuple[int, int], rejects: list) -> tuple[Tensor, str, str]:
        """Image, caption and key of the sample `index`, or of the first usable one that replaces it."""
        replacements = numpy_generator(self.config.seed, "replacement", *place)
        for _ in range(MAX_REPLACEMENTS):
            try:
                pair = self.source.read(index)
                return self._image(pair, index, visit), self._caption(pair, index, visit), pair.key
            except (DataError, LimitError) as problem:
                rejects.append((self.source.key(index), problem.what))
                index = int(replacements.integers(len(self.source)))
        key, reason = rejects[-1]
        raise DataError(f"{MAX_REPLACEMENTS} pairs in a row could not be used, the last {key} ({reason})")

    def _image(self, pair: Pair, index: int, visit: int) -> Tensor:
        if self.config.crop == "center":
            return self.transform(pair.image)
        limits = self.transform.config
        picture = open_image(pair.image, max_pixels=limits.max_pixels, max_bytes=limits.max_bytes)
        return self.transform(random_square(picture, numpy_generator(self.config.seed, "crop", visit, index).random()))

    def _caption(self, pair: Pair, index: int, visit: int) -> str:
        texts = [text for text in pair.texts if text.strip()]
        if not texts:
            raise DataError("no caption", source=pair.key)
        if self.config.captions == "first" or len(texts) == 1:
            return texts[0]
        return texts[int(numpy_generator(self.config.seed, "caption", visit, index).integers(len(texts)))]

    def _tokens(self, caption: str) -> tuple[list[int], bool]:
        """The caption's ids, cut to the context length with the end token last, and whether it was cut."""
        start = [] if self.tokenizer.start_id is None else [self.tokenizer.start_id]
        room = self.tokenizer.context_length - len(start) - 1
        ids = self.tokenizer.encode(caption)
        return [*start, *ids[:room], self.tokenizer.end_id], len(ids) > room


def random_square(picture: Image.Image, where: float) -> Image.Image:
    """The square of the short side's length at `where` (0 to 1) along the long side."""
    side = min(picture.size)
    left = int(where * (picture.width - side + 1))
    top = int(where * (picture.height - side + 1))
    return picture.crop((left, top, left + side, top + side))


def _group_of(caption: str) -> int:
    normal = " ".join(caption.lower().split())
    return int.from_bytes(hashlib.blake2b(normal.encode("utf-8", "replace"), digest_size=8).digest(), "little") >> 1
