"""Methods that adapt: accuracy against labelled pictures a class, mean and spread over seeds, beside zero-shot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ostension.adapt.base import METHODS
from ostension.evals.chart_frame import Frame, linear, shots
from ostension.evals.chart_marks import Key, Style, style_of
from ostension.evals.figure import Figure
from ostension.evals.figures.few_shot import Curve, curve_parts, zero_shot_parts
from ostension.evals.records import Record
from ostension.evals.selection import slug, target, task_title

SECTION = "labels"
ZERO_SHOT = "zero-shot"


def draw(records: Sequence[Record]) -> list[Figure]:
    """One figure a (model, task) that methods were compared on with all classes."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record.protocol.startswith("adapt-") and not record.config["base_to_new"]:
            groups.setdefault((record.model, target(record)), []).append(record)
    several = len({model for model, _ in groups}) > 1
    names = sorted({record.config["method"] for kept in groups.values() for record in kept} - {ZERO_SHOT})
    looks = {name: style_of(place) for place, name in enumerate(names, 1)}  # a method looks the same in every figure
    found = (_figure(model, task, kept, looks, several=several) for (model, task), kept in groups.items())
    return [figure for figure in found if figure is not None]


def _figure(model: str, task: str, records: Sequence[Record], looks: Mapping[str, Style], *, several: bool) -> Figure | None:
    zero_shot = [record.headline.value for record in records if record.config["method"] == ZERO_SHOT]
    alone = {record.config["method"]: record.headline.value for record in records if _needs_no_labels(record)}
    methods = [method for method in dict.fromkeys(record.config["method"] for record in records) if method not in alone]
    methods = [method for method in methods if method != ZERO_SHOT]
    curves = {method: _curve([record for record in records if record.config["method"] == method]) for method in methods}
    if not curves:
        return None
    levels = [*zero_shot, *alone.values()]
    ks = [k for curve in curves.values() for k, _, _ in curve]
    ends = [end for curve in curves.values() for _, mean, std in curve for end in (mean - std, mean + std)]
    frame = Frame(
        x=shots([0.0, *ks] if levels else ks), y=linear([min(max(end, 0.0), 1.0) for end in [*ends, *levels]]),
        x_label="labelled pictures a class", y_label="score on the test split", width=420, height=330,
    )  # fmt: skip
    parts, keys = [], []
    for method, curve in curves.items():
        parts += curve_parts(frame, curve, looks[method], method)
        keys.append(Key(name=method, style=looks[method], what="both"))
    for method, value in alone.items():
        parts += zero_shot_parts(frame, value, looks[method], method)
        keys.append(Key(name=f"{method}, with no labels", style=looks[method], what="star"))
    if zero_shot:
        parts += zero_shot_parts(frame, zero_shot[0], style_of(0), model)
        keys.append(Key(name="zero-shot, with no labels", style=style_of(0), what="star"))
    lines = {method: ", ".join(f"{k:g} a class {100 * mean:.1f} %" for k, mean, _ in curve) for method, curve in curves.items()}
    told = "; ".join(f"{method}: {line}" for method, line in lines.items())
    best = max(curves, key=lambda method: curves[method][-1][1])
    most, value, _ = curves[best][-1]
    seeds = min(_seeds([record for record in records if record.config["method"] == method]) for method in methods)
    says = f"Best with {most:g} a class: {best}, {100 * value:.1f} %."
    if zero_shot:
        says += f" Zero-shot is {100 * zero_shot[0]:.1f} %."
    says += f" Bands: one standard deviation over {seeds} seeds." if seeds > 1 else " One seed."
    title = task_title(task) + (f", {model}" if several else "")
    return Figure(
        name=slug("adapting", model, task), title=f"Methods that adapt: {title}", says=says,
        svg=frame.draw(parts, title=f"Methods that adapt, {title}", description=told), keys=tuple(keys),
    )  # fmt: skip


def _needs_no_labels(record: Record) -> bool:
    """Whether its method learns without labelled pictures; one that is not known here is taken to need them."""
    method = record.config["method"]
    return method in METHODS.names() and not METHODS.load(method).SPEC.labels


def _curve(records: Sequence[Record]) -> Curve:
    """Mean and spread over seeds by shots; all labelled pictures ("0 shots") have no place on the axis."""
    values: dict[int, list[float]] = {}
    for record in records:
        values.setdefault(record.config["shots"], []).append(record.headline.value)
    return [(float(k), float(np.mean(found)), float(np.std(found))) for k, found in sorted(values.items()) if k > 0]


def _seeds(records: Sequence[Record]) -> int:
    shots_of = [record.config["shots"] for record in records]
    return min(shots_of.count(k) for k in set(shots_of))
