"""What every data source gives: pairs of an encoded image and its texts, by index.

Sources are read by position and hold no state, so that the order of training is a function of the step alone and a
resumed run sees exactly the samples that were left.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ostension.errors import ConfigError, DataError, LimitError
from ostension.files import sha256_json

IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"})
MAX_IMAGE_BYTES = 64_000_000
MAX_TEXT_BYTES = 1_000_000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One image and what is said about it.

    Attributes:
        key: where the sample lies, unique in its source: `SHARD/KEY`, `TABLE:LINE` or a path.
        image: the encoded image, as stored.
        texts: one or more captions.
        meta: whatever else the source knows (the sample's JSON, the row's other columns).
        weights: how likely each text is to be drawn, in any unit; empty where all are alike.
    """

    key: str
    image: bytes
    texts: tuple[str, ...]
    meta: dict[str, Any]
    weights: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """What a source holds and what it had to leave out.

    Attributes:
        num_pairs: pairs that can be read.
        num_bytes: size of the source's files.
        rejects: what is not a pair, counted by reason (found on opening; broken images are found on reading).
        notes: one line for each file that is readable in part only.
    """

    num_pairs: int
    num_bytes: int
    rejects: dict[str, int]
    notes: tuple[str, ...] = ()


@runtime_checkable
class PairSource(Protocol):
    """A fixed list of pairs that can be read in any order, from any process or thread.

    A source whose pairs have several texts each may also have `text_counts()` (see `captions`), which says how many without
    reading images.
    """

    def __len__(self) -> int: ...

    def read(self, index: int) -> Pair:
        """The pair at `index`; raises a `DataError` naming the sample if it cannot be read."""
        ...

    def key(self, index: int) -> str:
        """The key of the pair at `index`, without reading it."""
        ...

    def fingerprint(self) -> str:
        """A hash of the content and its order; a run refuses to resume on another one."""
        ...

    def image_digests(self) -> np.ndarray:
        """A 64-bit hash (uint64) of each image's bytes, in order."""
        ...

    def summary(self) -> Summary:
        """What is in the source and what had to be left out."""
        ...


def read_image(path: Path, source: object) -> bytes:
    """An image file, as stored; `source` is what to call it in messages.

    Raises:
        LimitError: if it is larger than an image may be.
        DataError: if it cannot be read.
    """
    size = size_of(path)
    if size > MAX_IMAGE_BYTES:
        raise LimitError(f"image of {size} bytes", source=source, expected=f"at most {MAX_IMAGE_BYTES}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"image {path.name!r} cannot be read: {(error.strerror or '').lower()}", source=source) from None


def size_of(path: Path) -> int:
    """A file's size, -1 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def image_digest(image: bytes) -> int:
    """A 64-bit hash of an encoded image."""
    return int.from_bytes(hashlib.blake2b(image, digest_size=8).digest(), "little")


class Joined:
    """Several sources as one, one after the other."""

    def __init__(self, sources: Sequence[PairSource]):
        assert sources
        self.sources = tuple(sources)
        self._ends = list(itertools.accumulate(len(source) for source in self.sources))

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, index: int) -> Pair:
        source, local = self._locate(index)
        return source.read(local)

    def key(self, index: int) -> str:
        source, local = self._locate(index)
        return source.key(local)

    def fingerprint(self) -> str:
        return sha256_json(["joined", *(source.fingerprint() for source in self.sources)])

    def image_digests(self) -> np.ndarray:
        return np.concatenate([source.image_digests() for source in self.sources])

    def summary(self) -> Summary:
        parts = [source.summary() for source in self.sources]
        rejects: dict[str, int] = {}
        for part in parts:
            for reason, count in part.rejects.items():
                rejects[reason] = rejects.get(reason, 0) + count
        return Summary(
            num_pairs=len(self),
            num_bytes=sum(part.num_bytes for part in parts),
            rejects=rejects,
            notes=tuple(note for part in parts for note in part.notes),
        )

    def _locate(self, index: int) -> tuple[PairSource, int]:
        check_index(index, len(self))
        which = bisect.bisect_right(self._ends, index)
        return self.sources[which], index - (self._ends[which - 1] if which else 0)


class Subset:
    """Some pairs of a source, in the order of `ids`."""

    def __init__(self, source: PairSource, ids: Sequence[int] | np.ndarray):
        self.source = source
        self.ids = np.asarray(ids, dtype=np.int64)
        if self.ids.ndim != 1 or (len(self.ids) and (self.ids.min() < 0 or self.ids.max() >= len(source))):
            raise ConfigError("ids of a subset lie outside its source", expected=f"numbers from 0 to {len(source) - 1}")

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int) -> Pair:
        check_index(index, len(self))
        return self.source.read(int(self.ids[index]))

    def key(self, index: int) -> str:
        check_index(index, len(self))
        return self.source.key(int(self.ids[index]))

    def fingerprint(self) -> str:
        ids = hashlib.sha256(np.ascontiguousarray(self.ids, dtype="<i8").tobytes()).hexdigest()
        return sha256_json(["subset", self.source.fingerprint(), ids])

    def image_digests(self) -> np.ndarray:
        return self.source.image_digests()[self.ids]

    def summary(self) -> Summary:
        """What the subset holds; what its source had to leave out is reported there."""
        return Summary(num_pairs=len(self), num_bytes=self.source.summary().num_bytes, rejects={})


def check_index(index: int, length: int) -> None:
    """Raise `IndexError` unless 0 <= index < length (as a sequence does, so that a source can be iterated over)."""
    if not 0 <= index < length:
        raise IndexError(f"pair {index} of {length}")
