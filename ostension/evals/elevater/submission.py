"""Submission files: one JSON object a data set, and the archive that holds them all.

An entry has the keys of `KEYS`. Its predictions are nested lists (seeds, images, classes) of probabilities with six
decimals; of a detection set (seeds, images, boxes) of `[class, conf, L, T, R, B]`. The archive `all_predictions.zip` holds
one file, `{"data": [entry, ...]}`.

Everything is written and read an image at a time, so that memory does not grow with the number of images.

Letters: M images, C classes.
Source: `submission_file_readme.md`, `linear_probe.py` and `prepare_submit.py` of the toolkit, read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ostension.errors import DataError
from ostension.evals.elevater.json_stream import MAX_BYTES, JsonStream, reason_of
from ostension.files import atomic_path

DECIMALS = 6
ARCHIVE = "all_predictions.zip"
MEMBER = "all_predictions.json"
NUMBERS = ("num_trainable_params", "num_params", "num_visual_params", "num_backbone_params")
KEYS = ("model_name", "dataset_name", *NUMBERS, "n_shot", "rnd_seeds", "predictions")
# Numbers of more than six decimals, among them those below 1e-4 as Python writes them (1.25e-05, 1.5e-06, 1e-07).
_LONGER = re.compile(r"\.\d{7}|\.\d{2,}[eE]|\.\d[eE]-0*[6-9]|[eE]-0*(?:[7-9]|[1-9]\d)")
ROWS = 1_024  # of float64 at a time
HUGE = 1e15  # beyond any pixel, probability or number of parameters
MAX_TEXT = 10_000  # letters of what is not a row

Image = list[Any]
OnImage = Callable[[int, Image], None]  # told the number of the seed and what is predicted for the next image


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
    """An entry without its predictions; the names are the file's keys."""

    model_name: str
    dataset_name: str
    num_trainable_params: int | float
    num_params: int | float
    num_visual_params: int | float
    num_backbone_params: int | float
    n_shot: int
    rnd_seeds: tuple[int, ...]

    def tree(self) -> dict[str, Any]:
        """Its keys in the order of the published files."""
        return {**dataclasses.asdict(self), "rnd_seeds": list(self.rnd_seeds)}


def write_prediction_file(path: Path, header: Header, predictions: Sequence[np.ndarray]) -> None:
    """Write the file of one data set.

    Args:
        predictions: (M, C) probabilities for each of the header's seeds.
    """
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as handle:
        write_entry(handle, header, ((json.dumps(row.tolist()) for row in _rounded(seed)) for seed in predictions))


def write_entry(handle: io.TextIOBase, header: Header, predictions: Iterable[Iterable[str]]) -> None:
    """Write one entry, an image at a time.

    Args:
        predictions: by seed, the JSON text of each image.
    """
    handle.write(json.dumps(header.tree(), ensure_ascii=False)[:-1] + ', "predictions": [')
    for place, seed in enumerate(predictions):
        handle.write(", [" if place else "[")
        for index, image in enumerate(seed):
            handle.write(f", {image}" if index else image)
        handle.write("]")
    handle.write("]}")


@contextlib.contextmanager
def archive_writer(path: Path) -> Iterator[Callable[[Header, Iterable[Iterable[str]]], None]]:
    """Give a function that adds an entry to the archive at `path`, which is there when all went well."""
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        # The time is fixed, so that the same predictions give the same file.
        member = zipfile.ZipInfo(MEMBER, date_time=(1980, 1, 1, 0, 0, 0))
        member.compress_type = zipfile.ZIP_DEFLATED
        with archive.open(member, "w", force_zip64=True) as raw, io.TextIOWrapper(raw, encoding="utf-8") as handle:
            handle.write('{"data": [')
            count = 0

            def add(header: Header, predictions: Iterable[Iterable[str]]) -> None:
                nonlocal count
                handle.write(", " if count else "")
                write_entry(handle, header, predictions)
                count += 1

            yield add
            handle.write("]}")


def with_six_decimals(text: str) -> str:
    """The JSON text of an image with no number of more than six decimals; whole numbers stay whole."""
    return json.dumps(_shortened(json.loads(text))) if _LONGER.search(text) else text


def _shortened(image: Image) -> Image:
    return [_shortened(part) if isinstance(part, list) else round(part, DECIMALS) for part in image]


def _rounded(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), ROWS):
        yield from rows[start : start + ROWS].astype(np.float64).round(DECIMALS)


@contextlib.contextmanager
def open_json(path: Path, *, max_bytes: int = MAX_BYTES) -> Iterator[JsonStream]:
    """The JSON of a file, or of the one JSON file in an archive.

    Raises:
        DataError: for a file that is not there, no archive, an archive of other files, or one that is spoilt or locked.
    """
    with contextlib.ExitStack() as stack:
        try:
            handle: io.BufferedIOBase = stack.enter_context(open(path, "rb"))
            if path.suffix == ".zip":
                archive = stack.enter_context(zipfile.ZipFile(handle))  # type: ignore[type-var]
                handle = stack.enter_context(archive.open(_member(archive, path)))  # type: ignore[assignment]
        except FileNotFoundError:
            raise DataError("no such file", source=path, expected="a submission (.zip or .json)") from None
        except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
            raise DataError(f"cannot be opened: {reason_of(error)}", source=path) from None
        yield JsonStream(handle, path, max_bytes=max_bytes)


def read_entry(stream: JsonStream, on_image: OnImage | None = None) -> dict[str, Any]:
    """The keys of one entry; of the predictions how many seeds there are, while each image is handed on.

    Raises:
        DataError, LimitError: for what is not an entry.
    """
    found: dict[str, Any] = {}
    for name in stream.fields():
        if name != "predictions":
            found[name] = stream.value(limit=MAX_TEXT)
            continue
        found[name] = 0
        for seed in stream.items():
            found[name] = seed + 1
            for _ in stream.items():
                image = stream.value(numbers=True)
                if not isinstance(image, list):
                    raise DataError(f"an image of seed {seed} is {image!r}", source=stream.source, expected="a list")
                if on_image is not None:
                    on_image(seed, image)
    return found


def read_archive(path: Path, on_image: Callable[[int], OnImage], *, max_bytes: int = MAX_BYTES) -> Iterator[dict[str, Any]]:
    """The keys of each entry of `{"data": [...]}`, in order.

    Args:
        on_image: what is told the images of the entry with that number.

    Raises:
        DataError, LimitError: for what is not a submission.
    """
    with open_json(path, max_bytes=max_bytes) as stream:
        for name in stream.fields():
            if name != "data":
                raise DataError(f"the field {name!r}", source=path, expected='{"data": [...]} and nothing else')
            for index in stream.items():
                yield read_entry(stream, on_image(index))
        stream.end()


def header_of(entry: dict[str, Any], source: object) -> Header:
    """The keys of an entry as a header.

    Raises:
        DataError: naming the first key that is missing, is not one, or holds something else than it should.
    """
    lacking, more = [key for key in KEYS if key not in entry], sorted(set(entry) - set(KEYS))
    if lacking or more:
        what = f"lacks {', '.join(lacking)}" if lacking else f"has {', '.join(map(repr, more))}"
        raise DataError(f"an entry {what}", source=source, expected=f"the keys {', '.join(KEYS)}")
    seeds = entry["rnd_seeds"]
    wrong = [key for key in ("model_name", "dataset_name") if not isinstance(entry[key], str) or not entry[key]]
    wrong += [key for key in NUMBERS if not is_number(entry[key]) or entry[key] < 0]
    wrong += [] if type(entry["n_shot"]) is int else ["n_shot"]
    wrong += [] if isinstance(seeds, list) and seeds and all(type(seed) is int for seed in seeds) else ["rnd_seeds"]
    if wrong:
        expected = "texts, numbers from 0, a whole number, and a list of whole numbers"
        what = f"{wrong[0]} is {json.dumps(entry[wrong[0]], ensure_ascii=False)[:60]}"
        raise DataError(f"{what} in {str(entry['dataset_name'])[:60]!r}", source=source, expected=expected)
    return Header(**{key: entry[key] for key in KEYS if key not in ("rnd_seeds", "predictions")}, rnd_seeds=tuple(seeds))


def is_number(value: Any) -> bool:
    """Whether it is a number of usual size (true and false are none, and 1e999 is read as infinity)."""
    return type(value) in (int, float) and -HUGE < value < HUGE


def _member(archive: zipfile.ZipFile, path: Path) -> zipfile.ZipInfo:
    found = [member for member in archive.infolist() if not member.is_dir()]
    if len(found) != 1 or not found[0].filename.endswith(".json"):
        names = ", ".join(repr(member.filename[:60]) for member in found[:3]) or "nothing"
        raise DataError(f"holds {names} ({len(found)})", source=path, expected=f"one JSON file, such as {MEMBER}")
    return found[0]
