"""Reading texts in pictures: quoted prompts, words chosen among candidates, and what raw pixels alone can do.

Letters: N samples, W words, E embedding, D pixels of a picture.
Source: CLIP's appendix on optical character recognition; the lexicons are those of IIIT5K's protocol (Mishra et al. 2012).
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ostension.errors import ConfigError, DataError
from ostension.shapes import Float, Int, UInt8
from ostension.train.logistic import fit_logistic

TEMPLATE = "a photo of the word: {}."  # put in quotes; the paper's own words for text are unpublished but for MNIST's
NUMBER_TEMPLATE = "a photo of the number: {}."  # as published for MNIST, quotes aside
# What the paper's table 14 says of its best model, in shares; known from notes on the paper. SVHN is of whole numbers.
PUBLISHED = {"ViT-L-14-336": {"mnist": 0.884, "svhn": 0.510, "iiit5k": 0.900, "hateful_memes": 0.633, "sst2": 0.679}}
PIXEL_BASELINE = 0.925  # logistic regression on raw MNIST pixels, as remembered from the paper
STRENGTH = 0.1  # for pixels in 0..1; on 6,000 of MNIST it is the best of 0.001, 0.01, 0.1 and 1, by a point or more


def quoted(template: str) -> str:
    """The template with its placeholder in double quotes, as texts are asked for; unchanged where they are there.

    Raises:
        ConfigError: for a template without exactly one `{}`.
    """
    if template.count("{}") != 1:
        raise ConfigError(f"template {template!r}", expected="exactly one {}")
    return template if '"{}"' in template else template.replace("{}", '"{}"')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Words:
    """What stands in each picture, and what it is chosen from.

    Attributes:
        ids: (N,) of the pictures.
        texts: (N,) the text in each.
        candidates: (N,) the texts to choose among, with the right one; one shared tuple where all have the same.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    candidates: tuple[tuple[str, ...], ...]

    def vocabulary(self) -> tuple[str, ...]:
        """All candidates, each once, in the order in which they occur."""
        found: dict[str, None] = {}
        for shared in {id(few): few for few in self.candidates}.values():
            found.update(dict.fromkeys(shared))
        return tuple(found)


def read_words(path: str | Path) -> Words:
    """The words of a CSV file with the columns `id`, `text` and perhaps `lexicon`: candidates with a space between them.

    Without a lexicon, or in rows where it is empty, the candidates are all texts of the file: so whole house numbers are read.
    IIIT5K's annotation in this form has the thousand words of each picture's large lexicon.

    Raises:
        DataError: for a column that is missing, an empty text, an id that comes twice or a lexicon without the right word.
    """
    path = Path(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle, strict=True)
            missing = [name for name in ("id", "text") if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"no column {missing[0]!r}", source=path, expected="the columns id, text and perhaps lexicon")
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot be read: {error}", source=path, expected="a CSV file in UTF-8") from None
    ids, texts = [row["id"] for row in rows], [(row["text"] or "").strip() for row in rows]
    everything = tuple(dict.fromkeys(texts))
    candidates, seen = [], set()
    for line, (row, text) in enumerate(zip(rows, texts, strict=True), 2):
        if not text or row["id"] in seen:
            raise DataError(f"line {line} has no text" if not text else f"the id {row['id']!r} comes twice", source=path)
        seen.add(row["id"])
        few = tuple(dict.fromkeys((row.get("lexicon") or "").split())) or everything
        if text not in few:
            raise DataError(f"line {line}: the lexicon lacks {text!r}", source=path, expected="the right word among them")
        candidates.append(few)
    if not rows:
        raise DataError("no rows", source=path, expected="at least one picture")
    return Words(ids=tuple(ids), texts=tuple(texts), candidates=tuple(candidates))


def words_for(words: Words, ids: Sequence[str], source: object) -> Words:
    """The words of some pictures, in the order of their ids.

    Raises:
        DataError: naming the first picture without a text.
    """
    place = {name: number for number, name in enumerate(words.ids)}
    for name in ids:
        if name not in place:
            raise DataError(f"no text for {name!r}", source=source, expected="a row for every picture")
    rows = [place[name] for name in ids]
    return Words(
        ids=tuple(ids), texts=tuple(words.texts[row] for row in rows), candidates=tuple(words.candidates[row] for row in rows)
    )


def choose_words(
    images: Float[np.ndarray, "N E"], vocabulary: Sequence[str], rows: Float[np.ndarray, "W E"], words: Words
) -> tuple[str, ...]:
    """For each picture the candidate with the greatest dot product; of equal ones the first.

    Args:
        images: unit rows in the order of `words`.
        vocabulary, rows: every candidate and the unit row of its prompt.

    Raises:
        DataError: for other lengths, or a candidate that is not in the vocabulary.
    """
    if len(images) != len(words.texts) or len(rows) != len(vocabulary):
        what = f"{len(images)} pictures for {len(words.texts)} texts, {len(rows)} rows for {len(vocabulary)} words"
        raise DataError(what, expected="one row for each")
    place = {word: number for number, word in enumerate(vocabulary)}
    numbers: dict[int, np.ndarray] = {}  # of one shared tuple of candidates, once
    chosen = []
    for image, few in zip(images, words.candidates, strict=True):
        if id(few) not in numbers:
            absent = [word for word in few if word not in place]
            if absent:
                raise DataError(f"no row for the candidate {absent[0]!r}", expected="every candidate in the vocabulary")
            numbers[id(few)] = np.array([place[word] for word in few])
        chosen.append(few[int((rows[numbers[id(few)]] @ image).argmax())])
    return tuple(chosen)


def pixel_baseline(
    train: UInt8[np.ndarray, "N ..."],
    labels: Int[np.ndarray, " N"],
    test: UInt8[np.ndarray, "M ..."],
    *,
    strength: float = STRENGTH,
) -> Int[np.ndarray, " M"]:
    """What a logistic regression on raw pixels predicts for `test`: the baseline that zero-shot CLIP lost to on MNIST.

    Args:
        strength: scikit-learn's `C`, the inverse of the penalty; it is not searched, as the optimum is flat.
    """
    classes, targets = np.unique(labels, return_inverse=True)
    flat = [torch.from_numpy(images.reshape(len(images), -1).astype(np.float32) / 255) for images in (train, test)]
    fit = fit_logistic(flat[0], torch.from_numpy(targets.reshape(-1)), len(classes), [strength])
    return classes[fit.logits(flat[1])[0].argmax(-1).numpy()]
