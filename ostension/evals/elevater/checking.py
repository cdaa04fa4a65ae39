"""Whether a submission will be taken: every entry against its data set, and the entries together.

An image set's entry: as many rows as test images, as many probabilities as classes, each in 0..1, rows that sum to 1 within
1e-3 (but of the multi-label set). A detection set's: boxes as `detection` says. A submission: the twenty image sets (perhaps
with ImageNet) or the thirty-five of detection, each once, of one model, one number of shots and the same seeds. What is
found first of each kind is named with its place and the rest is counted.

The order of keys in a file is free, so rows are tallied as they pass and judged when the entry has ended.

Source: `prediction_submission.py` and `submission_file_readme.md` of the toolkit, read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

from ostension.evals.elevater.detection import Annotations, wrong_with_box
from ostension.evals.elevater.json_stream import MAX_BYTES
from ostension.evals.elevater.sets import OPTIONAL, detection_set, detection_sets, image_sets
from ostension.evals.elevater.submission import Header, Image, header_of, open_json, read_archive, read_entry

SUM_TOLERANCE = 1e-3
SHOTS = (0, 5, -1)  # zero-shot, few-shot, full-shot: the three tracks
KEPT_SIZES = 3  # of rows; one is right, another is named
FEW_SEEDS = (0, 1, 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """What was found of one entry: its keys, its sizes, what is wrong with it."""

    header: Header
    seeds: int
    images: int
    problems: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What was found of a file."""

    entries: tuple[Entry, ...]
    problems: tuple[str, ...]

    @property
    def valid(self) -> bool:
        return not self.all_problems

    @property
    def all_problems(self) -> tuple[str, ...]:
        """Those of each entry under its name, then those of the whole."""
        found = [f"{entry.header.dataset_name}: {problem}" for entry in self.entries for problem in entry.problems]
        return (*found, *self.problems)


class Tally:
    """What passes of an entry's predictions: images by seed, sizes of rows, and the first row of each kind that is wrong."""

    def __init__(self) -> None:
        self.images: list[int] = []
        self.sizes: dict[int, str] = {}  # how many numbers a row has, and the first place of such a row
        self.rows_of_boxes = 0
        self.highest = -1  # class of a box
        self._first: dict[str, str] = {}
        self._counts: dict[str, int] = {}

    def __call__(self, seed: int, image: Image) -> None:
        while len(self.images) <= seed:
            self.images.append(0)
        where = f"image {self.images[seed]} of seed {seed}"
        self.images[seed] += 1
        kinds = set(map(type, image))
        if list in kinds:
            self._boxes(image, where)
        else:
            self._row(image, where, kinds)

    def found(self, *kinds: str) -> list[str]:
        """The problems of these kinds in words."""
        lines = []
        for kind in kinds:
            if kind in self._first:
                more = self._counts[kind] - 1
                lines.append(self._first[kind] + (f" (and {more:,} more)" if more else ""))
        return lines

    def _boxes(self, image: Image, where: str) -> None:
        self.rows_of_boxes += 1
        for place, box in enumerate(image):
            wrong = wrong_with_box(box, None)
            if wrong is None:
                self.highest = max(self.highest, int(box[0]))
            else:
                self._note("box", f"box {place} of {where} {wrong}")

    def _row(self, row: Image, where: str, kinds: set[type]) -> None:
        if len(self.sizes) < KEPT_SIZES:
            self.sizes.setdefault(len(row), where)
        if not kinds <= {int, float}:
            self._note("number", f"{where} holds what is no number")
            return
        if row and not (min(row) >= 0 and max(row) <= 1):
            bad = str(next(part for part in row if not 0 <= part <= 1))[:20]
            self._note("range", f"{where} has the probability {bad}, expected 0 to 1")
            return
        total = math.fsum(row)
        if not math.isclose(total, 1, rel_tol=SUM_TOLERANCE):
            self._note("sum", f"{where} sums to {total:.6g}, expected 1 within {SUM_TOLERANCE:g}")

    def _note(self, kind: str, line: str) -> None:
        self._first.setdefault(kind, line)
        self._counts[kind] = self._counts.get(kind, 0) + 1


def check_file(path: Path, annotations: Mapping[str, Annotations] | None = None, *, max_bytes: int = MAX_BYTES) -> Report:
    """Check the prediction file of one data set (.json).

    Raises:
        DataError, LimitError: for a file that is no such thing at all.
    """
    tally = Tally()
    with open_json(path, max_bytes=max_bytes) as stream:
        keys = read_entry(stream, tally)
        stream.end()
    return Report(entries=(judge(header_of(keys, path), keys["predictions"], tally, annotations or {}),), problems=())


def check_archive(path: Path, annotations: Mapping[str, Annotations] | None = None, *, max_bytes: int = MAX_BYTES) -> Report:
    """Check a submission (.zip, or the .json in it).

    Args:
        annotations: of detection sets by name, for their numbers of images and classes.

    Raises:
        DataError, LimitError: for a file that is no such thing at all.
    """
    tallies: list[Tally] = []

    def tally(index: int) -> Tally:
        tallies.append(Tally())
        return tallies[-1]

    found = [
        judge(header_of(keys, path), keys["predictions"], tallies.pop(), annotations or {})
        for keys in read_archive(path, tally, max_bytes=max_bytes)
    ]
    return Report(entries=tuple(found), problems=tuple(_together(found)))


def judge(header: Header, seeds: int, tally: Tally, annotations: Mapping[str, Annotations]) -> Entry:
    """An entry with what is wrong with it."""
    problems = _about_header(header)
    if seeds != len(header.rnd_seeds) or len(set(header.rnd_seeds)) < seeds:
        problems.append(f"{seeds} seeds of predictions for rnd_seeds {list(header.rnd_seeds)}, expected one each")
    images = tally.images + [0] * (seeds - len(tally.images))
    published = image_sets().get(header.dataset_name)
    detection = detection_set(header.dataset_name)
    if published is not None:
        wanted: int | None = published.test_images
        if tally.rows_of_boxes:
            problems.append("has boxes, expected rows of probabilities")
        problems += [
            f"{place} has {size:,} probabilities, expected {published.classes:,}"
            for size, place in tally.sizes.items() if size != published.classes
        ][:1]  # fmt: skip
        problems += tally.found("number", "range", *(() if published.multilabel else ("sum",)))
    elif detection is not None:
        known = {detection_set(name): one for name, one in annotations.items()}.get(detection)
        wanted = None if known is None else len(known.images)
        classes = detection_sets()[detection] if known is None else len(known.categories)
        problems += [f"{place} has probabilities, expected boxes" for size, place in tally.sizes.items() if size][:1]
        problems += tally.found("box")
        if tally.highest >= classes:
            problems.append(f"a box has the class {tally.highest}, expected 0 to {classes - 1}")
    else:
        wanted = None
        problems.append("is no data set of the leaderboard")
    uneven = [count for count in images if count != (images[0] if wanted is None else wanted)]
    if uneven:
        problems.append(f"{uneven[0]:,} images, expected {images[0] if wanted is None else wanted:,}")
    if not any(images):
        problems.append("has no predictions")
    return Entry(header=header, seeds=seeds, images=max(images, default=0), problems=tuple(problems))


def _about_header(header: Header) -> list[str]:
    problems = []
    if header.n_shot not in SHOTS:
        problems.append(f"n_shot is {header.n_shot}, expected 0, 5 or -1 (all)")
    if header.n_shot == 0 and header.num_trainable_params:
        problems.append(f"num_trainable_params is {header.num_trainable_params:g}, expected 0 for zero-shot")
    if not header.num_visual_params <= header.num_backbone_params <= header.num_params:
        problems.append("expected num_visual_params <= num_backbone_params <= num_params")
    return problems


def _together(entries: list[Entry]) -> list[str]:
    """What is wrong with the entries as a whole."""
    if not entries:
        return ["there are no entries"]
    names = [detection_set(entry.header.dataset_name) or entry.header.dataset_name for entry in entries]
    problems = [f"{name} comes {names.count(name)} times" for name in dict.fromkeys(names) if names.count(name) > 1]
    boxes = [name for name in names if name in detection_sets()]
    if boxes and len(boxes) < len(names):
        problems.append("holds image sets and detection sets, expected one kind")
    wanted = set(detection_sets()) if boxes else set(image_sets()) - {OPTIONAL}
    missing = sorted(wanted - set(names))
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        problems.append(f"{len(missing)} of {len(wanted)} data sets are missing: {shown}")
    for what in ("model_name", "n_shot", "rnd_seeds"):
        values = list(dict.fromkeys(getattr(entry.header, what) for entry in entries))
        if len(values) > 1:
            problems.append(f"{what} differs: {values[0]!r} and {values[1]!r}")
    first = entries[0].header
    if first.n_shot == SHOTS[1] and sorted(first.rnd_seeds) != list(FEW_SEEDS):
        problems.append(f"rnd_seeds are {list(first.rnd_seeds)}, expected {list(FEW_SEEDS)} for 5 shots")
    return problems
