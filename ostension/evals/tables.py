"""Records as tables: one row a (model, task, protocol, metric), as CSV for programs and as Markdown for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from ostension.evals.records import Metric, Record
from ostension.evals.selection import headline_name, metric_words, published, task_title, words_of

HEAD = (
    "model", "task", "split", "protocol", "metric", "headline", "value", "low", "high", "confidence", "interval", "chance",
    "direction", "count", "published", "seeds",
)  # fmt: skip


def as_csv(records: Sequence[Record]) -> str:
    """Every metric in full precision; shares are 0 to 1, and what is not known is empty.

    `headline` is 1 for a record's first metric; `published` is what was published for the same weights, where the model's name
    says which they are.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(HEAD)
    for record in records:
        for name, metric in record.metrics.items():
            writer.writerow(["" if cell is None else cell for cell in _row(record, name, metric)])
    return buffer.getvalue()


def _row(record: Record, name: str, metric: Metric) -> list[object]:
    interval, first = metric.interval, name == headline_name(record)
    known = published(record) if first else None
    return [
        record.model, record.task, record.split, record.protocol, name, int(first), metric.value,
        interval and interval.low, interval and interval.high, interval and interval.confidence, interval and interval.method,
        metric.chance, metric.direction, metric.count, None if known is None else round(known.published, 6),
        " ".join(map(str, record.seeds)),
    ]  # fmt: skip


def as_markdown(records: Sequence[Record]) -> str:
    """A table of headline numbers for each protocol: tasks down, models across, with intervals; shares as percent."""
    parts = []
    for protocol in dict.fromkeys(record.protocol for record in records):
        chosen = [record for record in records if record.protocol == protocol]
        names = list(dict.fromkeys(record.model for record in chosen))
        cells = {(record.task, record.split, record.model): record for record in chosen}
        head = ["task", "metric", *(name or "result" for name in names), "chance"]
        rows = []
        for task, split in dict.fromkeys((record.task, record.split) for record in chosen):
            some = next(record for record in chosen if (record.task, record.split) == (task, split))
            known = [cells.get((task, split, name)) for name in names]
            values = ["" if record is None else number(headline_name(record), record.headline) for record in known]
            title = task_title(task if split in ("", "test") else f"{task}@{split}") or "all"
            rows.append([title, metric_words(headline_name(some)), *values, chance(some.headline)])
        lines = [_line(head), _line(["---", "---", *["---:"] * (len(head) - 2)]), *map(_line, rows)]
        parts.append(f"## {protocol}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def number(name: str, metric: Metric) -> str:
    """A metric for a reader, with its interval."""
    value, interval = words_of(name, metric)
    return f"{value} ({interval})" if interval else value


def chance(metric: Metric) -> str:
    """What a guesser reaches, or nothing where that is not known or nothing."""
    return f"{100 * metric.chance:.2g} %" if metric.chance else ""


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
