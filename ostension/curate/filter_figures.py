"""Histograms of what a filter measured: lengths of captions, languages, sizes and shapes of pictures. Memory does not grow.

Counted over all that the filter was given, kept or not, so that a threshold can be seen where it cuts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

# Lower edges of the bins; the last one is open.
EDGES: dict[str, tuple[float, ...]] = {
    "words": (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 50, 100),
    "characters": (0, 1, 3, 6, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000),
    "shorter_side": (1, 16, 32, 64, 100, 150, 200, 256, 300, 400, 512, 768, 1024, 2048, 4096),
    "aspect": (1, 1.05, 1.2, 1.35, 1.5, 1.75, 2, 2.5, 3, 4, 6, 10),
    "language_p": (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    "unsafe_caption": (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    "unsafe_picture": (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
}


class Seen:
    """Counts over parts."""

    def __init__(self) -> None:
        self._counts = {name: np.zeros(len(edges), np.int64) for name, edges in EDGES.items()}
        self._kinds: dict[str, Counter[str]] = {"language": Counter(), "format": Counter()}

    def add(self, texts: Sequence[Sequence[str]], table: Any) -> None:
        """Take in a part: the captions that the filter was given, and its columns."""
        flat = [text for row in texts for text in row]
        self._count("words", np.array([len(text.split()) for text in flat]))
        self._count("characters", np.array([len(text) for text in flat]))
        names = table.column_names
        if "width" in names:
            sizes = [table[name].to_numpy().astype(float) for name in ("width", "height")]
            short, long = np.minimum(*sizes), np.maximum(*sizes)
            known = short > 0  # not where it is missing, which is NaN
            self._count("shorter_side", short[known])
            self._count("aspect", long[known] / short[known])
        for name in ("language_p", "unsafe_caption"):
            if name in names:
                self._count(name, table[name].combine_chunks().flatten().drop_null().to_numpy())
        if "unsafe_picture" in names:
            self._count("unsafe_picture", table["unsafe_picture"].drop_null().to_numpy())
        if "language" in names:
            self._kinds["language"].update(table["language"].combine_chunks().flatten().drop_null().to_pylist())
        if "format" in names:
            self._kinds["format"].update(table["format"].drop_null().to_pylist())

    def facts(self) -> dict[str, Any]:
        """Histograms as {"edges", "counts"} by name, and counts of languages and formats, those that were measured."""
        found: dict[str, Any] = {}
        for name, counts in self._counts.items():
            if counts.any():
                found[name] = {"edges": list(EDGES[name]), "counts": counts.tolist()}
        for name, kinds in self._kinds.items():
            if kinds:  # the most frequent first, equal ones by name
                found[name] = dict(sorted(kinds.items(), key=lambda item: (-item[1], item[0])))
        return found

    def _count(self, name: str, values: np.ndarray) -> None:
        if len(values):
            places = np.searchsorted(EDGES[name], values, side="right") - 1
            self._counts[name] += np.bincount(np.maximum(places, 0), minlength=len(EDGES[name]))
