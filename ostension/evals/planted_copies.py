"""How well copies are found: pictures are altered on purpose, and looked for among the originals and among strangers.

Two measurements, for a detector or for anything else that gives a row for a picture:

- the **proxy task** it was trained on: is the original of a copy the nearest of all N originals?
- **planted duplicates**: half of the pictures are the training set; copies of them, and the other half unaltered, are the
  evaluation set. Each evaluation picture's nearest training picture is a pair; a pair is right if it is a copy and its own
  original. Precision and recall over all thresholds; precision is a lower bound, since strangers may be duplicates too.

Details of the record: {"curve": [[threshold, precision, recall], ...] (thinned), "kinds": {kind: {"accuracy", "recall"}}},
where "recall" is at the threshold of 99 % precision over all pairs.

Letters: N pictures, E embedding, P pairs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ostension.config import to_tree
from ostension.data.pairs import PairSource, image_digest
from ostension.errors import DataError
from ostension.evals.metrics import wilson_interval
from ostension.evals.records import Metric, Record
from ostension.image.copies import CopyConfig, altered_copy
from ostension.image.decode import open_image
from ostension.runtime import numpy_generator
from ostension.shapes import Bool, Float, Int
from ostension.store import perceptual_hash, search

Encode = Callable[[Sequence[Image.Image]], np.ndarray]  # pictures to rows (N, E), of any length above zero
PRECISION = 0.99
PIXEL_SIDE = 32
CURVE_POINTS = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planted:
    """Pictures and a copy of each.

    Attributes:
        originals, copies: N RGB pictures.
        groups: (N,) equal for originals whose files have the same bytes: either is then the original of a copy.
        config: of the copies.
    """

    originals: Sequence[Image.Image]
    copies: Sequence[Image.Image]
    groups: Int[np.ndarray, " N"]
    config: CopyConfig


def plant(source: PairSource, count: int, config: CopyConfig, *, seed: int = 0) -> Planted:
    """`count` pictures of a source, drawn without replacement (all of a smaller source), and a copy of each.

    Raises:
        DataError, LimitError: for a picture that cannot be read; for fewer than four pictures.
    """
    chosen = numpy_generator(seed, "planted", "order").permutation(len(source))[:count]
    if len(chosen) < 4:
        raise DataError(f"{len(chosen)} pictures", expected="4 or more, to tell copies from strangers")
    originals, copies, digests = [], [], []
    for number in chosen.tolist():
        pair = source.read(number)
        originals.append(open_image(pair.image, name=pair.key))
        copies.append(altered_copy(originals[-1], config, numpy_generator(seed, "planted", number)))
        digests.append(image_digest(pair.image))
    _, groups = np.unique(np.array(digests, dtype=np.uint64), return_inverse=True)
    return Planted(originals=originals, copies=copies, groups=groups.astype(np.int64), config=config)


def pixel_rows(pictures: Sequence[Image.Image]) -> Float[np.ndarray, "N E"]:
    """The pictures at 32 x 32, each channel less its mean: their cosine is the correlation of the pixels."""
    small = [picture.resize((PIXEL_SIDE, PIXEL_SIDE), Image.Resampling.BOX) for picture in pictures]
    rows = np.stack([np.asarray(picture, dtype=np.float32).reshape(-1, 3) for picture in small])
    return (rows - rows.mean(axis=1, keepdims=True)).reshape(len(rows), -1)


def hash_rows(pictures: Sequence[Image.Image]) -> Float[np.ndarray, "N E"]:
    """The 64 bits of the perceptual hash as +1 and -1: a cosine of 1 - d / 32 is a distance of d bits."""
    hashes = np.array([perceptual_hash(picture) for picture in pictures], dtype=np.uint64)
    bits = (hashes[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    return bits.astype(np.float32) * 2 - 1


def encoder_rows(encoder: Any) -> Encode:
    """What an encoder with `embed_images` (a detector, a CLIP) makes of pictures."""
    return lambda pictures: encoder.embed_images(list(pictures), batch_size=64).cpu().numpy()


def own_nearest(
    originals: Float[np.ndarray, "N E"], copies: Float[np.ndarray, "N E"], groups: Int[np.ndarray, " N"]
) -> Bool[np.ndarray, " N"]:
    """Whether the original nearest to each copy is its own. Equal cosines count as found only where the own one is first."""
    return groups[search(unit_rows(originals), unit_rows(copies), 1).rows[:, 0]] == groups


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pairs of the planted experiment: their cosines, whether each is right, and of which copy it is (-1: of a stranger)."""

    scores: Float[np.ndarray, " P"]
    right: Bool[np.ndarray, " P"]
    copy: Int[np.ndarray, " P"]

    @property
    def num_planted(self) -> int:
        return int((self.copy >= 0).sum())


def planted_pairs(
    originals: Float[np.ndarray, "N E"], copies: Float[np.ndarray, "N E"], groups: Int[np.ndarray, " N"]
) -> Pairs:
    """The first half as training set; copies of it and the second half as evaluation set, the nearest pair of each."""
    half = len(originals) // 2
    strangers = np.flatnonzero(~np.isin(groups[half:], groups[:half])) + half  # not those whose very file is in training
    evaluation = np.concatenate([copies[:half], originals[strangers]])
    copy = np.concatenate([np.arange(half), np.full(len(strangers), -1)])
    found = search(unit_rows(originals[:half]), unit_rows(evaluation), 1)
    own = np.where(copy >= 0, groups[np.maximum(copy, 0)], -1)
    return Pairs(scores=found.scores[:, 0], right=groups[found.rows[:, 0]] == own, copy=copy.astype(np.int64))


def precision_recall(pairs: Pairs) -> Float[np.ndarray, "T 3"]:
    """Threshold, precision and recall, at every cosine that occurs, falling."""
    order = np.argsort(-pairs.scores, kind="stable")
    scores, right = pairs.scores[order], pairs.right[order]
    last = np.append(scores[1:] != scores[:-1], True)  # equal cosines pass a threshold together
    hits, passed = np.cumsum(right)[last], np.arange(1, len(scores) + 1)[last]
    return np.stack([scores[last], hits / passed, hits / max(1, pairs.num_planted)], axis=1)


def average_precision(curve: Float[np.ndarray, "T 3"]) -> float:
    """The area under precision over recall, as steps."""
    return float((np.diff(curve[:, 2], prepend=0.0) * curve[:, 1]).sum())


def threshold_for(curve: Float[np.ndarray, "T 3"], precision: float = PRECISION) -> float | None:
    """The lowest threshold at which precision is still that high; None where it never is."""
    enough = np.flatnonzero(curve[:, 1] >= precision)
    return float(curve[enough[-1], 0]) if len(enough) else None


def measure(planted: Planted, encode: Encode, name: str, *, facts: Mapping[str, str] | None = None, seed: int = 0) -> Record:
    """Both measurements of one way to compare pictures."""
    originals, copies = encode(planted.originals), encode(planted.copies)
    own = own_nearest(originals, copies, planted.groups)
    pairs = planted_pairs(originals, copies, planted.groups)
    curve = precision_recall(pairs)
    threshold, found = threshold_for(curve), 0
    if threshold is not None:
        found = int((pairs.right & (pairs.scores >= threshold)).sum())
    metrics = {
        "accuracy": Metric(
            value=float(own.mean()), count=len(own), chance=1 / len(own), interval=wilson_interval(int(own.sum()), len(own))
        ),
        "average_precision": Metric(value=average_precision(curve), count=pairs.num_planted),
        "recall_at_99": Metric(
            value=found / pairs.num_planted, count=pairs.num_planted, interval=wilson_interval(found, pairs.num_planted)
        ),
    }  # fmt: skip
    if threshold is not None:
        metrics["threshold_at_99"] = Metric(value=threshold, count=len(pairs.scores))
    kept = curve[np.unique(np.linspace(0, len(curve) - 1, CURVE_POINTS).astype(int))]
    return Record(
        protocol="planted-copies", subject=name, metrics=metrics,
        config={"copies": to_tree(planted.config), "precision": PRECISION}, hashes=dict(facts or {}),
        counts={"pictures": len(own), "planted": pairs.num_planted, "pairs": len(pairs.scores)},
        seeds=(seed,), model=name, details={"curve": np.round(kept, 5).tolist()},
    )  # fmt: skip


def measure_kinds(
    source: PairSource, count: int, encode: Encode, threshold: float, *, seed: int = 0
) -> dict[str, dict[str, float]]:
    """For each kind of change alone: the proxy task's accuracy, and the share of copies found at a threshold."""
    base, rows = CopyConfig(), None
    table: dict[str, dict[str, float]] = {}
    for kind in base.kinds:
        planted = plant(source, count, base.only(kind), seed=seed)
        rows = encode(planted.originals) if rows is None else rows
        copies = encode(planted.copies)
        own = (unit_rows(rows).astype(np.float64) * unit_rows(copies)).sum(axis=1)
        table[kind] = {
            "accuracy": float(own_nearest(rows, copies, planted.groups).mean()), "recall": float((own >= threshold).mean()),
        }  # fmt: skip
    return table


def unit_rows(rows: np.ndarray) -> Float[np.ndarray, "N E"]:
    """Rows of unit length in float32; a row of zeros (a uniform picture's pixels) stays one and is like nothing."""
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return (rows / np.maximum(lengths, 1e-12)).astype(np.float32)
