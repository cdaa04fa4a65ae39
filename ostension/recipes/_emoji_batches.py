"""Batches of emoji for pre-training: some concepts, several drawings of each, one caption a concept.

Two drawings of one concept are both right for its caption, so each batch carries groups, and the loss shares the target
over them ("share"). The caption of a concept stands in the batch once for each of its drawings; the text tower computes
equal rows once.

A batch is a function of its step and of nothing else: concepts come from the sampler, everything random from a generator
keyed by (seed, step).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ostension.config import require, to_tree
from ostension.data.embedded import Concept, EmojiSet, load_emoji
from ostension.data.sampler import Sampler
from ostension.image.augment import AugmentConfig, augment, premultiplied
from ostension.model.clip import CLIP
from ostension.recipes._whole_batches import WholeBatches
from ostension.runtime import numpy_generator, torch_generator
from ostension.text.prompts import fill
from ostension.text.tokenizer import pack
from ostension.train.batches import Batch, token_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmojiBatchesConfig:
    """How batches of emoji are made.

    Attributes:
        concepts, drawings: different concepts in a batch, and drawings of each; their product is the batch size.
        seed: of the order, the drawings, the captions and the views.
        ramp_steps: steps over which the augmentation grows from nothing to its full strength.
        blend: share of the drawings that are mixed with another drawing of the same concept, in a random proportion.
        templates: of the captions; the first one takes an extra `plain_share` of them.
        tag_share: share of the captions that name one to three keywords too.
        languages: whose bare names serve as captions too; together they take half of them.
        every: use every n-th concept only, for a smoke run.
    """

    kind: Literal["emoji"] = "emoji"
    concepts: int
    drawings: int
    seed: int = 0
    ramp_steps: int = 0
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    blend: float = 0.0
    templates: tuple[str, ...]
    plain_share: float = 0.4
    tag_share: float = 0.5
    languages: tuple[str, ...] = ()
    every: int = 1

    def __post_init__(self):
        for name in ("concepts", "drawings", "every"):
            require(getattr(self, name) >= 1, f"batches.{name}", getattr(self, name), "1 or more")
        for name in ("plain_share", "tag_share", "blend"):
            require(0 <= getattr(self, name) <= 1, f"batches.{name}", getattr(self, name), "a share, 0 to 1")
        require(bool(self.templates), "batches.templates", self.templates, "one or more")
        require(self.ramp_steps >= 0, "batches.ramp_steps", self.ramp_steps, "0 or more")

    def build(self, model: CLIP) -> EmojiBatches:
        """The batches for a model, over the embedded set."""
        return EmojiBatches(emoji_set(self.every), self, model)


class EmojiBatches(WholeBatches):
    """A `BatchSource` over the training split of the emoji set, in memory."""

    worker_kind: Literal["processes", "threads"] = "threads"  # nearly all of a batch is work on tensors

    def __init__(self, emoji: EmojiSet, config: EmojiBatchesConfig, model: CLIP):
        self.emoji, self.config = emoji, config
        self.tokenizer, self.preprocess = model.tokenizer, model.config.preprocess
        self.length = model.config.text.context_length if model.config.text.sees_padding else None
        rows = emoji.rows("train")
        self.rows_of = {int(concept): rows[emoji.concept[rows] == concept] for concept in np.unique(emoji.concept[rows])}
        self.seen = np.array(sorted(self.rows_of))
        self.sampler = Sampler(len(self.seen), config.concepts, config.seed)

    @property
    def batch_size(self) -> int:
        return self.config.concepts * self.config.drawings

    @property
    def num_samples(self) -> int:
        """Pairs of one pass over the concepts."""
        return self.sampler.steps_per_epoch * self.batch_size

    def identity(self) -> Mapping[str, Any]:
        return {**to_tree(self.config), "fingerprint": self.emoji.fingerprint}

    def whole(self, step: int) -> Batch:
        config = self.config
        random = numpy_generator(config.seed, "emoji", step)
        concepts = self.seen[self.sampler.batch(step)]
        rows = np.concatenate([self._drawings(int(concept), random) for concept in concepts])
        rows_of_ids, cut = token_rows(self.tokenizer, [self.caption(self.emoji.concepts[at], random) for at in concepts])
        tokens = pack(rows_of_ids, self.tokenizer.pad_id, self.length)
        return Batch(
            images=self._images(rows, step, random),
            tokens=tokens.repeat_interleave(config.drawings, dim=0),
            keys=[self._key(row) for row in rows],
            groups=torch.from_numpy(np.repeat(concepts, config.drawings)),
            texts_cut=cut * config.drawings,
        )

    def caption(self, concept: Concept, random: np.random.Generator) -> str:
        """A name, perhaps with keywords before or after it, in a template."""
        config = self.config
        name = concept.names["en"]
        if config.languages and random.random() < 0.5:
            return concept.names[config.languages[int(random.integers(len(config.languages)))]]
        tags = [tag for tag in concept.tags if tag.lower() != name.lower()]
        parts = [name]
        if tags and random.random() < config.tag_share:
            chosen = random.permutation(len(tags))[: random.integers(1, min(3, len(tags)) + 1)]
            parts = [name, *(tags[index] for index in chosen)]
            if random.random() < 0.3:
                parts = [*parts[1:], name]
        plain = random.random() < config.plain_share
        template = config.templates[0 if plain else int(random.integers(len(config.templates)))]
        return fill(template, ", ".join(parts))

    def strength(self, step: int) -> float:
        """The strength of the augmentation at a step."""
        return 1.0 if step >= self.config.ramp_steps else step / self.config.ramp_steps

    def _drawings(self, concept: int, random: np.random.Generator) -> np.ndarray:
        """Rows of different styles where there are enough of them."""
        rows = self.rows_of[concept]
        return random.choice(rows, self.config.drawings, replace=len(rows) < self.config.drawings)

    def _images(self, rows: np.ndarray, step: int, random: np.random.Generator) -> Tensor:
        config, strength = self.config, self.strength(step)
        generator = torch_generator(config.seed, "view", step)
        x = premultiplied(torch.from_numpy(self.emoji.pixels[rows]))
        blended = np.flatnonzero(random.random(len(rows)) < config.blend * strength)
        if len(blended):
            others = [int(random.choice(self.rows_of[int(self.emoji.concept[row])])) for row in rows[blended]]
            weights = torch.rand(len(blended), 1, 1, 1, generator=generator)
            x[blended] = torch.lerp(x[blended], premultiplied(torch.from_numpy(self.emoji.pixels[others])), weights)
        preprocess = self.preprocess
        return augment(
            x, config.augment, generator, side=preprocess.image_size, strength=strength,
            mean=preprocess.mean, std=preprocess.std,
        )  # fmt: skip

    def _key(self, row: int) -> str:
        return f"{self.emoji.styles[self.emoji.style[row]]}-{self.emoji.concepts[self.emoji.concept[row]].concept}"


@functools.cache
def emoji_set(every: int = 1) -> EmojiSet:
    """The embedded set, or every n-th concept of it, decoded once a process."""
    return thinned(load_emoji(), every)


def thinned(emoji: EmojiSet, every: int) -> EmojiSet:
    """The set with every n-th of its concepts, of the seen ones and of the held-out ones alike."""
    if every == 1:
        return emoji
    held_out = np.array([concept.held_out for concept in emoji.concepts])
    kept = np.sort(np.concatenate([np.flatnonzero(held_out)[::every], np.flatnonzero(~held_out)[::every]]))
    rows = np.flatnonzero(np.isin(emoji.concept, kept))
    return dataclasses.replace(
        emoji,
        concepts=tuple(emoji.concepts[index] for index in kept),
        pixels=emoji.pixels[rows],
        concept=np.searchsorted(kept, emoji.concept[rows]),
        style=emoji.style[rows],
        fingerprint=f"{emoji.fingerprint}/{every}",
    )
