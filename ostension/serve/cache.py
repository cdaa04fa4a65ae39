"""Embeddings of texts that were asked for before, within a number of bytes; the one not used for longest goes first."""

from __future__ import annotations

import collections
from collections.abc import Sequence

import numpy as np

OVERHEAD = 200  # bytes of an entry beside its row and key


class TextCache:
    """Rows by token ids.

    Args:
        max_bytes: of everything that is kept; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes, self.bytes = max_bytes, 0
        self._rows: collections.OrderedDict[bytes, np.ndarray] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, ids: Sequence[int]) -> np.ndarray | None:
        """The row of a text, if it is kept."""
        key = _key(ids)
        row = self._rows.get(key)
        if row is not None:
            self._rows.move_to_end(key)
        return row

    def put(self, ids: Sequence[int], row: np.ndarray) -> None:
        """Keep a row."""
        key, row = _key(ids), np.array(row)  # a row of a batch would keep the batch
        if key in self._rows or _size(key, row) > self.max_bytes:
            return
        self._rows[key] = row
        self.bytes += _size(key, row)
        while self.bytes > self.max_bytes:
            self.bytes -= _size(*self._rows.popitem(last=False))


def _key(ids: Sequence[int]) -> bytes:
    return np.asarray(ids, np.int32).tobytes()


def _size(key: bytes, row: np.ndarray) -> int:
    return len(key) + row.nbytes + OVERHEAD
