"""What a report shows of a filter: lengths of captions, languages, sizes and shapes of pictures, scores. Memory does not grow.

Counted over all that was measured, kept or not, so that a threshold can be seen where it cuts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ostension.evals import report
from ostension.evals.chart_frame import Frame, Scale, linear
from ostension.evals.chart_marks import style_of
from ostension.evals.charts import short_number
from ostension.evals.figure import Figure

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


_SHOWN = {
    "words": ("How long captions are", "words"),
    "characters": ("How long captions are, in characters", "characters"),
    "language_p": ("How sure the language is", "probability of the most likely language"),
    "shorter_side": ("How large pictures are", "pixels of the shorter side"),
    "aspect": ("What shape pictures have", "longer side over shorter"),
    "unsafe_caption": ("What the hook says of captions", "score"),
    "unsafe_picture": ("What the hook says of pictures", "score"),
}
MOST = 12  # languages in a table


def filter_figures(facts: Mapping[str, Any], limits: Mapping[str, float]) -> list[Figure]:
    """Histograms of what was measured, with the limit that cuts it where there is one; languages and formats as tables."""
    figures = []
    for name, (title, label) in _SHOWN.items():
        if name in facts:
            says = "Of all that was measured, kept or not; pictures of pairs whose captions went were not looked at."
            edges, counts = facts[name]["edges"], facts[name]["counts"]
            figures.append(histogram(f"filter-{name.replace('_', '-')}", title, says, label, edges, counts, limits.get(name)))
    for name, title in (("language", "Languages of captions"), ("format", "Formats of pictures")):
        if name in facts:
            total = sum(facts[name].values())
            rows = [[kind, f"{count:,}", report.percent(count / total)] for kind, count in list(facts[name].items())[:MOST]]
            says = f"{total:,} in all." if len(facts[name]) <= MOST else f"{total:,} in all, of {len(facts[name])} kinds."
            more = report.table([name, "number", "share"], rows, caption=title)
            figures.append(Figure(name=f"filter-{name}", title=title, says=says, more=more))
    return figures


def histogram(
    name: str, title: str, says: str, label: str, edges: Sequence[float], counts: Sequence[int], limit: float | None = None
) -> Figure:  # fmt: skip
    """Counts as steps over bins of equal width, whatever their edges; `limit` is drawn where it lies between them.

    Args:
        edges: lower edges, one for each count, and perhaps an upper end.
    """
    ends = [*edges, *([2 * edges[-1] - edges[-2]] if len(edges) == len(counts) else [])]
    first = next((place for place, count in enumerate(counts) if count), 0)
    last = max((place for place, count in enumerate(counts) if count), default=0) + 1
    every = max(1, (last - first) // 8)  # a tick for some of the bins

    def words(place: float) -> str:
        return f"{round(ends[int(place)], 2):g}"

    across = Scale(low=first, high=last, ticks=tuple(range(first, last + 1, every)), even=float, words=words)
    frame = Frame(x=across, y=linear([0, *counts], words=short_number), x_label=label, y_label="number", width=560, height=280)
    steps = [point for place in range(first, last) for point in ((place, counts[place]), (place + 1, counts[place]))]
    parts = [f'<polyline class="line c{style_of(0).colour}" points="{frame.path([(first, 0), *steps, (last, 0)])}"/>']
    if limit is not None and ends[first] <= limit <= ends[last]:
        at = float(np.interp(limit, ends[first : last + 1], range(first, last + 1)))
        (x, low), (_, high) = frame.at(at, frame.y.low), frame.at(at, frame.y.high)
        parts.append(f'<line class="reference dashed" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
        parts.append(f'<text class="aside" x="{x + 5:.1f}" y="{high + 11:.1f}">{limit:g}</text>')
    described = ", ".join(f"{counts[place]:,} from {words(place)}" for place in range(first, last))
    svg = frame.draw(parts, title=title, description=f"{title}: {described}.")
    return Figure(name=name, title=title, says=says, svg=svg)
