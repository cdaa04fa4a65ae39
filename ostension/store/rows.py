"""Several matrices as one logical (N, E) matrix that is read from the disk as it is needed.

Letters: N rows, E embedding, B rows of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

BLOCK_ROWS = 8192


class Rows:
    """An (N, E) matrix in parts; reads slices, single rows, lists of rows and masks, and gives plain arrays.

    Args:
        counts: rows of each part.
        part: gives a part, mapped into memory.
        live: numbers of the rows that count, ascending; None for all of them.
    """

    def __init__(
        self, counts: Sequence[int], part: Callable[[int], np.ndarray], width: int, dtype: Any, live: np.ndarray | None = None
    ):
        self._ends = np.cumsum(np.asarray(counts, dtype=np.int64)) if len(counts) else np.zeros(0, dtype=np.int64)
        self._part, self._live = part, live
        total = int(self._ends[-1]) if len(self._ends) else 0
        self.shape = (total if live is None else len(live), width)
        self.dtype = np.dtype(dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        """One row (E,) for a number, else (n, E); a slice within one part is a view of the file, all else a copy."""
        if isinstance(index, (int, np.integer)):
            if not -len(self) <= index < len(self):
                raise IndexError(f"row {index} of {len(self)}")
            return self._gather(np.array([index % len(self)]))[0]
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1 and self._live is None:
                return self._span(start, max(start, stop))
            return self._gather(np.arange(start, stop, step))
        chosen = np.asarray(index)
        if chosen.dtype == bool:
            if chosen.shape != (len(self),):
                raise IndexError(f"a mask of shape {chosen.shape} for {len(self)} rows")
            return self._gather(np.flatnonzero(chosen))
        if chosen.ndim != 1 or (chosen.size and chosen.dtype.kind not in "iu"):
            raise IndexError(f"rows are chosen by an array of shape {chosen.shape} and type {chosen.dtype}")
        chosen = chosen.astype(np.int64)
        if chosen.size and not (-len(self) <= chosen.min() and chosen.max() < len(self)):
            raise IndexError(f"rows {chosen.min()} to {chosen.max()} of {len(self)}")
        return self._gather(np.where(chosen < 0, chosen + len(self), chosen))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        found = self[:]
        return found if dtype is None else found.astype(dtype, copy=False)

    @property
    def live(self) -> np.ndarray | None:
        """Numbers, as stored, of the rows that count, ascending; None for all of them."""
        return self._live

    def part(self, part: int) -> np.ndarray:
        """All rows of a part, also those that count no more."""
        return self._part(part)

    def blocks(self, size: int = BLOCK_ROWS) -> Iterator[tuple[int, np.ndarray]]:
        """The rows in order, `size` at a time, each block with the number of its first row."""
        for start in range(0, len(self), size):
            yield start, self[start : start + size]

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The part, and the place in it, of each of these rows."""
        stored = self.stored(rows)
        parts = np.searchsorted(self._ends, stored, side="right")
        return parts, stored - np.where(parts > 0, self._ends[parts - 1], 0)

    def stored(self, rows: np.ndarray) -> np.ndarray:
        """The numbers that these rows have when the ones that do not count are counted."""
        return rows if self._live is None else self._live[rows]

    def _span(self, start: int, stop: int) -> np.ndarray:
        if start == stop:
            return np.zeros((0, self.shape[1]), self.dtype)
        pieces, first = [], int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            end = int(self._ends[first])
            offset = start - (int(self._ends[first - 1]) if first else 0)
            count = min(stop, end) - start
            if count:
                pieces.append(self._part(first)[offset : offset + count])
            start, first = start + count, first + 1
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _gather(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), self.shape[1]), self.dtype)
        parts, places = self.locate(rows)
        for part in np.unique(parts):
            here = parts == part
            out[here] = self._part(int(part))[places[here]]
        return out
