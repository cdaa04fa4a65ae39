"""Pictures with captions of which some are planted noise: what NLIP's study learns from and is asked about.

"emoji": every fourth concept; of each one drawing is kept to be asked, the others are learned, each with two captions: its
name, and the name with up to three keywords. Asked is the name, among all names.
"shapes": coloured shapes that are drawn on the spot, for runs of seconds.
Anything else is what `open_pairs` opens: a tenth of its pairs is asked, for their first caption among those of all asked.

**Noise.** A share of the learned pictures give their captions to each other, so that each of them has captions of another
thing. No caption is lost or added.

Letters: N pictures, n learned, m asked, C candidates.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ostension.config import require
from ostension.data.open import open_pairs
from ostension.errors import DataError
from ostension.files import sha256_json
from ostension.image.decode import open_image
from ostension.recipes._captions_data import study_set
from ostension.recipes._emoji_batches import emoji_set
from ostension.runtime import numpy_generator
from ostension.shapes import Int

EVERY = 4
KEYWORDS = 3
ASKED = 10  # one pair of so many of a source of pairs
MOST_ASKED = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class NlipSet:
    """The pictures and what is said of them.

    Attributes:
        pictures: N, with their transparency.
        truth: the captions that belong to each picture.
        thing: (N,) what is shown: pictures of one thing are not each other's noise.
        learned, asked: rows.
        candidates: C texts to choose from.
        target: (m,) the candidate that belongs to each asked picture.
        fingerprint: of all that.
    """

    pictures: tuple[Image.Image, ...]
    truth: tuple[tuple[str, ...], ...]
    thing: Int[np.ndarray, " N"]
    learned: Int[np.ndarray, " n"]
    asked: Int[np.ndarray, " m"]
    candidates: tuple[str, ...]
    target: Int[np.ndarray, " m"]
    fingerprint: str

    def planted(self, share: float, seed: int) -> tuple[list[tuple[str, ...]], np.ndarray]:
        """The captions of the learned pictures with noise planted, and (n,) which pictures it was planted at."""
        return plant([self.truth[row] for row in self.learned], self.thing[self.learned], share, seed)


def plant(
    captions: Sequence[tuple[str, ...]], thing: Int[np.ndarray, " n"], share: float, seed: int
) -> tuple[list[tuple[str, ...]], np.ndarray]:
    """Captions of which a share has changed places, and where: each of those has the captions of another thing.

    Raises:
        DataError: if there are too few things for that.
    """
    require(0 <= share < 1, "noise", share, "a share, from 0 up to, not including, 1")
    count = round(share * len(captions))
    chosen = numpy_generator(seed, "planted noise").permutation(len(captions))[:count]
    found, planted = list(captions), np.zeros(len(captions), dtype=bool)
    if count == 0:
        return found, planted
    for shift in range(1, count):
        givers = np.roll(chosen, shift)
        if (thing[givers] != thing[chosen]).all():
            for row, giver in zip(chosen, givers, strict=True):
                found[row] = captions[giver]
            planted[chosen] = True
            return found, planted
    raise DataError(f"{count} pairs cannot change captions so that each has another thing's", expected="more things")


@functools.lru_cache(maxsize=2)
def nlip_set(data: str) -> NlipSet:
    """The set of that name, or of a source of pairs; made once a process."""
    if data == "emoji":
        return _emoji()
    return _shapes() if data == "shapes" else _pairs(data)


def _emoji() -> NlipSet:
    emoji = emoji_set(EVERY)
    truth = []
    for row, concept in enumerate(emoji.concept):
        known = emoji.concepts[concept]
        tags = [tag for tag in known.tags if tag.lower() != known.name.lower()]
        chosen = numpy_generator(0, "keywords", row).permutation(len(tags))[:KEYWORDS]
        truth.append((known.name, ", ".join([known.name, *(tags[index] for index in chosen)])) if tags else (known.name,))
    asked = []
    for concept in np.unique(emoji.concept):
        rows = np.flatnonzero(emoji.concept == concept)
        if len(rows) > 1:
            asked.append(int(numpy_generator(0, "asked", int(concept)).choice(rows)))
    thing, drawn = emoji.concept, _drawn(emoji.pixels)
    return _made(drawn, truth, thing, np.array(asked), emoji.names(), thing[asked], emoji.fingerprint)


def _shapes() -> NlipSet:
    study = study_set("shapes")
    names = [words[0] for words in study.words]
    order = np.arange(len(study.thing))
    asked = np.array([numpy_generator(0, "asked", thing).choice(order[study.thing == thing]) for thing in range(len(names))])
    truth = [(names[thing], f"a picture of a {names[thing]}") for thing in study.thing]
    return _made(_drawn(study.pixels), truth, study.thing, asked, tuple(names), study.thing[asked], study.fingerprint)


def _pairs(data: str) -> NlipSet:
    source = open_pairs(data)
    require(len(source) >= 2 * ASKED, "--data", f"{len(source)} pairs", f"{2 * ASKED} or more")
    images, truth = [], []
    for index in range(len(source)):
        pair = source.read(index)
        images.append(open_image(pair.image, name=pair.key))
        truth.append(pair.texts)
    chosen = numpy_generator(0, "asked").permutation(len(source))[: min(MOST_ASKED, len(source) // ASKED)]
    asked = np.sort(chosen)
    firsts = tuple(truth[row][0] for row in asked)
    return _made(images, truth, np.arange(len(source)), asked, firsts, np.arange(len(asked)), source.fingerprint())


def _drawn(pixels: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(one, "RGBA") for one in pixels]


def _made(
    pictures: Sequence[Image.Image], truth: Sequence[tuple[str, ...]], thing: np.ndarray, asked: np.ndarray,
    candidates: Sequence[str], target: np.ndarray, fingerprint: str,
) -> NlipSet:  # fmt: skip
    learned = np.setdiff1d(np.arange(len(pictures)), asked)
    facts = [fingerprint, asked.tolist(), list(candidates), [list(texts) for texts in truth]]
    return NlipSet(
        pictures=tuple(pictures), truth=tuple(truth), thing=np.asarray(thing), learned=learned, asked=np.asarray(asked),
        candidates=tuple(candidates), target=np.asarray(target), fingerprint=sha256_json(facts),
    )  # fmt: skip
