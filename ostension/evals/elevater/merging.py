"""Prediction files of single data sets, merged into the archive that the leaderboard takes.

Files of one data set differ in their seed: seeds and predictions are put one after the other, in the order of the seeds,
numbers of trained parameters are averaged, and every other key must be the same. Files are checked before anything is
written, and read a second time for the writing, so memory holds one image.

Source: `prepare_submit.py` of the toolkit, read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ostension.errors import DataError
from ostension.evals.elevater.checking import check_file
from ostension.evals.elevater.submission import Header, archive_writer, open_json, with_six_decimals

SAME = ("model_name", "num_params", "num_visual_params", "num_backbone_params", "n_shot")


def merge(files: Sequence[Path], out: Path) -> list[Header]:
    """Write the archive `out`; what its entries say of themselves, in their order.

    Raises:
        DataError: for files that are not valid, or do not belong together.
    """
    if not files:
        raise DataError("there are no prediction files to merge", expected="JSON files, one for each data set and seed")
    known = []
    for path in files:
        report = check_file(path)
        if not report.valid:
            more = f" (and {len(report.all_problems) - 1} more)" if len(report.all_problems) > 1 else ""
            raise DataError(report.all_problems[0] + more, source=path, expected="a prediction file that is valid")
        known.append((path, report.entries[0].header))
    merged = []
    with archive_writer(out) as add:
        for name in dict.fromkeys(header.dataset_name for _, header in known):
            parts = sorted((part for part in known if part[1].dataset_name == name), key=lambda part: part[1].rnd_seeds)
            header = _merged(parts)
            add(header, (seed for path, _ in parts for seed in seeds_of(path)))
            merged.append(header)
    return merged


def seeds_of(path: Path) -> Iterator[Iterable[str]]:
    """The JSON texts of a file's predictions, seed by seed and image by image; each seed must be read before the next."""
    with open_json(path) as stream:
        for name in stream.fields():
            if name != "predictions":
                stream.value()
                continue
            for _ in stream.items():
                yield (with_six_decimals(stream.text(numbers=True)) for _ in stream.items())


def _merged(parts: Sequence[tuple[Path, Header]]) -> Header:
    (first_path, first), *others = parts
    for path, header in others:
        for key in SAME:
            if getattr(header, key) != getattr(first, key):
                what = f"{key} is {getattr(header, key)!r}, but {getattr(first, key)!r} in {first_path}"
                raise DataError(what, source=path, expected=f"the same in all files of {first.dataset_name}")
    seeds = [seed for _, header in parts for seed in header.rnd_seeds]
    if len(set(seeds)) < len(seeds):
        raise DataError(f"the files of {first.dataset_name} have the seeds {seeds}", source=first_path, expected="each once")
    trained = sum(header.num_trainable_params for _, header in parts) / len(parts)
    return dataclasses.replace(first, num_trainable_params=trained, rnd_seeds=tuple(seeds))
