"""Batches of the ImageNet-Captions study: the same pictures with their captions, or with a caption made of their class alone.

The order of the pictures, their views and everything else is the same whatever the texts are. Groups, which the loss is told,
are the classes where nothing else is said of a picture, else the things.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch

from ostension.config import require, to_tree
from ostension.data.sampler import Sampler
from ostension.image.augment import AugmentConfig, augment, premultiplied
from ostension.model.clip import CLIP
from ostension.recipes._captions_data import Source, StudySet, study_set
from ostension.recipes._whole_batches import WholeBatches
from ostension.runtime import numpy_generator, torch_generator
from ostension.text.prompts import fill
from ostension.train.batches import Batch, pad_tokens, token_rows

MOST_KEYWORDS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyBatchesConfig:
    """How batches are made.

    Attributes:
        data: the set, "emoji" or "shapes".
        texts: "captions" names the thing, up to three of its keywords and its class, in any order; "labels" the class.
        both: learn from pictures of both distributions; as many as without.
        pictures: how many to learn from; None takes all of the original distribution, or as many of both.
        batch_size: pictures a step.
        seed: of which pictures, their order, views and captions.
        ramp_steps: steps over which the augmentation grows to its full strength.
        templates: that texts are put into, one drawn for each.
    """

    kind: Literal["study"] = "study"
    data: Source = "emoji"
    texts: Literal["captions", "labels"] = "captions"
    both: bool = False
    pictures: int | None = None
    batch_size: int = 128
    seed: int = 0
    ramp_steps: int = 0
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    templates: tuple[str, ...]

    def __post_init__(self):
        require(self.batch_size >= 1, "batches.batch_size", self.batch_size, "1 or more")
        require(self.pictures is None or self.pictures >= 1, "batches.pictures", self.pictures, "1 or more, or nothing")
        require(bool(self.templates), "batches.templates", self.templates, "one or more")
        require(self.ramp_steps >= 0, "batches.ramp_steps", self.ramp_steps, "0 or more")

    def build(self, model: CLIP) -> StudyBatches:
        """The batches for a model."""
        return StudyBatches(study_set(self.data), self, model)


class StudyBatches(WholeBatches):
    """A `BatchSource` over a `StudySet`, in memory.

    Attributes:
        rows: the pictures of the set that are learned from.
    """

    worker_kind: Literal["processes", "threads"] = "threads"

    def __init__(self, study: StudySet, config: StudyBatchesConfig, model: CLIP):
        self.study, self.config, self.model_config, self.tokenizer = study, config, model.config, model.tokenizer
        self.rows = study.training(both=config.both, pictures=config.pictures, seed=config.seed)
        self.sampler = Sampler(len(self.rows), config.batch_size, config.seed)

    @property
    def batch_size(self) -> int:
        return self.config.batch_size

    @property
    def num_samples(self) -> int:
        return self.sampler.steps_per_epoch * self.batch_size

    def identity(self) -> Mapping[str, Any]:
        return {**to_tree(self.config), "fingerprint": self.study.fingerprint}

    def whole(self, step: int) -> Batch:
        config, study, preprocess = self.config, self.study, self.model_config.preprocess
        rows = self.rows[self.sampler.batch(step)]
        strength = 1.0 if step >= config.ramp_steps else step / config.ramp_steps
        images = augment(
            premultiplied(torch.from_numpy(study.pixels[rows])), config.augment, torch_generator(config.seed, "view", step),
            side=preprocess.image_size, strength=strength, mean=preprocess.mean, std=preprocess.std,
        )  # fmt: skip
        random = numpy_generator(config.seed, "captions", step)
        ragged, cut = token_rows(self.tokenizer, [self.text(int(row), random) for row in rows])
        groups = study.target if config.texts == "labels" else study.thing
        return Batch(
            images=images, tokens=pad_tokens(ragged, self.tokenizer.pad_id, self.model_config.text),
            keys=[str(row) for row in rows], groups=torch.from_numpy(groups[rows]), texts_cut=cut,
        )  # fmt: skip

    def text(self, row: int, random: np.random.Generator) -> str:
        """What is said of a picture."""
        config, study = self.config, self.study
        parts = [study.classes[study.target[row]]]
        if config.texts == "captions":
            name, *keywords = study.words[study.thing[row]]
            chosen = random.permutation(len(keywords))[: random.integers(0, MOST_KEYWORDS + 1)]
            parts = [*parts, name, *(keywords[index] for index in chosen)]
            parts = [parts[index] for index in random.permutation(len(parts))]
        return fill(config.templates[int(random.integers(len(config.templates)))], ", ".join(parts))
