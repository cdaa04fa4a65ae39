"""pm-k: how often a classifier is right on a frame of a video *and* on every reviewed frame within k of it.

    pm-0 = share of anchors that are right
    pm-k = share of anchors that are right together with all of their reviewed frames at distance 1..k

A frame is right if what is predicted for it is in its *set* of labels. Two published forms are read: ImageNet-Vid-Robust
(`pmsets.json`, `labels.json`: every frame has labels) and YTBB-Robust (`anchor_labels.json`, `pmk_labels.json`, a CSV of
anchors: frames take the labels of their anchor, and only frames reviewed as similar count).

Letters: N frames, C classes, A anchors.
Source: Shankar et al. 2021, Do Image Classifiers Generalize Across Time?; files as in modestyachts/imagenet-testbed.
"""

from __future__ import annotations

import csv
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ostension.errors import ConfigError, DataError, unknown_name
from ostension.files import read_json
from ostension.shapes import Bool, Int

K = 10  # of the published numbers
_VID = ("pmsets.json", "labels.json")
_YTBB = ("anchor_labels.json", "pmk_labels.json", "ytbb_robustness_test_anchors_full.csv")
# A reviewed pair counts if it is marked similar and with none of these.
_PROBLEMS = frozenset({
    "dissimilar", "problematic", "incorrect", "dont know", "deformation", "background-change", "occlusion-increased",
    "blur-increase", "bad-anchor",
})  # fmt: skip
_SWAPPED = {"22": "23", "23": "22"}  # the CSV of anchors has `none` and `car` the other way round than the class index


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameSets:
    """Anchors, their reviewed frames, and what is right for each.

    Attributes:
        frames: the reviewed frames of each anchor by distance (never 0), at most 10 in the published sets.
        labels: the label keys that are right, for every anchor and every reviewed frame.
        source: where they were read.
    """

    frames: Mapping[str, Mapping[int, str]]
    labels: Mapping[str, frozenset[str]]
    source: str = ""

    def __len__(self) -> int:
        return len(self.frames)

    def within(self, k: int) -> dict[str, tuple[str, ...]]:
        """The frames of each anchor at distance 1..k."""
        return {anchor: tuple(name for away, name in near.items() if abs(away) <= k) for anchor, near in self.frames.items()}


def right_in_set(predicted: Int[np.ndarray, " N"], labels: Int[np.ndarray, "N C"]) -> Bool[np.ndarray, " N"]:
    """Whether each prediction is one of the labels, which are 0 and 1."""
    return np.take_along_axis(labels, predicted[:, None], axis=1)[:, 0] > 0


def pm_k(
    right: Bool[np.ndarray, " N"], anchors: Sequence[int], frames: Sequence[Sequence[int]]
) -> tuple[Bool[np.ndarray, " A"], Bool[np.ndarray, " A"]]:
    """Which anchors are right (pm-0), and which together with all of their frames (pm-k).

    Args:
        anchors: row of each anchor.
        frames: rows of the reviewed frames of each anchor; with none pm-k is pm-0 there.
    """
    alone = right[np.asarray(anchors, dtype=np.int64)]
    together = np.array([all(right[row] for row in rows) for rows in frames], dtype=bool)
    return alone, alone & together


def score_frames(
    predicted: Sequence[str], ids: Sequence[str], sets: FrameSets, k: int = K
) -> tuple[Bool[np.ndarray, " A"], Bool[np.ndarray, " A"]]:
    """pm-0 and pm-k of each anchor of `sets`, from the predicted label key of each sample.

    Samples are found by the last two parts of their path without the ending, so that frames may lie anywhere and be encoded
    in another way.

    Raises:
        DataError: if a frame is not among the samples, or two samples are the same frame.
    """
    place: dict[str, int] = {}
    for row, name in enumerate(ids):
        if place.setdefault(_key(name), row) != row:
            raise DataError(f"two samples are the frame {_key(name)!r}", expected="each frame once")
    near = sets.within(k)
    wanted = [*near, *(name for names in near.values() for name in names)]
    missing = [name for name in wanted if _key(name) not in place]
    if missing:
        what = f"{len(missing):,} of {len(wanted):,} frames are not among the samples, such as {missing[0]!r}"
        raise DataError(what, source=sets.source or None, expected="samples named by video and frame")
    row_of = {name: place[_key(name)] for name in wanted}
    right = np.zeros(len(ids), dtype=bool)
    for name, row in row_of.items():
        right[row] = predicted[row] in sets.labels[name]
    return pm_k(right, [row_of[anchor] for anchor in near], [[row_of[name] for name in names] for names in near.values()])


def read_frames(folder: str | os.PathLike, classes: Mapping[str, Sequence[str]]) -> FrameSets:
    """The anchors in a folder of published lists of either form.

    Args:
        folder: with the files of ImageNet-Vid-Robust or of YTBB-Robust.
        classes: names by label key (`task.display_names()`); the lists must name no other class.

    Raises:
        ConfigError: for a folder with neither set of files.
        DataError: for files of another form; the message names the file and the entry.
    """
    folder = Path(folder)
    if (folder / _VID[0]).is_file():
        return _read_vid(folder, frozenset(classes))
    if (folder / _YTBB[0]).is_file():
        return _read_ytbb(folder, {names[0]: key for key, names in classes.items()})
    what = "is no folder" if not folder.is_dir() else "has no published list of frames"
    raise ConfigError(what, source=folder, expected=f"{' and '.join(_VID)}, or {', '.join(_YTBB)}")


def _read_vid(folder: Path, keys: frozenset[str]) -> FrameSets:
    listed, marked = (_tree(folder / name, dict) for name in _VID)
    frames: dict[str, dict[int, str]] = {}
    for anchor, near in listed.items():
        if not isinstance(near, list) or not all(isinstance(name, str) for name in near):
            raise DataError(f"{anchor!r} has {near!r:.60}", source=folder / _VID[0], expected="a list of frames")
        frames[anchor] = {}
        for name in near:
            frames[anchor][_number(name, folder / _VID[0]) - _number(anchor, folder / _VID[0])] = name
        if len(frames[anchor]) != len(near) or 0 in frames[anchor]:
            raise DataError(f"frames of {anchor!r} come twice", source=folder / _VID[0], expected="each frame once")
    labels: dict[str, frozenset[str]] = {}
    for name in [*frames, *(name for near in frames.values() for name in near.values())]:
        if not isinstance(marked.get(name), list) or not marked[name]:
            raise DataError(f"no labels of {name!r}", source=folder / _VID[1], expected="a list of class numbers")
        labels[name] = frozenset(map(str, marked[name]))
        if not labels[name] <= keys:
            raise unknown_class(next(iter(labels[name] - keys)), keys, folder / _VID[1])
    return FrameSets(frames=frames, labels=labels, source=str(folder))


def _read_ytbb(folder: Path, key_of: Mapping[str, str]) -> FrameSets:
    anchor_marks, pair_marks = (_marks(folder / name) for name in _YTBB[:2])
    initial = _initial_labels(folder / _YTBB[2], frozenset(key_of.values()))
    bad = {_key(name.split(",")[0]) for name, marks in pair_marks.items() if "bad-anchor" in marks}
    similar = {
        tuple(map(_key, name.split(",", 1)))
        for name, marks in pair_marks.items()
        if "similar" in marks and not marks & _PROBLEMS and "," in name
    }
    frames: dict[str, dict[int, str]] = {}
    labels: dict[str, frozenset[str]] = {}
    for path, marks in anchor_marks.items():
        anchor = "/".join(Path(path).parts[-2:])
        if "good" not in marks or marks & {"bad", "unsure"} or _key(anchor) in bad:
            continue
        video = anchor.split("/")[0]
        if video not in initial:
            raise DataError(f"no label of the video {video!r}", source=folder / _YTBB[2], expected="a row ytid, time_ms, label")
        own = frozenset(key_of[mark] for mark in marks if mark in key_of) | {initial[video]}
        centre, ending = _number(anchor, folder / _YTBB[0]), Path(anchor).suffix
        near = {away: f"{video}/frame-{centre + away}{ending}" for away in range(-K, K + 1) if away}
        frames[anchor] = {away: name for away, name in near.items() if (_key(anchor), _key(name)) in similar}
        labels |= dict.fromkeys([anchor, *frames[anchor].values()], own)
    if not frames:
        raise DataError("no anchor is marked good", source=folder / _YTBB[0])
    return FrameSets(frames=frames, labels=labels, source=str(folder))


def _marks(path: Path) -> dict[str, frozenset[str]]:
    """What is marked of each key of an annotation file, as names; of a key that comes again the last mark counts."""
    tree = _tree(path, dict)
    names, rows = tree.get("labels"), tree.get("annotations")
    if not isinstance(names, list) or not isinstance(rows, list):
        raise DataError(f"has {', '.join(map(str, tree))[:60]}", source=path, expected="'labels' and 'annotations'")
    found = {}
    for number, row in enumerate(rows):
        try:
            found[str(row["key"])] = frozenset(str(names[mark]) for mark in row["labels"])
        except (TypeError, KeyError, IndexError):
            raise DataError(f"annotation {number} is {row!r:.60}", source=path, expected="'key' and 'labels'") from None
    return found


def _initial_labels(path: Path, keys: frozenset[str]) -> dict[str, str]:
    try:
        with open(path, newline="", encoding="utf-8") as handle:
            rows = list(csv.DictReader(handle))
        found = {f"{row['ytid']}_{row['time_ms']}": _SWAPPED.get(row["label"], row["label"]) for row in rows}
    except FileNotFoundError:
        raise DataError("no such file", source=path, expected="the CSV of anchors") from None
    except (KeyError, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read: {error}", source=path, expected="the columns ytid, time_ms, label") from None
    for key in found.values():
        if key not in keys:
            raise unknown_class(key, keys, path)
    return found


def unknown_class(key: str, keys: frozenset[str], source: Path) -> DataError:
    """A `DataError` for a class number that the task does not have."""
    error = unknown_name("class", key, keys)
    return DataError(error.what, source=source, expected=error.expected)


def _tree(path: Path, kind: type) -> Any:
    tree = read_json(path)
    if not isinstance(tree, kind):
        raise DataError(f"holds a {type(tree).__name__}", source=path, expected="a JSON object")
    return tree


def _key(name: str) -> str:
    """The last two parts of a path, without the ending."""
    parts = name.replace("\\", "/").split("/")[-2:]
    return "/".join([*parts[:-1], parts[-1].rsplit(".", 1)[0]])


def _number(name: str, source: Path) -> int:
    """The number of a frame, the last one in its name."""
    digits = re.search(r"(\d+)$", _key(name).rsplit("/", 1)[-1])
    if digits is None:
        raise DataError(f"the frame {name!r} has no number", source=source, expected="names that end in the frame's number")
    return int(digits.group(1))
