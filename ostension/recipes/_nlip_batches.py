"""Batches of NLIP's study: features of pictures with the captions that noise was planted in, or with synthetic ones mixed in.

The image tower is locked, so its pooled feature of every picture is computed once and kept in a file. A batch is a function of
its step. Of a picture's captions one is drawn at each visit: with "completion", by the weights that its noise gives them
(`data.completed`). Groups, which the loss is told, are pictures of equal first caption.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ostension.config import require, to_tree
from ostension.data.completed import caption_weights
from ostension.data.sampler import Sampler
from ostension.errors import DataError
from ostension.files import read_json, sha256_file
from ostension.model.clip import CLIP
from ostension.recipes._nlip_data import NlipSet, nlip_set
from ostension.recipes._nlip_features import features_of
from ostension.recipes._whole_batches import WholeBatches
from ostension.runtime import numpy_generator
from ostension.text.prompts import fill
from ostension.train.batches import Batch, pad_tokens, token_rows
from ostension.train.concepts import prompted_rows

Use = Literal["nothing", "concepts", "completion"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NlipBatchesConfig:
    """How batches are made.

    Attributes:
        data: "emoji", "shapes", or a source of pairs.
        noise: share of the pictures whose captions are another thing's.
        planting: seed of where noise is planted.
        facts: a file with what is known of each learned picture (see `_nlip_stages`): its noise, concepts, synthetic caption.
        use: what of the facts is used: nothing; "concepts" brings captions behind concepts, of the pictures that are called
            clean alone (or the half of the lowest losses, where these are fewer); "completion" mixes synthetic captions in.
        batch_size: pictures a step.
        seed: of their order, views and captions.
        features: where the features of the set's pictures are kept.
        templates: that captions are put into, one drawn for each.
    """

    kind: Literal["nlip"] = "nlip"
    data: str = "emoji"
    noise: float = 0.35
    planting: int = 0
    facts: Path | None = None
    use: Use = "nothing"
    batch_size: int = 128
    seed: int = 0
    features: Path
    templates: tuple[str, ...] = ("{}",)

    def __post_init__(self):
        require(self.batch_size >= 1, "batches.batch_size", self.batch_size, "1 or more")
        require(bool(self.templates), "batches.templates", self.templates, "one or more")
        given = (self.facts is not None) == (self.use != "nothing")
        require(given, "batches.use", self.use, "'nothing' without batches.facts, and something with them")

    def build(self, model: CLIP) -> NlipBatches:
        """The batches for a model.

        Raises:
            DataError: for facts of other pictures.
        """
        return NlipBatches(nlip_set(self.data), self, model)


class NlipBatches(WholeBatches):
    """A `BatchSource` over an `NlipSet`, in memory.

    Attributes:
        rows: (n,) the learned pictures, as rows of the set.
        captions: of each of them, noise included.
        planted: (n,) where noise was planted.
        places: which of those n are visited.
    """

    worker_kind: Literal["processes", "threads"] = "threads"

    def __init__(self, known: NlipSet, config: NlipBatchesConfig, model: CLIP):
        self.set, self.config, self.model_config, self.tokenizer = known, config, model.config, model.tokenizer
        self.rows = known.learned
        self.features = features_of(known, model, config.features)
        self.captions, self.planted = known.planted(config.noise, config.planting)
        self.places = np.arange(len(self.rows))
        self.facts: dict[str, Any] = {} if config.facts is None else read_json(config.facts, DataError)
        if self.facts and len(self.facts.get("noise", ())) != len(self.rows):
            raise DataError("tells of other pictures", source=config.facts, expected=f"{len(self.rows)} of them")
        self.group = np.unique([captions[0] for captions in self.captions], return_inverse=True)[1]
        self.weights: list[tuple[float, ...]] = [()] * len(self.rows)
        if config.use == "completion":
            self.captions, self.weights = self._completed()
        if config.use == "concepts":
            self.places = clean_places(np.array(self.facts["noise"]), np.array(self.facts["losses"]))
        self.sampler = Sampler(len(self.places), config.batch_size, config.seed)

    @property
    def batch_size(self) -> int:
        return self.config.batch_size

    @property
    def num_samples(self) -> int:
        return self.sampler.steps_per_epoch * self.batch_size

    def identity(self) -> Mapping[str, Any]:
        settings = {name: value for name, value in to_tree(self.config).items() if name not in ("data", "facts", "features")}
        facts = None if self.config.facts is None else sha256_file(self.config.facts)
        return {**settings, "facts": facts, "fingerprint": self.set.fingerprint}

    def whole(self, step: int) -> Batch:
        config = self.config
        places = self.places[self.sampler.batch(step)]
        random = numpy_generator(config.seed, "captions", step)
        texts = [self._text(int(place), random) for place in places]
        ragged, cut = token_rows(self.tokenizer, texts)
        pad, text = self.tokenizer.pad_id, self.model_config.text
        prompted = firsts = None
        if config.use == "concepts":
            concepts = [self.facts["concepts"][place] for place in places]
            rows, begins = prompted_rows(self.tokenizer, concepts, [self.captions[place][0] for place in places])
            prompted, firsts = pad_tokens(rows, pad, text), torch.tensor(begins)
        return Batch(
            images=self.features[self.rows[places]], tokens=pad_tokens(ragged, pad, text),
            keys=[str(self.rows[place]) for place in places],
            groups=torch.from_numpy(self.group[places]), texts_cut=cut, prompted=prompted, firsts=firsts,
        )  # fmt: skip

    def _text(self, place: int, random: np.random.Generator) -> str:
        captions, weights = self.captions[place], self.weights[place]
        which, template = random.random(2)
        if weights:
            shares = np.cumsum(weights)
            number = int(np.searchsorted(shares, which * shares[-1], side="right"))
        else:
            number = int(which * len(captions))
        return fill(self.config.templates[int(template * len(self.config.templates))], captions[number])

    def _completed(self) -> tuple[list[tuple[str, ...]], list[tuple[float, ...]]]:
        """Captions with the synthetic one behind them, and how likely each is to be drawn."""
        captions, weights = [], []
        for original, said, noise in zip(self.captions, self.facts["captions"], self.facts["noise"], strict=True):
            texts = (*original, said) if said else original
            captions.append(texts)
            weights.append(caption_weights(len(original), len(texts) - len(original), noise))
        return captions, weights


def clean_places(noise: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """The pairs that are called clean; at least the half with the lowest losses."""
    clean = np.flatnonzero(noise <= 0.5)
    return clean if 2 * len(clean) >= len(noise) else np.sort(np.argsort(losses, kind="stable")[: -(-len(noise) // 2)])
