"""The embedded set: emoji of five freely licensed drawing styles, with names, tags and several languages.

It lies in tar shards, one a style, and is made by `scripts/build_emoji.py`; licences are in NOTICE. `splits.json` says what
training never sees: one style, and 15 % of the names in any style.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from ostension.data.pairs import PairSource, Subset
from ostension.data.tar_shards import TarShards
from ostension.errors import unknown_name
from ostension.files import read_json

FOLDER = Path(__file__).with_name("emoji")
SIDE = 64
SPLITS = ("all", "train", "new-style-seen-names", "new-style-new-names", "seen-style-new-names")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Concept:
    """One emoji, whatever the style.

    Attributes:
        concept: its code points in hexadecimal, without variation selectors.
        names: its name by language; "en" is the caption of the shards.
        tags: English keywords.
        group, subgroup: of the Unicode list.
        held_out: whether training never sees it.
    """

    concept: str
    names: dict[str, str]
    tags: tuple[str, ...]
    group: str
    subgroup: str
    held_out: bool

    @property
    def name(self) -> str:
        return self.names["en"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmojiSet:
    """The whole set in memory, decoded: N pictures of C concepts in S styles.

    Attributes:
        concepts: the C concepts, sorted by code points.
        styles: the S styles.
        pixels: (N, 64, 64, 4) uint8, red, green, blue, alpha; colour under full transparency is arbitrary.
        concept: (N,) index into `concepts`.
        style: (N,) index into `styles`.
        fingerprint: of the shards that it was read from.
    """

    concepts: tuple[Concept, ...]
    styles: tuple[str, ...]
    pixels: np.ndarray
    concept: np.ndarray
    style: np.ndarray
    fingerprint: str

    def __len__(self) -> int:
        return len(self.pixels)

    def names(self, language: str = "en") -> tuple[str, ...]:
        """The name of each concept in a language.

        Raises:
            ConfigError: for a language that the set does not have.
        """
        if language not in self.concepts[0].names:
            raise unknown_name("language", language, self.concepts[0].names)
        return tuple(concept.names[language] for concept in self.concepts)

    def rows(self, split: str) -> np.ndarray:
        """The pictures of a split, as positions in `pixels`; every split has each of its concepts once a style."""
        held_out = np.array([concept.held_out for concept in self.concepts])
        return _rows(split, np.array(self.styles)[self.style], held_out[self.concept])


def open_emoji(split: str = "all") -> PairSource:
    """The pairs of a split of the embedded set, read from its shards.

    Raises:
        ConfigError: for an unknown split.
    """
    shards = _shards()
    style, concept = _style_and_concept(shards)
    held_out = np.isin(concept, _split_record()["held_out_concepts"])
    return shards if split == "all" else Subset(shards, _rows(split, style, held_out))


def load_emoji() -> EmojiSet:
    """The whole set, decoded (about 133 MB; a second or two)."""
    shards = _shards()
    style, concept_names = _style_and_concept(shards)
    styles = tuple(dict.fromkeys(style.tolist()))
    held_out = frozenset(_split_record()["held_out_concepts"])
    concepts: dict[str, Concept] = {}
    pixels = np.empty((len(shards), SIDE, SIDE, 4), dtype=np.uint8)

    def decode(index: int) -> dict[str, Any]:
        from PIL import Image

        pair = shards.read(index)
        with Image.open(io.BytesIO(pair.image), formats=("WEBP",)) as picture:
            pixels[index] = np.asarray(picture.convert("RGBA"))
        return pair.meta

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for meta in pool.map(decode, range(len(shards))):
            concepts[meta["concept"]] = Concept(
                concept=meta["concept"],
                names={"en": meta["name"], **meta["names"]},
                tags=tuple(meta["tags"]),
                group=meta["group"],
                subgroup=meta["subgroup"],
                held_out=meta["concept"] in held_out,
            )
    order = sorted(concepts)
    number = {concept: at for at, concept in enumerate(order)}
    return EmojiSet(
        concepts=tuple(concepts[concept] for concept in order),
        styles=styles,
        pixels=pixels,
        concept=np.array([number[concept] for concept in concept_names]),
        style=np.array([styles.index(name) for name in style]),
        fingerprint=shards.fingerprint(),
    )


def identical_pictures(style: str) -> tuple[tuple[str, ...], ...]:
    """Groups of concepts that a style draws the same way: no model can tell them apart, which bounds its accuracy."""
    return tuple(tuple(group) for group in _split_record()["identical_pictures"].get(style, []))


def _rows(split: str, style: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """The positions of a split, from the style of each picture and whether its name is held out."""
    record = _split_record()
    new_style = style == record["held_out_style"]
    masks = {
        "all": np.ones(len(style), dtype=bool),
        "train": ~new_style & ~held_out,
        "new-style-seen-names": new_style & ~held_out,
        "new-style-new-names": new_style & held_out,
        "seen-style-new-names": (style == record["seen_style"]) & held_out,
    }
    if split not in masks:
        raise unknown_name("split of the emoji set", split, SPLITS)
    return np.flatnonzero(masks[split])


def _shards() -> TarShards:
    styles = read_json(FOLDER / "record.json")["shards"]
    return TarShards([FOLDER / f"{style}-000.tar" for style in styles])


def _style_and_concept(shards: TarShards) -> tuple[np.ndarray, np.ndarray]:
    """The style and the concept of each pair, from its key STYLE-CONCEPT."""
    parts = [shards.shard_of(index)[1].partition("-") for index in range(len(shards))]
    return np.array([style for style, _, _ in parts]), np.array([concept for _, _, concept in parts])


@functools.cache
def _split_record() -> dict[str, Any]:
    return read_json(FOLDER / "splits.json")
