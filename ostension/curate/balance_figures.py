"""What a report shows of matching and balancing: how many pairs queries have, before and after; head and tail."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ostension.curate.base import TEXTS
from ostension.curate.work import Work, schema_names
from ostension.errors import require_extra
from ostension.evals import report
from ostension.evals.chart_frame import Frame, Scale
from ostension.evals.chart_marks import Key, Style, mark, style_of
from ostension.evals.charts import short_number
from ostension.evals.figure import Figure
from ostension.evals.power_chart import log_ticks

HEAD = 20  # queries in a table
SHOWN = 12  # counts of queries a pair, of which the last takes in all above


def match_figures(facts: Mapping[str, Any], folder: Path) -> list[Figure]:
    """Pairs a query, queries a pair, the head."""
    counts = _column(folder / "queries.parquet", "pairs")
    unmatched = facts["queries"] - facts["same_as_another"] - facts["matched_queries"]
    says = (
        f"{facts['matched_pairs']:,} of {facts['pairs']:,} pairs match a query, {facts['matches']:,} matches in all. "
        f"{facts['matched_queries']:,} of {facts['queries']:,} queries have a pair, {unmatched:,} have none"
        + (f", and {facts['same_as_another']:,} read as another and count with it." if facts["same_as_another"] else ".")
    )
    by_matches = facts["pairs_by_matches"]
    rows = [[f"{number:,}", f"{pairs:,}", report.percent(pairs / facts["pairs"])] for number, pairs in enumerate(by_matches)]
    if len(rows) > SHOWN:
        rest = sum(by_matches[SHOWN:])
        rows = [*rows[:SHOWN], [f"{SHOWN:,} or more", f"{rest:,}", report.percent(rest / facts["pairs"])]]
    head = [[query, f"{pairs:,}", report.percent(pairs / facts["pairs"])] for query, pairs in facts["head"]]
    figures = [
        Figure(
            name="match-pairs",
            title="How many queries a pair matches",
            says=says,
            more=report.table(["queries", "pairs", "share"], rows, caption="Pairs by how many queries they match"),
        ),
        Figure(
            name="match-head",
            title="The queries with most pairs",
            says="What a set would mostly be about if nothing were balanced.",
            more=report.table(["query", "pairs", "of all pairs"], head, caption="Queries with most pairs"),
        ),
    ]
    if counts.any():
        figures.insert(0, _histogram({"pairs": counts}, "match-counts", "How many pairs queries have", _HISTOGRAM))
    return figures


def balance_figures(facts: Mapping[str, Any], folder: Path) -> list[Figure]:
    """Counts before and after, the limit and what it costs, the head."""
    before, after = (_column(folder / "counts.parquet", name) for name in ("pairs", "after"))
    expected = _column(folder / "counts.parquet", "expected")
    exact = "" if facts["limit_is_exact"] else " (found from a sample of pairs)"
    dropped = facts["pairs"] - facts["kept_pairs"]
    tail_after = _share(after[before < facts["limit"]], after)
    stay = (
        f"an epoch of training has {facts['expected_pairs']:,.0f} of {facts['pairs']:,} pairs on average, others in each. "
        if facts["draw"] == "later"
        else f"{facts['kept_pairs']:,} of {facts['pairs']:,} pairs stay ({facts['expected_pairs']:,.0f} were expected) and "
        f"{dropped:,} go. "
    )
    says = (
        f"With at most t = {facts['limit']:,.6g} pairs a query{exact}, {stay}{facts['queries_over_limit']:,} queries have more "
        f"than t; those with fewer, the tail, have {report.percent(facts['tail_share'])} of all matches before and "
        f"{report.percent(tail_after)} after. A query keeps more than t where its pairs match rarer queries too."
    )
    if facts["pairs_without_query"]:
        says += f" {facts['pairs_without_query']:,} pairs match no query and stay."
    says += "".join(f" {warning}" for warning in warnings(folder))
    figures = []
    if before.any():
        title = "How many pairs queries have, before and after balancing"
        figures.append(_histogram({"before": before, "after": after}, "balance-counts", title, says, facts["limit"]))
    top = np.argsort(-before, kind="stable")[:HEAD]
    top = top[before[top] > 0]
    rows = []
    for name, number in zip(_names(folder, top), top.tolist(), strict=True):
        stays = report.percent(after[number] / before[number])
        rows.append([name, f"{before[number]:,}", f"{expected[number]:,.0f}", f"{after[number]:,}", stays])
    figures.append(
        Figure(
            name="balance-head",
            title="The queries with most pairs, before and after",
            says="Expected is the sum of the probabilities of their pairs." if figures else says,
            more=report.table(["query", "before", "expected", "after", "stays"], rows, caption="The head, before and after"),
        )
    )
    return figures


def warnings(folder: Path) -> list[str]:
    """What makes the counts of a balance other than those of the pairs in the end, or of their captions."""
    entries = Work(folder.parent).entries
    own = next(entry.number for entry in entries if entry.folder.name == folder.name)
    match = max(entry.number for entry in entries[:own] if entry.name == "match")
    found = [
        f"Warning: {entry.name} changed captions after they were matched."
        for entry in entries[match + 1 : own]
        if TEXTS in schema_names(entry.part(0))
    ]
    counts = {entry.name: entry.counts() for entry in entries[own + 1 :] if entry.done}
    found += [
        f"Warning: {name} dropped {count['rows'] - count['kept']:,} pairs afterwards, so these counts are no longer those left."
        for name, count in counts.items()
        if count["kept"] < count["rows"]
    ]
    return found


_HISTOGRAM = "Each point is the number of queries with 1, 2 to 3, 4 to 7, 8 to 15, ... pairs, on logarithmic axes."


def histogram(counts: np.ndarray) -> list[tuple[int, int]]:
    """(2^k, queries with 2^k to 2^(k + 1) - 1 pairs) for each k up to the largest; queries without pairs are left out."""
    bins = np.bincount(np.frexp(counts[counts > 0])[1])[1:]  # 2^(e - 1) <= count < 2^e
    return [(1 << place, int(number)) for place, number in enumerate(bins)]


def _histogram(
    series: Mapping[str, np.ndarray], name: str, title: str, says: str, limit: float | None = None
) -> Figure:  # fmt: skip
    points = {label: [(x, y) for x, y in histogram(counts) if y] for label, counts in series.items()}
    xs = [x for found in points.values() for x, _ in found] + ([limit] if limit is not None else [])
    ys = [y for found in points.values() for _, y in found]
    frame = Frame(x=_log_scale(min(xs), 2 * max(xs)), y=_log_scale(1, max(ys)), x_label="pairs", y_label="queries", width=660)
    parts = []
    if limit is not None:
        (x, low), (_, high) = frame.at(limit, frame.y.low), frame.at(limit, frame.y.high)
        parts.append(f'<line class="reference dashed" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
        parts.append(f'<text class="aside" x="{x + 5:.1f}" y="{high + 11:.1f}">t</text>')
    for number, found in enumerate(points.values()):
        look = style_of(number)
        if found:
            parts.append(f'<polyline class="line c{look.colour}" points="{frame.path(found)}"/>')
        parts += [_dot(frame, x, y, look) for x, y in found]
    keys = tuple(Key(name=label, style=style_of(number), what="both") for number, label in enumerate(points))
    described = "; ".join(f"{label}: " + ", ".join(f"{y:,} from {x:,}" for x, y in found) for label, found in points.items())
    svg = frame.draw(parts, title=title, description=f"Queries by pairs. {described}")
    return Figure(name=name, title=title, says=says, svg=svg, keys=keys if len(points) > 1 else (), wide=True)


def _dot(frame: Frame, x: int, y: int, look: Style) -> str:
    words = f"{y:,} queries with {x:,} to {2 * x - 1:,} pairs" if x > 1 else f"{y:,} queries with one pair"
    return mark(look.shape, *frame.at(x, y), look.colour, title=words)


def _log_scale(low: float, high: float) -> Scale:
    low, high = float(low), float(max(high, 2 * low))
    return Scale(low=low, high=high, ticks=tuple(log_ticks(low, high)), even=math.log10, words=short_number)


def _names(folder: Path, numbers: Sequence[int] | np.ndarray) -> list[str]:
    """The queries of these numbers, from what `match` left in the same work folder."""
    found = Work(folder.parent).columns()["match.queries"].folder / "queries.parquet"
    return require_extra("pyarrow.parquet", "curate").read_table(found, columns=["query"])["query"].take(numbers).to_pylist()


def _column(path: Path, name: str) -> np.ndarray:
    return require_extra("pyarrow.parquet", "curate").read_table(path, columns=[name])[name].to_numpy()


def _share(part: np.ndarray, whole: np.ndarray) -> float:
    return float(part.sum() / whole.sum()) if whole.sum() else 0.0
