"""The curves of runs on one page: loss, accuracies, temperature, learning rate, speed, idle share, every evaluation.

The page is one HTML file without scripts, as every report; a PNG of the same charts needs matplotlib.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from ostension import files
from ostension.errors import DataError, require_extra
from ostension.evals import report
from ostension.evals.charts import Line, line_chart, short_number
from ostension.train.run_reader import Run, measurements

# Name in the "step" records, title, whether it is a share; in the order of the page.
CURVES = (
    ("loss", "Loss", False),
    ("image_accuracy", "Right in the batch, image to text", True),
    ("text_accuracy", "Right in the batch, text to image", True),
    ("temperature", "Temperature", False),
    ("grad_norm", "Norm of the gradient", False),
    ("lr", "Learning rate", False),
    ("idle_share", "Time that the towers waited for data", True),
    ("pairs_per_s", "Pairs a second", False),
)
# Neither curves of interest nor in the list above.
PLAIN = ("step_s", "data_s", "peak_memory_mb", "skipped", "texts_cut", "logit_scale")
MAX_POINTS = 800  # more than a chart has pixels
MAX_RUNS = 8
COLOURS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """Curves of one measurement: for each run that has it, its number among the runs and its points."""

    title: str
    share: bool
    curves: Sequence[tuple[int, Sequence[tuple[float, float]]]]


def charts_of(runs: Sequence[Run], axis: str) -> list[Chart]:
    """Every measurement that at least one run has, finite points only, thinned where they are more than a chart shows.

    Raises:
        DataError: if there is nothing to draw.
    """
    known = {name for name, _, _ in CURVES}
    extra = dict.fromkeys(name for run in runs for name in measurements(run.last("step")) if name not in (*known, *PLAIN))
    evaluated = dict.fromkeys(name for run in runs for name in measurements(run.last("evaluation")))
    wanted = [("step", *curve) for curve in CURVES]
    wanted += [("step", name, name.replace("_", " ").capitalize(), False) for name in extra]
    wanted += [("evaluation", name, f"Evaluation: {name}", False) for name in evaluated]
    found = []
    for kind, name, title, share in wanted:
        curves = [(number, thinned(_finite(run.curve(kind, name, axis)))) for number, run in enumerate(runs)]
        curves = [(number, points) for number, points in curves if points]
        if curves:
            found.append(Chart(title=title, share=share, curves=curves))
    if not found:
        raise DataError("has no measurements yet", source=runs[0].folder, expected="a run that has logged a step")
    return found


def thinned(points: Sequence[tuple[float, float]], limit: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most `limit` points: the mean of each group of neighbours."""
    size = math.ceil(len(points) / limit)
    groups = [points[start : start + size] for start in range(0, len(points), max(1, size))]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def write_page(path: Path, runs: Sequence[Run], axis: str, names: Sequence[str]) -> None:
    """Write the curves of runs as an HTML page or a PNG, as the ending of `path` says."""
    charts = charts_of(runs, axis)
    if path.suffix.lower() == ".png":
        _write_png(path, charts, axis, names)
    else:
        files.write_text(path, _html(charts, runs, axis, names))


def _html(charts: Sequence[Chart], runs: Sequence[Run], axis: str, names: Sequence[str]) -> str:
    figures = []
    for chart in charts:
        lines = [
            Line(
                name=names[number], points=points, colour=number % COLOURS + 1, dashed=number >= COLOURS,
                marks=len(points) == 1,
            )
            for number, points in chart.curves
        ]  # fmt: skip
        told = ". ".join(f"{line.name}: from {line.points[0][1]:.4g} to {line.points[-1][1]:.4g}" for line in lines)
        svg = line_chart(
            lines, title=chart.title, description=told, x_label=axis_label(axis), y_from_zero=chart.share,
            y_format=(lambda value: f"{100 * value:g} %") if chart.share else short_number,
        )  # fmt: skip
        figures.append(report.figure(chart.title, svg))
    rows = []
    for name, run in zip(names, runs, strict=True):
        last = run.last("step")
        loss = measurements(last).get("loss")
        rows.append([
            name, run.status, f"{run.step:,} of {run.steps:,}" if run.steps else f"{run.step:,}",
            f"{run.samples.get(last['step'], 0):,.0f}" if last else "", "" if loss is None else f"{loss:.4g}",
            f"{run.seconds.get(last['step'], 0) / 60:.1f}" if last else "", run.model, run.data[:12],
        ])  # fmt: skip
    head = ["run", "status", "step", "samples seen", "last loss", "minutes", "model", "data"]
    return report.page(
        title="Training curves" if len(runs) > 1 else names[0],
        eyebrow="Ostension runs",
        lead=f"{len(runs)} run{'s' if len(runs) > 1 else ''}, by {axis_label(axis)}.",
        opening="",
        sections=[
            report.section("results", "Where they stand", report.table(head, rows, caption="Runs")),
            report.section("curves", "Curves", f'<div class="charts">{"".join(figures)}</div>'),
        ],
        footer=report.paragraph("Each point is the mean of one interval of the log.", "note"),
    )


def axis_label(axis: str) -> str:
    """An axis in words."""
    return {"step": "step", "samples_seen": "samples seen", "time": "seconds of training"}[axis]


def _write_png(path: Path, charts: Sequence[Chart], axis: str, names: Sequence[str]) -> None:
    require_extra("matplotlib", "report")
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    columns = min(3, len(charts))
    rows = math.ceil(len(charts) / columns)
    figure = Figure(figsize=(4.6 * columns, 3.2 * rows), layout="constrained")
    for place, chart in enumerate(charts):
        axes = figure.add_subplot(rows, columns, place + 1)
        for number, points in chart.curves:
            mark = "o" if len(points) == 1 else None
            axes.plot(*zip(*points, strict=True), color=f"C{number}", label=names[number], linewidth=1.2, marker=mark)
        axes.set_title(chart.title, fontsize=10)
        axes.set_xlabel(axis_label(axis), fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        if place == 0 and len(names) > 1:
            axes.legend(fontsize=7)
    with files.atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(y)]
