"""Batches from a source of encoded pairs: the sampler's order, one caption and one square of each picture drawn by key."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ostension.config import require, to_tree
from ostension.data.captions import AllCaptions
from ostension.data.layout import USUAL, Layout
from ostension.data.loader import Loaded, Loader
from ostension.data.mixture import Mixture
from ostension.data.open import open_pairs
from ostension.data.pairs import Joined, Pair, PairSource
from ostension.data.sampler import Sampler
from ostension.data.thinned import Thinned, column_beside
from ostension.errors import DataError
from ostension.image.transforms import Transform
from ostension.model.clip import CLIP
from ostension.model.config import TextConfig
from ostension.text.tokenizer import Tokenizer
from ostension.train.batches import Batch, pad_tokens, token_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairBatchesConfig:
    """How batches are made from a source of pairs.

    Attributes:
        data: what `open_pairs` opens, or a list of such. A recipe may leave it empty, for the user to name.
        weights: how much of each batch comes from each entry of `data`, in any unit; each then has epochs of its own (see
            `data.mixture`). Without, all entries are one source.
        layout: what holds the images and the captions, where that is not as usual.
        batch_size: pairs in a global batch.
        seed: of the order, the captions and the crops.
        captions: of a pair's several, "random" draws one at each visit, "first" always takes the first; "all" makes each of
            them a pair of its own, once an epoch.
        crop: "random" resizes the short side and cuts a square at a random place (the paper's only augmentation), "center"
            takes the model's own preprocessing.
        groups: pairs of one group are not each other's negatives, if the loss is told so (`losses`): "caption" makes those
            of equal caption a group (but for case and spaces), "image" those of equal image file, "both" those of either.
        replacement: draw samples with replacement.
        keep: a column of the Parquet files beside tar shards, "balance.keep" say: with which probability a pair takes part in
            an epoch, other pairs in each (see `data.thinned`).
    """

    data: str | tuple[str, ...]
    weights: tuple[float, ...] = ()
    layout: Layout = USUAL
    batch_size: int = 256
    seed: int = 0
    captions: Literal["random", "first", "all"] = "random"
    crop: Literal["random", "center"] = "random"
    groups: Literal["none", "caption", "image", "both"] = "none"
    replacement: bool = False
    keep: str | None = None

    def __post_init__(self):
        require(self.batch_size >= 1, "batches.batch_size", self.batch_size, "1 or more")
        if self.keep is not None:
            beside = {"weights": self.weights, "replacement": self.replacement, "captions": self.captions == "all"}
            for name, used in beside.items():
                require(not used, f"batches.{name}", getattr(self, name), "none beside batches.keep")
        if self.weights:
            count = 1 if isinstance(self.data, str) else len(self.data)
            require(len(self.weights) == count, "batches.weights", self.weights, f"one for each of {count} entries of data")
        if self.layout.shares:
            require(self.captions == "random", "batches.layout.shares", self.layout.shares, "captions='random' with it")

    def build(self, model: CLIP) -> PairBatches:
        """The batches for a model: its transform, its tokenizer.

        Raises:
            DataError: if the data cannot be opened, or is smaller than one batch.
        """
        return PairBatches(self.open(), self, model.transform, model.tokenizer, model.config.text)

    def open(self) -> PairSource:
        """The source; with weights, `Joined` from one source for each."""
        require(bool(self.data), "batches.data", self.data, "one or more sources")
        entries = [self.data] if isinstance(self.data, str) else self.data
        if not self.weights:
            return open_pairs(entries, layout=self.layout)
        return Joined([open_pairs(entry, layout=self.layout) for entry in entries])


class PairBatches:
    """A `BatchSource` over encoded pairs; those that cannot be used are replaced (see `data.loader`) and told in the batch."""

    worker_kind: Literal["processes", "threads"] = "processes"

    def __init__(
        self, source: PairSource, config: PairBatchesConfig, transform: Transform, tokenizer: Tokenizer, text: TextConfig
    ):
        self.config, self.tokenizer, self.text = config, tokenizer, text
        self.source = _each_caption(source, config) if config.captions == "all" else source
        self.order: Mixture | Sampler | Thinned
        if config.keep is not None:
            self.order = Thinned(column_beside(source, config.keep), config.batch_size, config.seed)
        elif config.weights:
            assert isinstance(self.source, Joined)
            sizes = tuple(map(len, self.source.sources))
            self.order = Mixture(sizes, config.weights, config.batch_size, config.seed, config.replacement)
        else:
            self.order = Sampler(len(self.source), config.batch_size, config.seed, config.replacement)
        digests = config.groups in ("image", "both")
        self._loader = Loader(self.source, self.order, _Decode(config, transform), seed=config.seed, digests=digests)

    @property
    def batch_size(self) -> int:
        return self.config.batch_size

    @property
    def num_samples(self) -> int:
        """Samples that an epoch visits: whole batches; of several sources with weights, as many as they have together."""
        return self.order.steps_per_epoch * self.batch_size

    def identity(self) -> Mapping[str, Any]:
        # Not the path: the same data may lie elsewhere tomorrow.
        settings = {name: value for name, value in to_tree(self.config).items() if name not in ("data", "keep")}
        if isinstance(self.order, Mixture):
            assert isinstance(self.source, Joined)
            parts = [{"fingerprint": part.fingerprint(), "num_pairs": len(part)} for part in self.source.sources]
            return {**settings, "sources": parts}
        if isinstance(self.order, Thinned):
            digest = hashlib.sha256(self.order.probabilities.astype("<f8").tobytes()).hexdigest()
            settings["keep"] = {"column": self.config.keep, "sha256": digest}
        return {**settings, "fingerprint": self.source.fingerprint(), "num_pairs": len(self.source)}

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        loaded = self._loader.load(step, rank=rank, world_size=world_size)
        rows, cut = token_rows(self.tokenizer, loaded.texts)
        return Batch(
            images=torch.from_numpy(loaded.images),
            tokens=pad_tokens(rows, self.tokenizer.pad_id, self.text),
            keys=loaded.keys,
            groups=self._groups(loaded),
            rejects=loaded.rejects,
            texts_cut=cut,
        )

    def _groups(self, loaded: Loaded) -> Tensor | None:
        """Hashes of content, which are the same in every process: (B,), or (B, 2) for "both"."""
        kind = self.config.groups
        if kind == "none":
            return None
        columns = [] if kind == "image" else [np.array([_hash_of(text) for text in loaded.texts], dtype=np.uint64)]
        if kind != "caption":
            assert loaded.digests is not None
            columns.append(loaded.digests)
        numbers = torch.from_numpy(np.stack(columns, 1).view(np.int64))
        return numbers if kind == "both" else numbers[:, 0].contiguous()


@dataclasses.dataclass(frozen=True)
class _Decode:
    """Picture and caption of a pair, with what is random in them drawn from the generator."""

    config: PairBatchesConfig
    transform: Transform

    def __call__(self, pair: Pair, generator: np.random.Generator) -> tuple[np.ndarray, str]:
        # Drawn whether used or not, so that the crops do not depend on the captions' setting.
        which, across, down = generator.random(3)
        text = self._caption(pair, which)
        if self.config.crop == "center":
            return self.transform(pair.image).numpy(), text
        return self._cropped(pair.image, place=(across, down)).numpy(), text

    def _caption(self, pair: Pair, which: float) -> str:
        captions = [number for number, text in enumerate(pair.texts) if text.strip()]
        if not captions:
            raise DataError("no caption")
        if self.config.captions != "random":
            return pair.texts[captions[0]]
        if not pair.weights:
            return pair.texts[captions[int(which * len(captions))]]
        shares = np.cumsum([pair.weights[number] for number in captions])
        return pair.texts[captions[int(np.searchsorted(shares, which * shares[-1], side="right"))]]

    @functools.cached_property
    def _cropped(self) -> Transform:
        """The short side to size whatever the model's own rule is: what is squashed or padded leaves nothing to choose."""
        return Transform(dataclasses.replace(self.transform.config, resize="shortest"))


def _each_caption(source: PairSource, config: PairBatchesConfig) -> PairSource:
    """The source with every caption as a pair of its own, source by source where they have weights."""
    if config.weights:
        assert isinstance(source, Joined)
        return Joined([AllCaptions(part) for part in source.sources])
    return AllCaptions(source)


def _hash_of(caption: str) -> int:
    normal = " ".join(caption.lower().split())
    return int.from_bytes(hashlib.blake2b(normal.encode("utf-8", "replace"), digest_size=8).digest(), "little")
