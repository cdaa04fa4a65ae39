"""What prompts gain: bare names, one template, the ensemble, and a set found by search (after CLIP's Figure 4)."""

from __future__ import annotations

from collections.abc import Sequence

from ostension.evals.chart_bars import Bar, Row, bar_chart
from ostension.evals.chart_frame import linear
from ostension.evals.chart_marks import Key, style_of
from ostension.evals.figure import Figure
from ostension.evals.records import Record
from ostension.evals.selection import find, models, slug, target, task_title

SECTION = "zero-shot"
WAYS = {"bare": "the bare name", "single": "one template", "ensemble": "all templates", "search": "templates found by search"}


def draw(records: Sequence[Record]) -> list[Figure]:
    return [_of_model(model, found) for model in models(records) if (found := find(records, "prompts", model=model))]


def _of_model(model: str, found: Sequence[Record]) -> Figure:
    ways = [way for way in WAYS if any(way in record.metrics for record in found)]
    by_gain = sorted(found, key=lambda record: -record.metrics["gain"].value)
    rows = [
        Row(
            name=task_title(target(record)), note=_note(record),
            bars=[_bar(record, way, number) for number, way in enumerate(ways) if way in record.metrics],
        )
        for record in by_gain
    ]  # fmt: skip
    if len(found) > 1:
        rows.insert(0, Row(name=f"Mean of {len(found)} sets", bars=[
            Bar(value=value, words=f"{100 * value:.1f} %", style=style_of(number))
            for number, way in enumerate(ways) if (value := _mean(found, way)) is not None
        ]))  # fmt: skip
    gains = [record.metrics["gain"].value for record in found]
    told = "; ".join(f"{row.name}: " + ", ".join(bar.words for bar in row.bars) for row in rows)
    return Figure(
        name=slug("prompts", model),
        title=f"What prompts gain: {model}",
        says=f"All templates gain {100 * sum(gains) / len(gains):+.1f} points over bare class names on average, on the same "
        "samples. The lines are intervals of each score; the gain beside the name has its own, paired one.".replace("-", "−"),
        svg=bar_chart(rows, linear([bar.value for row in rows for bar in row.bars], zero=True), label="the set's own score",
                      title=f"Scores by way of asking, {model}", description=told),
        keys=tuple(Key(name=WAYS[way], style=style_of(number), what="bar") for number, way in enumerate(ways)),
    )  # fmt: skip


def _bar(record: Record, way: str, number: int) -> Bar:
    metric = record.metrics[way]
    low, high = (None, None) if metric.interval is None else (metric.interval.low, metric.interval.high)
    return Bar(value=metric.value, words=f"{100 * metric.value:.1f} %", style=style_of(number), low=low, high=high)


def _mean(found: Sequence[Record], way: str) -> float | None:
    values = [record.metrics[way].value for record in found if way in record.metrics]
    return sum(values) / len(values) if len(values) == len(found) else None


def _note(record: Record) -> str:
    metric = record.metrics["gain"]
    said = f"gain {100 * metric.value:+.1f}"
    if metric.interval is not None:
        said += f" ({100 * metric.interval.low:+.1f} to {100 * metric.interval.high:+.1f})"
    return said.replace("-", "−")
