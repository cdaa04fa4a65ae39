"""Linear probes on frozen features: few-shot curves, the choice of the strength, and what zero-shot is worth in labels.

Letters: N samples, D features, C classes, K shots.
Source: CLIP, sections 3.1.5 and 3.2 and its few-shot study; the solver is `train.logistic`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from ostension.errors import DataError
from ostension.evals import metrics
from ostension.evals.records import Metric, Record
from ostension.runtime import numpy_generator
from ostension.shapes import Float, Int
from ostension.train.logistic import LogisticFit, fit_logistic

How = Literal["interpolated", "extrapolated", "at most", "never"]
# Half a decade apart; the strengths that few-shot probes on unit features choose lie well inside.
STRENGTHS = tuple(10.0**power for power in (0, 0.5, 1, 1.5, 2, 2.5, 3))


def draw_shots(labels: Int[np.ndarray, " N"], shots: int, seed: int) -> Int[np.ndarray, " n"]:
    """Positions of `shots` samples of each class, drawn without replacement.

    Raises:
        DataError: if a class has fewer.
    """
    generator = numpy_generator(seed, "shots", shots)
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < shots:
            raise DataError(f"class {label} has {len(members)} samples", expected=f"at least {shots}")
        chosen.append(generator.permutation(members)[:shots])
    return np.sort(np.concatenate(chosen))


def choose_strength(
    features: Float[np.ndarray, "N D"],
    labels: Int[np.ndarray, " N"],
    folds: Int[np.ndarray, " N"],
    strengths: Sequence[float] = STRENGTHS,
) -> tuple[float, dict[str, float]]:
    """The strength with the best mean accuracy on left-out folds, and that accuracy for every strength.

    Each fold must leave every class at least one sample to train on. A tie goes to the stronger penalty.
    """
    scores = np.zeros(len(strengths))
    values = np.unique(folds)
    for fold in values:
        out = folds == fold
        fit = _fit(features[~out], labels[~out], strengths)
        predictions = fit.logits(torch.from_numpy(features[out])).argmax(-1).numpy()
        scores += (predictions == labels[out]).mean(axis=1) / len(values)
    best = int(scores.argmax())
    return strengths[best], {f"{strength:g}": float(score) for strength, score in zip(strengths, scores, strict=True)}


def few_shot(
    train: Float[np.ndarray, "N D"],
    train_labels: Int[np.ndarray, " N"],
    test: Float[np.ndarray, "M D"],
    test_labels: Int[np.ndarray, " M"],
    *,
    shots: Sequence[int],
    strength: float,
    seeds: Sequence[int],
    subject: str,
    config: dict[str, Any],
    hashes: dict[str, str],
) -> Record:
    """Test accuracy of probes on K samples a class, for each K the mean over `seeds` of the draw.

    The interval of a mean over draws is a bootstrap over the test samples of each one's mean correctness: it covers the
    choice of test samples, while the spread over draws is reported beside it as `spread`.
    """
    classes = int(train_labels.max()) + 1
    measured: dict[str, Metric] = {}
    spread: dict[str, float] = {}
    certificate = 0.0
    for k in shots:
        correct = []
        for seed in seeds:
            chosen = draw_shots(train_labels, k, seed)
            fit = _fit(train[chosen], train_labels[chosen], [strength])
            certificate = max(certificate, float(fit.gradient_norm[0]))
            correct.append(fit.logits(torch.from_numpy(test))[0].argmax(-1).numpy() == test_labels)
        values = np.mean(correct, axis=0)
        measured[f"{k}_shot"] = Metric(
            value=float(values.mean()), count=len(test), chance=1 / classes,
            interval=metrics.bootstrap_interval(values, seed=seeds[0]),
        )  # fmt: skip
        spread[f"{k}_shot"] = float(np.std([row.mean() for row in correct]))
    return Record(
        protocol="linear-probe",
        subject=subject,
        metrics=measured,
        config={**config, "strength": strength, "spread": spread, "largest_gradient_norm": certificate},
        hashes=hashes,
        counts={"test_samples": len(test), "classes": classes, "features": train.shape[1]},
        seeds=tuple(seeds),
    )


def shots_to_match(curve: Mapping[int, float], accuracy: float) -> float | None:
    """`labels_needed` alone: labelled samples a class at which a probe reaches `accuracy`, None if it never does."""
    return labels_needed(curve, accuracy)[0]


def labels_needed(curve: Mapping[int, float] | Mapping[float, float], accuracy: float) -> tuple[float | None, How]:
    """Labelled samples a class at which a probe reaches `accuracy`, and how that was read off its curve.

    The curve is linear in log K between its points. Above all of them there is no answer ("never"); below the first one its
    own segment is prolonged ("extrapolated"), and where that does not rise, the first K is an upper bound ("at most").

    Source: CLIP, the data-efficiency figure of its zero-shot study.

    Raises:
        DataError: for fewer than two points.
    """
    points = sorted((math.log(k), value) for k, value in curve.items())
    if len(points) < 2:
        raise DataError(f"the curve has {len(points)} points", expected="two or more")
    if accuracy > max(value for _, value in points):
        return None, "never"
    # The first segment that reaches the accuracy; below the first point its own segment is prolonged.
    (x0, y0), (x1, y1) = next((pair for pair in itertools.pairwise(points) if pair[1][1] >= accuracy), (points[0], points[1]))
    if y1 <= y0:
        return math.exp(x0), "interpolated" if accuracy == y0 else "at most"
    found = math.exp(x0 + (accuracy - y0) * (x1 - x0) / (y1 - y0))
    return found, "extrapolated" if accuracy < points[0][1] else "interpolated"


def _fit(features: np.ndarray, labels: np.ndarray, strengths: Sequence[float]) -> LogisticFit:
    return fit_logistic(torch.from_numpy(features), torch.from_numpy(labels), int(labels.max()) + 1, strengths)
