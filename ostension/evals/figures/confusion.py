"""Which classes a model takes for which: the commonest pairs as a list, and for up to 40 classes a matrix."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from ostension.data.task import TASKS, shipped
from ostension.evals import report
from ostension.evals.charts import Number, svg
from ostension.evals.figure import Figure
from ostension.evals.records import Record
from ostension.evals.selection import find, slug, target, task_title

SECTION = "mistakes"
MAX_CLASSES = 40  # more cells than can be told apart
LISTED, WEAKEST = 12, 6
SIZE = 360.0
LETTER = 6.2  # a letter's width at the size of the labels


def draw(records: Sequence[Record]) -> list[Figure]:
    # Where no pair was confused twice, as with one sample a class, there is no habit to show.
    return [_of_record(record) for record in find(records, "zeroshot") if _most(record) != 1]


def _most(record: Record) -> int:
    """How often the commonest pair was confused; 1 where a record does not say."""
    pairs = record.details.get("confusion")
    return 1 if pairs is None else max((int(count) for _, _, count in pairs), default=0)


def _of_record(record: Record) -> Figure:
    pairs = [(str(true), str(given), int(count)) for true, given, count in record.details["confusion"]]
    per_class: Mapping[str, Number] = record.details.get("per_class", {})
    counts: Mapping[str, int] = record.details.get("class_counts", {})
    names = class_names(record.task)
    whole = sum(counts.values()) or record.headline.count
    listed = [
        f"<li><span><b>{report.text(names.get(true, true))}</b> taken for {report.text(names.get(given, given))}</span>"
        f"<span>{count} of {counts.get(true, whole)}</span></li>"
        for true, given, count in pairs[:LISTED]
    ]
    more = '<ul class="pairs">' + "".join(listed) + "</ul>" if listed else report.paragraph("Nothing was confused.")
    weakest = sorted(per_class.items(), key=lambda entry: entry[1])[:WEAKEST]
    says = f"{sum(count for _, _, count in pairs):,} of {whole:,} test samples are in the pairs counted here. " if pairs else ""
    if weakest and weakest[0][1] < 1:
        said = ", ".join(f"{names.get(key, key)} ({100 * value:.0f} %)" for key, value in weakest)
        says += f"Least often right: {said}."
    chart = ""
    if 2 <= len(counts) <= MAX_CLASSES:
        chart = matrix(pairs, per_class, counts, names, title=f"Confusions of {record.model} on {task_title(target(record))}")
        says += " Rows are true classes, columns what was said; the darker, the larger the share of its row."
    return Figure(
        name=slug("confusion", target(record), record.model),
        title=f"{task_title(target(record))}, zero-shot: {record.model}",
        says=says.strip(),
        svg=chart,
        more=more,
        detail=True,
    )


def class_names(task: str) -> dict[str, str]:
    """The first name of each class by its key; keys alone for a task that does not ship."""
    if task not in TASKS.names():
        return {}
    return {key: names[0] for key, names in shipped(task).display_names().items()}


def matrix(
    pairs: Sequence[tuple[str, str, int]],
    per_class: Mapping[str, Number],
    counts: Mapping[str, int],
    names: Mapping[str, str],
    *,
    title: str,
) -> str:
    """An SVG of shares by true (rows) and predicted class (columns); right answers in one colour, wrong ones in another."""
    keys = [*counts, *dict.fromkeys(given for _, given, _ in pairs if given not in counts)]
    longest = max(len(names.get(key, key)) for key in keys)
    left = min(130.0, 8 + LETTER * longest)
    cell = (420 - left) / len(keys)
    size = cell * len(keys)
    place = {key: number for number, key in enumerate(keys)}
    parts = [f'<rect class="frame" x="{left:.1f}" y="0.5" width="{size:.1f}" height="{size:.1f}"/>']
    shares = [(key, key, per_class[key]) for key in counts if key in per_class]
    shares += [(true, given, count / counts[true]) for true, given, count in pairs if counts.get(true)]
    for true, given, share in shares:
        kind = "cell" if true == given else "cell wrong"
        words = names.get(true, true) + (" right" if true == given else f" taken for {names.get(given, given)}")
        x, y = left + cell * place[given], 0.5 + cell * place[true]
        shade = share**0.5  # so that rare confusions are seen at all
        box = f'x="{x:.2f}" y="{y:.2f}" width="{cell:.2f}" height="{cell:.2f}" fill-opacity="{shade:.2f}"'
        parts.append(f'<rect class="{kind}" {box}><title>{html.escape(words)}: {100 * share:.0f} %</title></rect>')
    room = round((left - 8) / LETTER)
    font = min(12.0, max(6.0, cell * 0.8))
    for key, number in place.items():
        name = names.get(key, key)
        name = name if len(name) <= room else name[: room - 1] + "…"
        y = cell * (number + 0.5) + font * 0.35
        said = html.escape(name)
        parts.append(f'<text x="{left - 5:.1f}" y="{y:.1f}" text-anchor="end" font-size="{font:.1f}">{said}</text>')
    told = "; ".join(f"{names.get(key, key)} right {100 * share:.0f} %" for key, _, share in shares[: len(counts)])
    return svg(parts, 420, round(size + 4), title, told)
