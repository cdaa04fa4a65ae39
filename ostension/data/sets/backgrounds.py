"""Animals and vehicles of the embedded emoji on a forest or on water: in training the background nearly tells the class.

After Waterbirds (Sagawa et al. 2020): 95 % of the training pictures of animals are on a forest and of vehicles on water, and
every drawing for validation and test is on both, so that class and background say nothing of each other there. The three
splits share no concept. A training drawing occurs three times, at other places and sizes; all of it is a function of names.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ostension.data.embedded import FOLDER, identical_pictures, open_emoji
from ostension.data.pairs import PairSource
from ostension.data.sets.base import LabelledSet
from ostension.image.backgrounds import BACKGROUNDS, COLOURS, GRIDS, SIZE, Background, on_background
from ostension.runtime import numpy_generator

SIDE = 96
STYLES = ("noto", "twemoji", "fluent3d", "openmoji", "openmoji_black")
COPIES = 3
ALIKE = 0.95  # share of a class's training pictures that are on its own background
SHARES = (("train", 0.5), ("val", 0.2), ("test", 0.3))  # of a class's concepts
# The Unicode list's sub-groups that make a class, and the background that it mostly has in training.
CLASSES: dict[str, tuple[tuple[str, ...], Background]] = {
    "animal": (
        ("animal-mammal", "animal-reptile", "animal-marine", "animal-bug", "animal-bird", "animal-amphibian"), "forest",
    ),
    "vehicle": (("transport-ground", "transport-air", "transport-water"), "water"),
}  # fmt: skip


class _Sample(NamedTuple):
    pair: int
    name: str
    label: str
    split: str
    background: Background
    style: str

    @property
    def key(self) -> str:
        return f"{self.split}/{self.name}"


class EmojiBackgrounds(LabelledSet):
    """The composited pictures, made as they are read."""

    def __init__(self) -> None:
        self._pairs = open_emoji("all")
        self._samples = list(_samples(self._pairs))
        super().__init__(
            FOLDER,
            [sample.key for sample in self._samples],
            [(sample.label,) for sample in self._samples],
            splits=[sample.split for sample in self._samples],
            fields={
                "background": [sample.background for sample in self._samples],
                "style": [sample.style for sample in self._samples],
            },
        )

    def image(self, index: int) -> bytes:
        """A PNG."""
        from PIL import Image

        sample = self._samples[index]
        with Image.open(io.BytesIO(self._pairs.read(sample.pair).image), formats=("WEBP",)) as drawing:
            made = on_background(drawing, sample.background, SIDE, numpy_generator(0, "emoji_backgrounds", sample.key))
        buffer = io.BytesIO()
        made.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def content(self) -> list[Any]:
        from PIL import __version__

        return [__version__, self._pairs.fingerprint(), SIDE, COLOURS, GRIDS, SIZE]


def _samples(pairs: PairSource) -> Iterator[_Sample]:
    """All samples, split after split and class after class."""
    places: dict[str, list[tuple[str, int]]] = {}
    for index in range(len(pairs)):
        style, _, concept = pairs.key(index).rpartition("/")[2].partition("-")
        places.setdefault(concept, []).append((style, index))
    groups = {concept: pairs.read(found[0][1]).meta["subgroup"] for concept, found in places.items()}
    for split, _ in SHARES:
        for label, (members, own) in CLASSES.items():
            concepts = _of_split(sorted(concept for concept, group in groups.items() if group in members), split)
            drawings = [(concept, style, place) for concept in concepts for style, place in places[concept]]
            other = BACKGROUNDS[1 - BACKGROUNDS.index(own)]
            if split != "train":
                for concept, style, place in drawings:
                    for ground in BACKGROUNDS:
                        yield _Sample(place, f"{style}-{concept}-{ground}", label, split, ground, style)
                continue
            several = [(*drawing, copy) for drawing in drawings for copy in range(COPIES)]
            drawn = numpy_generator(0, "emoji_backgrounds", label).permutation(len(several))
            unlike = set(drawn[round(ALIKE * len(several)) :].tolist())
            for number, (concept, style, place, copy) in enumerate(several):
                ground = other if number in unlike else own
                yield _Sample(place, f"{style}-{concept}-{copy}-{ground}", label, split, ground, style)


def _of_split(concepts: list[str], split: str) -> list[str]:
    """The concepts of a split: those of its share in the order of a hash; variants and what some style draws alike together."""
    alike = {concept: group[0] for style in STYLES for group in identical_pictures(style) for concept in group}
    family = {concept: alike.get(concept, concept).partition("-")[0] for concept in concepts}

    def place(first: str) -> str:
        return hashlib.sha256(f"emoji_backgrounds {first}".encode()).hexdigest()

    ordered = sorted(set(family.values()), key=place)
    ends = np.round(np.cumsum([0.0, *(share for _, share in SHARES)]) * len(ordered)).astype(int)
    number = [name for name, _ in SHARES].index(split)
    chosen = set(ordered[ends[number] : ends[number + 1]])
    return [concept for concept in concepts if family[concept] in chosen]
