"""The whole grid of linear probes, 97 strengths from 1e-6 to 1e6, against scikit-learn's L-BFGS.

Planted features with a power-law spectrum far from the origin. scikit-learn (`LogisticRegression(max_iter=1000)`, its default
solver and tolerance) is timed at a stated subset of the strengths, spread over the grid; its total is that subset's mean times
97, or the sum over the grid of times interpolated between them, whichever is less. Ours is timed for all 97, its preparation
included. "J - least" is the objective in float64 from the original features minus the least that any of the runs
reached at that strength; a strength where scikit-learn's is lower than ours is counted as "ours higher". "agree" is the share
of test predictions that are those of the tightest run.

Seconds are of the processor, one thread: first ours, then one scikit-learn fit after another, then ours at another tolerance.

    python benchmarks/probe_sweep.py [--samples 20000] [--width 512] [--classes 100] [--every 8] [--record FILE]
"""

from __future__ import annotations

import functools
import gc
import time
import warnings
from collections.abc import Callable
from typing import Any

import _measure
import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ostension.runtime import torch_generator
from ostension.train.logistic import LogisticFit, LogisticPath, certificate
from ostension.train.strength_search import GRID

TEST_SAMPLES = 5_000
TOLERANCES = (1e-5, 1e-4)  # the default, and scikit-learn's number (of another norm)


def planted(samples: int, width: int, classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Train and test features with labels drawn from a planted softmax; Bayes' accuracy is about 77 % at the default size."""
    generator = torch_generator("probe sweep", samples, width, classes)
    count = samples + TEST_SAMPLES
    spectrum = torch.arange(1, width + 1, dtype=torch.float32) ** -0.5
    latent = torch.randn(count, width, generator=generator) * spectrum
    logits = latent @ torch.randn(width, classes, generator=generator)
    logits *= 8 / logits.std()
    labels = (logits - torch.empty(count, classes).exponential_(generator=generator).log()).argmax(1)
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    rows = latent @ turn + 0.3 * torch.randn(width, generator=generator)
    return rows[:samples].contiguous(), labels[:samples], rows[samples:].contiguous(), labels[samples:]


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of processor time, and what the call gives."""
    gc.collect()
    start = time.process_time()
    found = call()
    return time.process_time() - start, found


def sweep(rows: Tensor, labels: Tensor, classes: int, tolerance: float) -> tuple[LogisticPath, LogisticFit]:
    """All strengths of the grid."""
    path = LogisticPath(rows, labels, classes, tolerance=tolerance)
    return path, path.fit(GRID)


def objective(rows: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, strength: float) -> float:
    """J in float64."""
    loss = torch.nn.functional.cross_entropy(rows @ weight.double().T + bias.double(), labels)
    return float(loss + weight.double().square().sum() / (2 * strength * len(labels)))


def main() -> None:
    options = _measure.arguments(
        __doc__ or "", samples=(20_000, "training samples"), width=(512, "features"), classes=(100, "classes"),
        every=(8, "time scikit-learn at every so many points of the grid"),
        budget=(400.0, "wall seconds after which no fit is begun"),
    )  # fmt: skip
    rows, labels, test, test_labels = planted(options.samples, options.width, options.classes)
    sweep(rows[:500], labels[:500] % 5, 5, 1e-2)  # first calls load libraries
    ours: dict[str, tuple[LogisticPath, LogisticFit]] = {}
    seconds: dict[str, float] = {}

    def ours_at(tolerance: float) -> None:
        name = f"ostension, tolerance {tolerance:g}"
        seconds[name], ours[name] = timed(functools.partial(sweep, rows, labels, options.classes, tolerance))
        print(f"{name}: {seconds[name]:.1f} s, {ours[name][0].passes} passes", flush=True)

    begin = time.monotonic()
    ours_at(TOLERANCES[0])
    places = spread_out(len(GRID), options.every)
    theirs: dict[int, tuple[float, LogisticRegression]] = {}
    for place in places:
        if time.monotonic() - begin > options.budget:
            print(f"left out for time: {len(places) - len(theirs)} of {len(places)} strengths", flush=True)
            break
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it stops at max_iter is what its users get, too
            model = LogisticRegression(C=GRID[place], max_iter=1000)
            spent, fitted = timed(functools.partial(model.fit, rows.numpy(), labels.numpy()))
        theirs[place] = (spent, fitted)
        print(f"scikit-learn C={GRID[place]:.3g}: {spent:.1f} s, {fitted.n_iter_[0]} iterations", flush=True)
    ours_at(TOLERANCES[1])
    figures = compare(ours, theirs, seconds, rows, labels, test, test_labels)
    for title, table in figures.items():
        _measure.table(title, table)
    settings = {"samples": options.samples, "width": options.width, "classes": options.classes, "strengths": len(GRID),
                "timed": [GRID[place] for place in sorted(theirs)], "tolerances": list(TOLERANCES)}  # fmt: skip
    _measure.write_record(options.record, "probe_sweep", settings, figures)


def spread_out(count: int, every: int) -> list[int]:
    """Every so many places of the grid with both ends, coarse ones first, so that running out of time leaves them spread."""
    chosen = sorted({*range(0, count, every), count - 1})
    return sorted(chosen, key=lambda place: (place % (4 * every) != 0, place % (2 * every) != 0, place))


def compare(ours, theirs, seconds, rows, labels, test, test_labels) -> dict[str, dict[str, dict[str, float]]]:
    """The tables of the record: totals, and each timed strength."""
    exact, names = rows.double(), list(ours)
    fits = {name: fit for name, (_, fit) in ours.items()}
    tightest = fits[names[0]]
    by_strength: dict[str, dict[str, float]] = {}
    lower = dict.fromkeys(names, 0)
    for place in sorted(theirs):
        spent, model = theirs[place]
        reached = {
            "scikit-learn": objective(exact, labels, *map(torch.from_numpy, (model.coef_, model.intercept_)), GRID[place])
        }
        reached |= {n: objective(exact, labels, fit.weight[place], fit.bias[place], GRID[place]) for n, fit in fits.items()}
        least = min(reached.values())
        best = tightest.logits_of(place, test).argmax(1).numpy()
        row = {
            "sklearn s": spent,
            "steps": float(model.n_iter_[0]),
            "J": least,
            "sklearn J - least": reached["scikit-learn"] - least,
        }
        row["sklearn agree"] = float((model.predict(test.numpy()) == best).mean())
        for name, fit in fits.items():
            short = name.rpartition(" ")[2]
            row[f"{short} J - least"] = reached[name] - least
            row[f"{short} agree"] = float((fit.logits_of(place, test).argmax(1).numpy() == best).mean())
            lower[name] += reached[name] > reached["scikit-learn"]
        row["accuracy"] = float((best == test_labels.numpy()).mean())
        by_strength[f"C = {GRID[place]:.3g}"] = row
    places = sorted(theirs)
    times = np.array([theirs[place][0] for place in places])
    mean_total = times.mean() * len(GRID)
    trapezoid = float(np.interp(range(len(GRID)), places, times).sum())
    total = min(mean_total, trapezoid)
    totals = {"scikit-learn, all 97 as estimated": {"s": total, "s by mean": mean_total, "s by trapezoids": trapezoid},
              "scikit-learn, the timed ones": {"s": float(times.sum()), "strengths": float(len(places))}}  # fmt: skip
    for name, (path, fit) in ours.items():
        _, norms = certificate(subset(fit, places), rows, labels)
        totals[name] = {"s": seconds[name], "strengths": float(len(GRID)), "passes": float(path.passes),
                        "times faster": total / seconds[name], "faster than timed": float(times.sum()) / seconds[name],
                        "gradient, float64": float(norms.max()), "ours higher": float(lower[name])}  # fmt: skip
    return {"the whole grid": totals, "each timed strength": by_strength}


def subset(fit, places):
    """The fit at some strengths."""
    return type(fit)(
        strengths=tuple(fit.strengths[place] for place in places),
        **{name: getattr(fit, name)[places] for name in
           ("weight", "bias", "objective", "gradient_norm", "iterations", "converged")},
    )  # fmt: skip


if __name__ == "__main__":
    main()
