"""Accuracy against labelled samples a class, with zero-shot as a star where nothing is labelled (after CLIP's Figure 6)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ostension.evals.chart_frame import Frame, linear, shots
from ostension.evals.chart_marks import Key, Style, mark, star
from ostension.evals.figure import Figure
from ostension.evals.records import Record
from ostension.evals.selection import find, kind, models, one, slug, style, task_title, tasks

SECTION = "labels"
Curve = list[tuple[float, float, float]]  # shots, mean, standard deviation over draws


def draw(records: Sequence[Record]) -> list[Figure]:
    regimes = list(dict.fromkeys(record.details.get("regime") for record in find(records, "fewshot")))
    return [figure for regime in regimes for figure in _of_regime(records, regime, alone=len(regimes) == 1)]


def _of_regime(records: Sequence[Record], regime: str | None, *, alone: bool) -> list[Figure]:
    """Results whose strengths were chosen on different samples are never put into one figure."""
    kept = [r for r in records if kind(r.protocol) != "fewshot" or r.details.get("regime") == regime]
    found = tasks(kept, "fewshot")
    figures = [_figure(kept, [task], task_title(task)) for task in found]
    if len(found) > 1:
        figures.insert(0, _figure(kept, found, f"Average of {len(found)} sets"))
    known = [figure for figure in figures if figure]
    if alone:
        return known
    return [
        dataclasses.replace(figure, name=slug(figure.name, regime or ""), title=f"{figure.title} ({regime})")
        for figure in known
    ]


def _figure(records: Sequence[Record], chosen: Sequence[str], title: str) -> Figure | None:
    curves: dict[str, Curve] = {}
    zero_shot: dict[str, float] = {}
    for model in models(records):
        curve = mean_curve([record for task in chosen if (record := one(records, "fewshot", model, task))], len(chosen))
        known = [record.headline.value for task in chosen if (record := one(records, "zeroshot", model, task))]
        if curve:
            curves[model] = curve
            if len(known) == len(chosen):
                zero_shot[model] = sum(known) / len(known)
    if not curves:
        return None
    ks = [k for curve in curves.values() for k, _, _ in curve]
    ends = [end for curve in curves.values() for _, mean, std in curve for end in (mean - std, mean + std)]
    values = [min(max(end, 0.0), 1.0) for end in [*ends, *zero_shot.values()]]
    frame = Frame(
        x=shots([0.0, *ks] if zero_shot else ks), y=linear(values), x_label="labelled samples a class",
        y_label="score on the test split", width=420, height=330,
    )  # fmt: skip
    parts, keys = [], []
    for model, curve in curves.items():
        look = style(records, model)
        parts += curve_parts(frame, curve, look, model)
        keys.append(Key(name=model, style=look, what="both"))
    for model, value in zero_shot.items():
        parts += zero_shot_parts(frame, value, style(records, model), model)
    if zero_shot:
        keys.append(Key(name="zero-shot, with no labels", style=style(records, next(iter(zero_shot))), what="star"))
    told = "; ".join(f"{model}: " + ", ".join(f"{k:g} shots {100 * mean:.1f} %" for k, mean, _ in curve)
                     + (f", zero-shot {100 * zero_shot[model]:.1f} %" if model in zero_shot else "")
                     for model, curve in curves.items())  # fmt: skip
    return Figure(
        name=slug("few-shot", "average" if len(chosen) > 1 else chosen[0]),
        title=f"Few labels: {title}",
        says=_says(records, chosen, curves, zero_shot),
        svg=frame.draw(parts, title=f"Few-shot probes, {title}", description=told),
        keys=tuple(keys),
        detail=len(chosen) == 1 and len(tasks(records, "fewshot")) > 1,
    )


def mean_curve(records: Sequence[Record], count: int) -> Curve:
    """The mean over records of their curves, at the numbers of shots that all `count` of them have; empty if none."""
    if len(records) < count or not records:
        return []
    tables = [{float(k): (float(mean), float(std)) for k, mean, std in record.details.get("curve", [])} for record in records]
    shared = sorted(set.intersection(*(set(table) for table in tables)))
    size = len(tables)
    return [(k, sum(t[k][0] for t in tables) / size, sum(t[k][1] for t in tables) / size) for k in shared]


def curve_parts(frame: Frame, curve: Curve, look: Style, model: str) -> list[str]:
    """A curve with its marks and a band of one standard deviation."""
    upper = [(k, min(mean + std, frame.y.high)) for k, mean, std in curve]
    lower = [(k, max(mean - std, frame.y.low)) for k, mean, std in reversed(curve)]
    parts = [f'<polygon class="band c{look.colour}" points="{frame.path([*upper, *lower])}"/>']
    kind = f"line c{look.colour}" + (" dashed" if look.dashed else "")
    parts.append(f'<polyline class="{kind}" points="{frame.path([(k, mean) for k, mean, _ in curve])}"/>')
    for k, mean, std in curve:
        words = f"{model}, {k:g} a class: {100 * mean:.1f} % (standard deviation over draws {100 * std:.1f})"
        parts.append(mark(look.shape, *frame.at(k, mean), look.colour, title=words))
    return parts


def zero_shot_parts(frame: Frame, value: float, look: Style, model: str) -> list[str]:
    """A star where nothing is labelled, and a thin line at its height."""
    (x, y), (end, _) = frame.at(0.0, value), frame.at(frame.x.high, value)
    return [
        f'<line class="line c{look.colour} dashed thin" x1="{x:.1f}" x2="{end:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>',
        star(x, y, look.colour, title=f"{model}, zero-shot: {100 * value:.1f} %"),
    ]


def _says(records: Sequence[Record], chosen: Sequence[str], curves: dict[str, Curve], zero_shot: dict[str, float]) -> str:
    said = []
    for model, value in zero_shot.items():
        above = next((k for k, mean, _ in curves[model] if mean >= value), None)
        reach = f"passed at {above:g} a class" if above else "not reached"
        said.append(f"{model}: zero-shot ({100 * value:.1f} %) is {reach}.")
    regimes = {record.details.get("regime") for task in chosen for record in find(records, "fewshot", task=task)}
    if "paper" in regimes:
        said.append("As in the paper, the strength was chosen on a full validation split, so these are not truly few labels.")
    elif "few" in regimes:
        said.append("The strength was chosen on a handful of labelled samples too.")
    return " ".join([*said, "Bands: one standard deviation over draws of the samples."])
