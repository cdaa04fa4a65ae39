"""Batches from a source of encoded pairs: the sampler's order, one caption and one square of each picture drawn by key."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from ostension.config import require, to_tree
from ostension.data.loader import Loader
from ostension.data.open import open_pairs
from ostension.data.pairs import Pair, PairSource
from ostension.data.sampler import Sampler
from ostension.errors import DataError
from ostension.image.decode import open_image
from ostension.image.transforms import Transform
from ostension.model.clip import CLIP
from ostension.model.config import TextConfig
from ostension.text.tokenizer import Tokenizer
from ostension.train.batches import Batch, pad_tokens, token_rows


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
    """A `BatchSource` over encoded pairs; those that cannot be used are replaced (see `data.loader`) and told in the batch."""

    worker_kind: Literal["processes", "threads"] = "processes"

    def __init__(
        self, source: PairSource, config: PairBatchesConfig, transform: Transform, tokenizer: Tokenizer, text: TextConfig
    ):
        self.source, self.config, self.tokenizer, self.text = source, config, tokenizer, text
        self.sampler = Sampler(len(source), config.batch_size, config.seed, config.replacement)
        self._loader = Loader(source, self.sampler, _Decode(config, transform), seed=config.seed)

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

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        loaded = self._loader.load(step, rank=rank, world_size=world_size)
        rows, cut = token_rows(self.tokenizer, loaded.texts)
        return Batch(
            images=torch.from_numpy(loaded.images),
            tokens=pad_tokens(rows, self.tokenizer.pad_id, self.text),
            keys=loaded.keys,
            groups=torch.tensor([_group_of(text) for text in loaded.texts]) if self.config.groups == "caption" else None,
            rejects=loaded.rejects,
            texts_cut=cut,
        )


@dataclasses.dataclass(frozen=True)
class _Decode:
    """Picture and caption of a pair, with what is random in them drawn from the generator."""

    config: PairBatchesConfig
    transform: Transform

    def __call__(self, pair: Pair, generator: np.random.Generator) -> tuple[np.ndarray, str]:
        texts = [text for text in pair.texts if text.strip()]
        if not texts:
            raise DataError("no caption")
        # Drawn whether used or not, so that the crops do not depend on the captions' setting.
        which, where = generator.random(2)
        text = texts[int(which * len(texts))] if self.config.captions == "random" else texts[0]
        if self.config.crop == "center":
            return self.transform(pair.image).numpy(), text
        settings = self.transform.config
        picture = open_image(
            pair.image, max_pixels=settings.max_pixels, max_bytes=settings.max_bytes, exif=settings.exif, alpha=settings.alpha
        )
        return self.transform(random_square(picture, where)).numpy(), text


def random_square(picture: Image.Image, where: float) -> Image.Image:
    """The square of the short side's length at `where` (from 0 up to 1) along the long side."""
    side = min(picture.size)
    left = int(where * (picture.width - side + 1))
    top = int(where * (picture.height - side + 1))
    return picture.crop((left, top, left + side, top + side))


def _group_of(caption: str) -> int:
    normal = " ".join(caption.lower().split())
    return int.from_bytes(hashlib.blake2b(normal.encode("utf-8", "replace"), digest_size=8).digest(), "little") >> 1
