"""Every caption as a pair of its own: an image with five captions is five pairs of an epoch."""

from __future__ import annotations

import dataclasses

import numpy as np

from ostension.data.arrays import MappedArrays, cached_arrays
from ostension.data.pairs import Joined, Pair, PairSource, Subset, Summary, check_index
from ostension.errors import DataError, LimitError
from ostension.files import sha256_json


class AllCaptions:
    """The pairs of a source, each as often as it has captions, with one of them.

    Only where each pair's captions end is known, 8 bytes a pair in a file that processes share; the texts stay where they are.
    """

    def __init__(self, source: PairSource):
        self.source = source
        counts = text_counts(source)
        self._ends: MappedArrays | None = None
        if counts is not None:
            ends = np.cumsum(counts, dtype=np.int64)
            self._ends = cached_arrays("all captions 1", source.fingerprint(), lambda: ({"ends": ends}, {}))

    def __len__(self) -> int:
        return len(self.source) if self._ends is None else int(self._ends["ends"][-1])

    def read(self, index: int) -> Pair:
        row, caption = self._locate(index)
        pair = self.source.read(row)
        if caption >= len(pair.texts):
            what = f"has {len(pair.texts)} captions, caption {caption + 1} was counted: it changed"
            raise DataError(what, source=pair.key)
        return dataclasses.replace(pair, key=self.key(index), texts=(pair.texts[caption],), weights=())

    def key(self, index: int) -> str:
        row, caption = self._locate(index)
        return self.source.key(row) if self._ends is None else f"{self.source.key(row)}#{caption + 1}"

    def fingerprint(self) -> str:
        return sha256_json(["all captions", self.source.fingerprint()])

    def image_digests(self) -> np.ndarray:
        digests = self.source.image_digests()
        return digests if self._ends is None else np.repeat(digests, np.diff(self._ends["ends"], prepend=0))

    def summary(self) -> Summary:
        return dataclasses.replace(self.source.summary(), num_pairs=len(self))

    def _locate(self, index: int) -> tuple[int, int]:
        """The pair in the source, and which of its captions."""
        check_index(index, len(self))
        if self._ends is None:
            return index, 0
        ends = self._ends["ends"]
        row = int(np.searchsorted(ends, index, side="right"))
        return row, index - (int(ends[row - 1]) if row else 0)


def text_counts(source: PairSource) -> np.ndarray | None:
    """How many captions each pair of a source has; None where each has one."""
    if isinstance(source, Joined):
        parts = [text_counts(part) for part in source.sources]
        if all(part is None for part in parts):
            return None
        sizes = map(len, source.sources)
        return np.concatenate(
            [np.ones(size, np.int32) if part is None else part for part, size in zip(parts, sizes, strict=True)]
        )
    if isinstance(source, Subset):
        counts = text_counts(source.source)
        return None if counts is None else counts[source.ids]
    known = getattr(source, "text_counts", None)
    if known is not None:
        return known()
    return np.fromiter((_num_texts(source, index) for index in range(len(source))), dtype=np.int32, count=len(source))


def _num_texts(source: PairSource, index: int) -> int:
    try:
        return len(source.read(index).texts)
    except (DataError, LimitError):
        return 1  # it will be refused when it is read again, and count as one bad sample
