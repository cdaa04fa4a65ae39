"""Actions in videos: frames to one prediction a video, the middle frame, and RareAct's two averages of precision.

A video is a group of frames that share a video id; `order` says where a frame stands in its video.

RareAct has clips of rare pairs of a verb and a noun. Each clip was annotated for one class: 1 both are right (positive),
2 only the verb, 3 only the noun, 4 both occur but the verb is not applied to the noun (hard negatives), 0 neither. For a class
these count: its positives; its hard negatives, and positives of other classes that share its verb or its noun; its negatives,
and positives of classes that share neither. Clips of one video are no independent samples, hence two remedies:

- mWAP: a clip weighs 1 / (clips of its video among the class's positives, hard negatives or negatives).
- mSAP: the mean over draws of one clip of each video in each of the three.

Both are means over classes that have positives.

Letters: F frames, V videos, C classes, N clips, D draws.
Source: Miech et al. 2020, RareAct, checked against its published script; frames as in CLIP's appendix.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ostension.errors import DataError
from ostension.runtime import numpy_generator
from ostension.shapes import Bool, Float, Int

DRAWS = 100  # of the paper
COLUMNS = ("video_id", "class_id", "verb", "noun", "annotation")
# What CLIP's best model reached with its zero-shot classifier (table 15), in shares; known from notes on the paper.
PUBLISHED = {"ViT-L-14-336": {"mWAP": 0.407, "mSAP": 0.448}}


def mean_over_frames(
    probabilities: Float[np.ndarray, "F C"], videos: Sequence[str] | np.ndarray
) -> tuple[list[str], Float[np.ndarray, "V C"]]:
    """The mean of the frames' probabilities for each video, in the order in which videos first occur."""
    names, members = _in_order(videos)
    sums = np.zeros((len(names), probabilities.shape[1]))
    np.add.at(sums, members, probabilities)
    return names, sums / np.bincount(members, minlength=len(names))[:, None]


def middle_frames(videos: Sequence[str] | np.ndarray, order: Int[np.ndarray, " F"]) -> Int[np.ndarray, " V"]:
    """The row of the middle frame of each video: of n frames in order, number (n - 1) // 2."""
    names, members = _in_order(videos)
    by_video = np.lexsort((order, members))
    counts = np.bincount(members, minlength=len(names))
    return by_video[np.cumsum(counts) - counts + (counts - 1) // 2]


def _in_order(videos: Sequence[str] | np.ndarray) -> tuple[list[str], np.ndarray]:
    """The different values as they first occur, and the number of each row's."""
    names, first, members = np.unique(np.asarray(videos, dtype=str), return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return [str(name) for name in names[order]], rank[members.reshape(-1)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clips:
    """The annotated clips of RareAct, in the file's order.

    Attributes:
        videos, verbs, nouns: (N,) texts.
        classes: (N,) number of the class that the clip was annotated for.
        annotations: (N,) 0 to 4.
        names: "verb noun" by class number; every number from 0 occurs.
    """

    videos: np.ndarray
    verbs: np.ndarray
    nouns: np.ndarray
    classes: np.ndarray
    annotations: np.ndarray
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.videos)


def read_clips(path: str | Path) -> Clips:
    """The clips of a CSV file with RareAct's columns.

    Raises:
        DataError: for a column that is missing, an annotation outside 0..4, or a class with two pairs of verb and noun.
    """
    path = Path(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle, strict=True)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"no column {missing[0]!r}", source=path, expected=f"the columns {', '.join(COLUMNS)}")
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot be read: {error}", source=path, expected="a CSV file in UTF-8") from None
    pairs: dict[int, tuple[str, str]] = {}
    for line, row in enumerate(rows, 2):
        if row["annotation"] not in ("0", "1", "2", "3", "4") or not (row["class_id"] or "").isdecimal():
            what = f"line {line}: class_id {row['class_id']!r}, annotation {row['annotation']!r}"
            raise DataError(what, source=path, expected="a number, and 0 to 4")
        if not (row["video_id"] and row["verb"] and row["noun"]):
            raise DataError(f"line {line} lacks a video, a verb or a noun", source=path)
        pair = row["verb"], row["noun"]
        known = pairs.setdefault(int(row["class_id"]), pair)
        if known != pair:
            raise DataError(f"line {line}: class {row['class_id']} is {' '.join(known)!r} and {' '.join(pair)!r}", source=path)
    if sorted(pairs) != list(range(len(pairs))) or not pairs:
        raise DataError(f"{len(pairs)} classes, numbered up to {max(pairs, default=0)}", source=path, expected="0, 1, 2, ...")
    column = {name: np.array([row[name] for row in rows]) for name in COLUMNS}
    return Clips(
        videos=column["video_id"], verbs=column["verb"], nouns=column["noun"],
        classes=column["class_id"].astype(np.int64), annotations=column["annotation"].astype(np.int64),
        names=tuple(" ".join(pairs[number]) for number in range(len(pairs))),
    )  # fmt: skip


def roles(clips: Clips, number: int) -> tuple[Bool[np.ndarray, " N"], Bool[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
    """Which clips are positives, hard negatives and negatives of a class; the others do not count for it."""
    own = clips.classes == number
    first = int(own.argmax())
    verb, noun = clips.verbs == clips.verbs[first], clips.nouns == clips.nouns[first]
    borrowed = (clips.annotations == 1) & ~own
    positive = own & (clips.annotations == 1)
    hard = (own & (clips.annotations >= 2)) | (borrowed & (verb ^ noun))
    negative = (own & (clips.annotations == 0)) | (borrowed & ~verb & ~noun)
    return positive, hard, negative


def weighted_average_precision(
    scores: Float[np.ndarray, " N"], positive: Bool[np.ndarray, " N"], weights: Float[np.ndarray, " N"] | None = None
) -> float:
    """AP = sum over different scores, highest first, of (recall there - recall before) * precision there, with weights.

    Equal scores enter together, so that their order in the file does not matter.

    Raises:
        DataError: without positives.
    """
    weights = np.ones(len(scores)) if weights is None else weights
    total = float(weights[positive].sum())
    if total <= 0:
        raise DataError("there are no positives to rank", expected="at least one")
    order = np.argsort(-scores, kind="stable")
    ranked, weight, hit = scores[order], weights[order], positive[order]
    last = np.append(ranked[1:] != ranked[:-1], True)  # the end of each run of equal scores
    hits, all_ = np.cumsum(weight * hit)[last], np.cumsum(weight)[last]
    return float((np.diff(hits, prepend=0.0) / total * (hits / all_)).sum())


def video_weights(videos: np.ndarray) -> Float[np.ndarray, " N"]:
    """1 / (rows of the same video), for each row."""
    _, members, counts = np.unique(videos, return_inverse=True, return_counts=True)
    return 1.0 / counts[members.reshape(-1)]


def weighted_ap_by_class(scores: Float[np.ndarray, "N C"], clips: Clips) -> dict[str, float]:
    """WAP by class name, for the classes that have positives; their mean is mWAP."""
    _check_scores(scores, clips)
    found = {}
    for number, name in enumerate(clips.names):
        parts = roles(clips, number)
        if parts[0].any():
            rows = np.concatenate([np.flatnonzero(part) for part in parts])
            weights = np.concatenate([video_weights(clips.videos[part]) for part in parts])
            found[name] = weighted_average_precision(scores[rows, number], parts[0][rows], weights)
    return found


def sampled_ap_by_class(scores: Float[np.ndarray, "N C"], clips: Clips, *, seed: int, draws: int = DRAWS) -> dict[str, float]:
    """SAP by class name, for the classes that have positives; their mean is mSAP."""
    _check_scores(scores, clips)
    found = {}
    for number, name in enumerate(clips.names):
        parts = roles(clips, number)
        if not parts[0].any():
            continue
        generator = numpy_generator(seed, "rareact", number)
        drawn = np.concatenate([_one_of_each(clips.videos, part, generator, draws) for part in parts], axis=1)
        # All draws have equally many positives, as each has one clip of the same videos.
        found[name] = float(np.mean([weighted_average_precision(scores[rows, number], parts[0][rows]) for rows in drawn]))
    return found


def _one_of_each(
    videos: np.ndarray, part: np.ndarray, generator: np.random.Generator, draws: int
) -> Int[np.ndarray, "D V"]:
    """Rows of `part`: in each draw one of each video, all equally likely."""
    rows = np.flatnonzero(part)
    _, members, counts = np.unique(videos[rows], return_inverse=True, return_counts=True)
    by_video = rows[np.argsort(members.reshape(-1), kind="stable")]
    starts = np.cumsum(counts) - counts
    return by_video[starts + (generator.random((draws, len(counts))) * counts).astype(np.int64)]


def _check_scores(scores: np.ndarray, clips: Clips) -> None:
    wanted = (len(clips), len(clips.names))
    if scores.shape != wanted or not np.isfinite(scores).all():
        raise DataError(f"scores of shape {scores.shape}", expected=f"finite numbers {wanted}: a row a clip, a column a class")
