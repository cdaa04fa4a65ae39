"""What `ostension adapt compare` prints: a line for each result, and a table of a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ostension.cli._adapt_shared import percent

if TYPE_CHECKING:
    from ostension.evals.adaptation_table import Row
    from ostension.evals.results import Result


def side_by_side(rows: Sequence[Row]) -> str:
    """One task's rows as a table: a line a method and number of shots, a column a metric."""
    from ostension.cli._tables import text_table

    columns = list(dict.fromkeys(row.metric for row in rows))
    found: dict[tuple[str, int], dict[str, Row]] = {}
    for row in rows:
        found.setdefault((row.method, row.shots), {})[row.metric] = row
    lines = [
        (method, str(shots or "all"), str(max(row.seeds for row in cells.values())),
         *(_cell(cells[name]) if name in cells else "" for name in columns))
        for (method, shots), cells in found.items()
    ]  # fmt: skip
    return text_table(("method", "shots", "seeds", *(name.replace("_", " ") for name in columns)), lines, left=2)


def _cell(row: Row) -> str:
    """Mean, spread over several seeds, and interval, in percent; effective robustness in points."""
    sign = "+" if row.metric.endswith("effective_robustness") else ""
    spread = f" ± {100 * row.spread:.1f}" if row.seeds > 1 else ""
    span = "" if row.interval is None else f" ({100 * row.interval.low:{sign}.1f} to {100 * row.interval.high:{sign}.1f})"
    return f"{100 * row.mean:{sign}.1f}{spread}{span}"


def line_of(result: Result) -> str:
    """A result in a line."""
    record = result.record
    values = ", ".join(f"{name} {percent(metric.value)}" for name, metric in record.metrics.items())
    return f"{record.model}: {record.task} {record.protocol}: {values} ({result.seconds:.1f} s)"
