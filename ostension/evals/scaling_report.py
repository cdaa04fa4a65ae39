"""What a scaling law says: both rules fitted, bands, predictions, what was extrapolated, a check on the dearest run.

`fitted` gives it as JSON, `as_lines` as text, `as_page` as a page with the law drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ostension.errors import DataError
from ostension.evals import report
from ostension.evals.power_chart import Cloud, PowerLine, power_chart
from ostension.evals.scaling_law import (
    MIN_PLACES,
    RULES,
    Rule,
    ScalingLaw,
    bootstrap_lines,
    fit_scaling_law,
    prediction_band,
)
from ostension.evals.scaling_points import Points

COLOURS = {"frontier": 1, "least-squares": 3}
CURVE_POINTS = 40


def fitted(
    points: Points,
    *,
    rules: Sequence[Rule] = RULES,
    at: Sequence[float] = (),
    check: bool = False,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """The laws of these points.

    Args:
        at: computes to predict at.
        check: also fit without the dearest run (those of the same compute too) and predict it; of several, the best one.
        level: of all intervals.

    Raises:
        DataError: for points that no line can be laid through.
    """
    options: dict[str, Any] = {"level": level, "resamples": resamples, "seed": seed}
    tree: dict[str, Any] = {
        "num_points": len(points),
        "left_out": points.left_out,
        "compute_key": points.compute_key,
        "error_key": points.error_key,
        "compute": [float(points.compute.min()), float(points.compute.max())],
        "error": [float(points.error.min()), float(points.error.max())],
        **options,
        "rules": {rule: _rule(points, rule, at, options) for rule in rules},
    }
    if check:
        tree["check"] = _check(points, rules, options)
    return tree


def as_lines(tree: Mapping[str, Any]) -> list[str]:
    """The tree for people."""
    (low, high), percent = tree["compute"], f"{100 * tree['level']:g} %"
    lines = [
        f"{tree['num_points']} runs: {tree['compute_key']} {low:.4g} to {high:.4g}, {tree['error_key']} "
        f"{tree['error'][0]:.4g} to {tree['error'][1]:.4g}"
        + (f" ({tree['left_out']} rows without a value left out)" if tree["left_out"] else ""),
        "",
        f"{'rule':<14} E = coefficient x C^slope    {percent} of the slope",
    ]
    for rule, one in tree["rules"].items():
        lines.append(f"{rule:<14} {one['coefficient']:>9.4g} x C^{one['slope']:<10.4f} {_span(one['slope_interval'])}")
    predictions = [(rule, found) for rule, one in tree["rules"].items() for found in one["predictions"]]
    if predictions:
        lines += ["", f"{'prediction at':<14} {'rule':<14} {'error':>7}  {percent} of the law   {percent} of a run"]
    for rule, found in predictions:
        beyond = f"   {found['extrapolated']}" if found["extrapolated"] else ""
        spans = f"{_span(found['law']):<17}  {_span(found['run']):<17}"
        lines.append(f"{found['compute']:<14.4g} {rule:<14} {found['error']:>7.4g}  {spans}{beyond}".rstrip())
    if "check" in tree:
        lines += ["", *_check_lines(tree["check"], percent)]
    lines += [f"{rule}: {one['note']}" for rule, one in tree["rules"].items() if one["note"]]
    return lines


def as_page(points: Points, tree: Mapping[str, Any]) -> str:
    """The laws drawn through the runs, with their bands, and the numbers, as one HTML page."""
    percent = f"{100 * tree['level']:g} %"
    rules = [
        [rule, f"{one['coefficient']:.4g}", f"{one['slope']:.4f}", _span(one["slope_interval"]), str(one["num_places"])]
        for rule, one in tree["rules"].items()
    ]
    predictions = [
        [f"{found['compute']:.4g}", rule, f"{found['error']:.4g}", _span(found["law"]), _span(found["run"]),
         found["extrapolated"] or "within the runs"]
        for rule, one in tree["rules"].items() for found in one["predictions"]
    ]  # fmt: skip
    head = ["prediction at", "rule", "error", f"{percent} of the law", f"{percent} of a run", ""]
    sections = [
        report.section("results", "The law", report.figure(
            f"{tree['error_key']} against {tree['compute_key']}", chart(points, tree), "card wide")),
        report.section("rules", "Coefficients", report.table(
            ["rule", "coefficient", "slope", f"{percent} of the slope", "places"], rules, caption="Coefficients")),
    ]  # fmt: skip
    if predictions:
        sections.append(report.section("predictions", "Predictions", report.table(head, predictions, caption="Predictions")))
    if "check" in tree:
        told = "".join(report.paragraph(line) for line in _check_lines(tree["check"], percent))
        sections.append(report.section("check", "The dearest run, predicted from the others", told))
    return report.page(
        title="Error against compute", eyebrow="Ostension scaling",
        lead=f"{len(points)} runs and the power laws through them.", opening="", sections=sections,
        footer=report.paragraph(
            f"Bands by bootstrap over runs, {tree['resamples']} draws, seed {tree['seed']}. "
            "Beyond the runs a line is a guess that the law goes on.", "note",
        ),
    )  # fmt: skip


def chart(points: Points, tree: Mapping[str, Any]) -> str:
    """The runs, the lines with the bands of the law, dashed where they are extrapolated."""
    reach = [found["compute"] for one in tree["rules"].values() for found in one["predictions"]]
    low, high = min([*points.compute, *reach]), max([*points.compute, *reach])
    x = np.geomspace(low, high, CURVE_POINTS)
    lines = []
    for rule in tree["rules"]:
        law = fit_scaling_law(points.compute, points.error, rule)
        band = prediction_band(
            points.compute, points.error, x, rule=rule, level=tree["level"], resamples=tree["resamples"], seed=tree["seed"]
        )
        lines.append(PowerLine(
            name=rule, x=x, y=law.predict(x), low=band.low, high=band.high, colour=COLOURS[rule],
            known=(float(points.compute.min()), float(points.compute.max())),
        ))  # fmt: skip
    told = "; ".join(
        f"{rule}: slope {one['slope']:.4f}, from {float(one['at_ends'][0]):.3g} to {float(one['at_ends'][1]):.3g}"
        for rule, one in tree["rules"].items()
    )
    cloud = Cloud(names=points.names, x=points.compute, y=points.error)
    return power_chart(
        cloud, lines, title="Scaling law", description=told, x_label=tree["compute_key"], y_label=tree["error_key"]
    )


def _rule(points: Points, rule: Rule, at: Sequence[float], options: Mapping[str, Any]) -> dict[str, Any]:
    law = fit_scaling_law(points.compute, points.error, rule)
    lines = bootstrap_lines(points.compute, points.error, rule, resamples=options["resamples"], seed=options["seed"])
    ends = ((1 - options["level"]) / 2, (1 + options["level"]) / 2)
    low, high = np.quantile(lines[:, 0], ends)
    note = None
    if len(law.places) < MIN_PLACES:
        note = f"the line goes through {len(law.places)} places; nothing tells how far runs fall from it"
    return {
        "coefficient": law.coefficient,
        "intercept": law.intercept,
        "slope": law.slope,
        "slope_interval": [float(low), float(high)],
        "num_places": len(law.places),
        "at_ends": [float(value) for value in law.predict(np.array([points.compute.min(), points.compute.max()]))],
        "note": note,
        "predictions": _predictions(points, law, at, options),
    }


def _predictions(points: Points, law: ScalingLaw, at: Sequence[float], options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The error at each compute with the interval of the law and that of a run (None where nothing tells it)."""
    if not at:
        return []
    places = np.array(at)
    bands = {}
    for of in ("law", "run") if len(law.places) >= MIN_PLACES else ("law",):
        bands[of] = prediction_band(points.compute, points.error, places, rule=law.rule, of=of, **options)  # type: ignore[arg-type]
    low, high = points.compute.min(), points.compute.max()
    found = []
    for index, compute in enumerate(at):
        beyond = None
        if compute > high:
            beyond = f"extrapolated: {compute / high:.3g} times the dearest run"
        elif compute < low:
            beyond = f"extrapolated: {low / compute:.3g} times less than the cheapest run"
        spans = {of: [float(band.low[index]), float(band.high[index])] for of, band in bands.items()}
        error = float(law.predict(places)[index])
        found.append({"compute": compute, "error": error, "run": None, **spans, "extrapolated": beyond})
    return found


def _check(points: Points, rules: Sequence[Rule], options: Mapping[str, Any]) -> dict[str, Any]:
    """The laws of the cheaper runs at the compute of the dearest, beside what came."""
    dearest = points.subset(points.compute == points.compute.max())
    cheap = points.subset(points.compute < points.compute.max())
    if len(cheap) < MIN_PLACES:
        raise DataError(
            f"without the dearest run {len(cheap)} are left", source="--check", expected=f"{MIN_PLACES} or more to predict from"
        )
    best = len(dearest) - 1 - int(np.argmin(dearest.error[::-1]))  # of equally good ones the last
    compute, came = float(dearest.compute[best]), float(dearest.error[best])
    found = {}
    for rule in rules:
        (one,) = _predictions(cheap, fit_scaling_law(cheap.compute, cheap.error, rule), [compute], options)
        span = one["run"]
        found[rule] = {**one, "inside": None if span is None else span[0] <= came <= span[1]}
    return {"name": dearest.names[best], "compute": compute, "came": came, "num_points": len(cheap), "rules": found}


def _check_lines(check: Mapping[str, Any], percent: str) -> list[str]:
    lines = [f"the dearest run, {check['name']} at {check['compute']:.4g}, came to {check['came']:.4g}"]
    for rule, one in check["rules"].items():
        verdict = {True: "inside", False: "outside", None: "no interval"}[one["inside"]]
        lines.append(
            f"{rule} of the {check['num_points']} cheaper runs predicted {one['error']:.4g}, "
            f"{percent} of a run {_span(one['run'])}: {verdict} ({one['extrapolated']})"
        )
    return lines


def _span(interval: Sequence[float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.4g} to {interval[1]:.4g}"
