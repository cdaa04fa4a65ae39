"""What is known of each picture for finding its copies: its bytes, its pixels, its hash, a detector's row.

Every picture is decoded once for all of it. One that cannot be decoded still has its bytes; why it cannot is kept.

Letters: n pictures, E numbers a row.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ostension.data.pairs import PairSource, image_digest
from ostension.errors import ConfigError, DataError, LimitError

if TYPE_CHECKING:
    from ostension.model.duplicate_detector import DuplicateDetector

CHUNK = 64  # pictures that pass the detector together: always the same ones, whoever else works on other parts
HALF = 32  # bits of a hash that are above the median of its 64 coefficients


class Seen(IntEnum):
    """How much is known of a picture."""

    NOTHING = 0  # there is none, or its file cannot be read
    BYTES = 1  # it cannot be decoded
    BLANK = 2  # nearly black, or of one colour: its hash and its row are those of every such picture
    PLAIN = 3  # so even that frequencies tie at the median: fewer than half of its hash's bits are set, and say little
    ALL = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureFacts:
    """Of n pictures.

    Attributes:
        seen: (n,) uint8, see `Seen`.
        bad: why a picture could not be read or decoded, else None.
        digest: (n,) uint64 of the bytes.
        pixels: (n,) uint64 of the size and the RGB pixels, transparency on white.
        hash: (n,) uint64 perceptual hashes.
        area: (n,) int64 pixels.
        rows: (n, E) float16 unit rows of the detector, or None without one; zeros where there is nothing to see.
    """

    seen: np.ndarray
    bad: list[str | None]
    digest: np.ndarray
    pixels: np.ndarray
    hash: np.ndarray
    area: np.ndarray
    rows: np.ndarray | None


def look(
    images: Iterable[Callable[[], bytes]], names: Iterable[str], *, decode: bool = True,
    detector: DuplicateDetector | None = None,
) -> PictureFacts:  # fmt: skip
    """The facts of pictures, each given as a function that reads its bytes.

    Args:
        decode: else only the bytes are looked at.
        detector: for rows.
    """
    table: list[tuple[Seen, str | None, int, int, int, int]] = []
    rows, waiting = [], []
    for image, name in zip(images, names, strict=True):
        facts, picture = _one(image, name, decode)
        table.append(facts)
        if detector is not None:
            waiting.append(picture)
            if len(waiting) == CHUNK:
                rows.append(_embedded(waiting, detector))
                waiting = []
    if detector is not None:
        rows.append(_embedded(waiting, detector))
    seen, bad, *numbers = zip(*table, strict=True) if table else [()] * 6
    digest, pixels, hashes = (np.array(values, dtype=np.uint64) for values in numbers[:3])
    return PictureFacts(
        seen=np.array(seen, dtype=np.uint8), bad=list(bad), digest=digest, pixels=pixels, hash=hashes,
        area=np.array(numbers[3], dtype=np.int64), rows=np.concatenate(rows) if rows else None,
    )  # fmt: skip


def _one(image: Callable[[], bytes], name: str, decode: bool) -> tuple[tuple[Seen, str | None, int, int, int, int], Any]:
    from ostension.evals.overlap_review import blank
    from ostension.image.decode import open_image
    from ostension.store.perceptual import perceptual_hash

    try:
        data = image()
    except (DataError, LimitError) as error:
        return (Seen.NOTHING, error.what, 0, 0, 0, 0), None
    digest = image_digest(data)
    if not decode:
        return (Seen.BYTES, None, digest, 0, 0, 0), None
    try:
        picture = open_image(data, name=name)
    except (DataError, LimitError) as error:
        return (Seen.BYTES, error.what, digest, 0, 0, 0), None
    whole = hashlib.blake2b(f"{picture.width} {picture.height} ".encode(), digest_size=8)
    whole.update(picture.tobytes())
    pixels, found = int.from_bytes(whole.digest(), "little"), perceptual_hash(picture)
    seen = Seen.BLANK if blank(picture) else Seen.PLAIN if found.bit_count() < HALF else Seen.ALL
    return (seen, None, digest, pixels, found, picture.width * picture.height), picture


def _embedded(pictures: list[Any], detector: DuplicateDetector) -> np.ndarray:
    """(n, E) rows, computed with one thread: as many threads as there happen to be could change the last bit."""
    import torch

    rows = np.zeros((len(pictures), detector.config.embed_dim), np.float16)
    good = [place for place, picture in enumerate(pictures) if picture is not None]
    if good:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            found = detector.embed_images([pictures[place] for place in good], batch_size=CHUNK)
        finally:
            torch.set_num_threads(threads)
        rows[good] = found.cpu().numpy().astype(np.float16)
    return rows


def evaluation_sources(names: Iterable[str], data: str | None, split: str) -> Iterator[tuple[str, PairSource]]:
    """The pictures of evaluation sets: tasks by name or TOML file, or anything that holds pictures.

    Args:
        data: of tasks, the folder of all data.
        split: of tasks.

    Raises:
        ConfigError, DataError: for what cannot be opened, or holds no pictures.
    """
    from ostension.data.pictures import open_pictures
    from ostension.data.task import task_names
    from ostension.data.task_data import open_task

    known = set(task_names())
    for name in names:
        if name in known or Path(name).suffix == ".toml":
            opened = open_task(name, data, split=split)
            if opened.samples.embeddings is not None:
                raise DataError("holds ready embeddings and no pictures", source=name, expected="a task with pictures")
            yield name, opened.samples
        else:
            try:
                yield name, open_pictures(name)
            except ConfigError as error:
                raise ConfigError(
                    f"{name!r} is no task and no pictures: {error.what}", source="against", expected="a task, a folder, shards"
                ) from None


def urls_of(source: PairSource, index: int) -> str | None:
    """Where a picture was found, if the source says so."""
    from ostension.curate.candidates import URL_COLUMNS

    meta = source.read(index).meta
    return next((meta[name] for name in URL_COLUMNS if isinstance(meta.get(name), str)), None)
