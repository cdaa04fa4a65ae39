"""Batches of features instead of pictures and tokens, for towers that are frozen: a step costs what the heads cost.

The order, the captions and the replacement of bad pairs are those of `PairBatches` with the same settings, so a run from
features is the run from pictures, to the rounding of the features. With `crops` = k a picture's random square is one of k
that were drawn once.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ostension.config import require, to_tree
from ostension.data.loader import Loader
from ostension.data.pairs import Pair, PairSource
from ostension.errors import ConfigError, DataError
from ostension.model.clip import CLIP
from ostension.train.batches import Batch, pad_tokens, token_rows
from ostension.train.frozen_features import Captions, Computed, Features, FeatureSettings, Stored
from ostension.train.pairs import PairBatches, PairBatchesConfig, _Decode


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureBatchesConfig(PairBatchesConfig):
    """How batches of features are made; the towers that the run freezes are the ones whose features are taken.

    Attributes:
        cache: folder of the features; a run with other weights, data or settings takes another place in it.
        crops: with crop = "random", squares that are drawn of each picture, once for the whole run.
        stored: numbers on the disk; float16 halves the space and rounds by 5e-4.
        computed: precision of the frozen towers.
        first, last: the pairs of the source to use, by number; `last` is not among them.
    """

    kind: Literal["features"] = "features"
    cache: Path
    crops: int = 1
    stored: Stored = "float32"
    computed: Computed = "fp32"
    first: int = 0
    last: int | None = None

    def __post_init__(self):
        super().__post_init__()
        require(self.crops >= 1, "batches.crops", self.crops, "1 or more")
        if self.crop == "center":
            require(self.crops == 1, "batches.crops", self.crops, "1: crop = 'center' has no others")
        if self.groups not in ("none", "caption"):
            raise ConfigError(f"batches.groups is {self.groups!r}, which reads the pictures", expected="'caption' or 'none'")
        require(self.first >= 0, "batches.first", self.first, "0 or more")

    def open(self) -> PairSource:
        source = super().open()
        if not self.first and self.last is None:
            return source
        return Window(source, self.first, len(source) if self.last is None else self.last)

    def build(self, model: CLIP) -> FeatureBatches:
        """The batches for a model; computes the features that are not in the cache.

        Raises:
            ConfigError: if none of the model's towers is frozen.
            DataError: if the data cannot be opened or the features not written.
        """
        return FeatureBatches(self, model)


class FeatureBatches(PairBatches):
    """A `BatchSource` of `(B, W)` features in place of the pictures, of the tokens, or of both."""

    worker_kind: Literal["processes", "threads"] = "threads"

    def __init__(self, config: FeatureBatchesConfig, model: CLIP):
        if not (model.frozen.image or model.frozen.text):
            raise ConfigError("no tower is frozen, so there are no features to keep", fix="set freeze.image.locked=true")
        super().__init__(config.open(), config, model.transform, model.tokenizer, model.config.text)
        source, data = self.source, f"{self.source.fingerprint()}/{len(self.source)}"
        settings = FeatureSettings(
            crops=config.crops if config.crop == "random" else 0, seed=config.seed, stored=config.stored,
            computed=config.computed,
        )  # fmt: skip
        root = config.cache
        self.captions = Captions(root, source)
        self.captions.extract(source, _say)
        sides: list[Literal["image", "text"]] = []
        sides += ["image"] if model.frozen.image else []
        sides += ["text"] if model.frozen.text else []
        self.features = {side: Features(root, side, model, data, len(source), settings) for side in sides}
        for features in self.features.values():
            features.extract(model, source, self.captions, _say)
        if "image" in self.features:
            cached = _Cached(source, self.captions, self.features["image"].rejects())
            decode = _WhichCrop(_Decode(config, model.transform), config.crops)
            self._loader = Loader(cached, self.order, decode, seed=config.seed)

    def identity(self) -> Mapping[str, Any]:
        found = {name: value for name, value in super().identity().items() if name != "cache"}
        return {**found, "features": {side: to_tree(features.parts.facts) for side, features in self.features.items()}}

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        loaded = self._loader.load(step, rank=rank, world_size=world_size)
        ids = loaded.ids.tolist()
        images = torch.from_numpy(loaded.images)
        if "image" in self.features:
            images = self.features["image"].rows(ids, loaded.images.tolist())
        cut = 0
        if "text" in self.features:
            places = [self.captions.pair(index).texts.index(text) for index, text in zip(ids, loaded.texts, strict=True)]
            rows = [self.captions.first_text(index) + place for index, place in zip(ids, places, strict=True)]
            tokens = self.features["text"].rows(ids, rows)
        else:
            ragged, cut = token_rows(self.tokenizer, loaded.texts)
            tokens = pad_tokens(ragged, self.tokenizer.pad_id, self.text)
        return Batch(
            images=images, tokens=tokens, keys=loaded.keys, groups=self._groups(loaded), rejects=loaded.rejects, texts_cut=cut
        )


@dataclasses.dataclass(frozen=True)
class _WhichCrop:
    """The caption as `PairBatches` draws it, and the number of a crop in place of the picture."""

    decode: _Decode
    crops: int

    def __call__(self, pair: Pair, generator: np.random.Generator) -> tuple[np.ndarray, str]:
        which, where, _ = generator.random(3)
        return np.array(int(where * self.crops), dtype=np.int64), self.decode._caption(pair, which)


class _Cached:
    """A source whose pairs have no picture; those that have no features cannot be read."""

    def __init__(self, source: PairSource, captions: Captions, rejects: Mapping[int, str]):
        self._source, self._captions, self._rejects = source, captions, rejects

    def __len__(self) -> int:
        return len(self._source)

    def read(self, index: int) -> Pair:
        """The pair without its picture."""
        if index in self._rejects:
            raise DataError(self._rejects[index], source=self.key(index))
        return self._captions.pair(index)

    def key(self, index: int) -> str:
        return self._source.key(index)

    def fingerprint(self) -> str:
        return self._source.fingerprint()

    def image_digests(self) -> np.ndarray:
        return self._source.image_digests()

    def summary(self) -> Any:
        return self._source.summary()


class Window:
    """Some of a source's pairs: those numbered `first` to `last`, without the last."""

    def __init__(self, source: PairSource, first: int, last: int):
        if not first < last <= len(source):
            raise DataError(f"the pairs {first} to {last} of {len(source)}", expected="some of those that are there")
        self._source, self.first, self.last = source, first, last

    def __len__(self) -> int:
        return self.last - self.first

    def read(self, index: int) -> Pair:
        """The pair at `index`, counted from the window's first."""
        return self._source.read(self.first + index)

    def key(self, index: int) -> str:
        return self._source.key(self.first + index)

    def fingerprint(self) -> str:
        return f"{self._source.fingerprint()}[{self.first}:{self.last}]"

    def image_digests(self) -> np.ndarray:
        return self._source.image_digests()[self.first : self.last]

    def summary(self) -> Any:
        return self._source.summary()


def _say(kind: str, done: int, count: int) -> None:
    print(f"features: {kind} {done}/{count}", file=sys.stderr, flush=True)
