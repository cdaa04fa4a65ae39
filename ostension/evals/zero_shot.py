"""Zero-shot classification as a record: top-1 and top-5 accuracy, mean per class and calibration, against chance."""

from __future__ import annotations

from typing import Any

import numpy as np

from ostension.evals import metrics
from ostension.evals.records import Metric, Record
from ostension.evals.scores import accuracy, softmax
from ostension.shapes import Float, Int

TOP_K = (1, 5)


def zero_shot(
    logits: Float[np.ndarray, "N C"],
    targets: Int[np.ndarray, " N"],
    *,
    subject: str,
    config: dict[str, Any],
    hashes: dict[str, str],
) -> Record:
    """The record of a classifier's `logits` on samples whose classes are `targets`.

    Intervals of accuracies are Wilson's at 95 %: samples count as independent.
    """
    count, classes = logits.shape
    found = metrics.ranks(logits, targets)
    measured = {f"top{k}": accuracy(found < k, chance=min(1.0, k / classes)) for k in TOP_K}
    predictions = logits.argmax(axis=1)
    measured["mean_per_class"] = Metric(
        value=metrics.mean_per_class_accuracy(predictions, targets), count=count, chance=1 / classes
    )
    confidences = softmax(logits).max(axis=1)
    error = metrics.expected_calibration_error(confidences, predictions == targets)
    measured["ece"] = Metric(value=error, count=count, direction="lower")
    return Record(
        protocol="zero-shot",
        subject=subject,
        metrics=measured,
        config={**config, "calibration_bins": metrics.CALIBRATION_BINS},
        hashes=hashes,
        counts={"samples": count, "classes": classes},
    )


def difference(ours: np.ndarray, theirs: np.ndarray, *, seed: int) -> Metric:
    """Mean of `ours` minus mean of `theirs` on the same samples (N,), with a paired bootstrap interval; chance is 0."""
    values = ours.astype(np.float64) - theirs.astype(np.float64)
    return Metric(
        value=float(values.mean()), count=len(values), chance=0.0, interval=metrics.bootstrap_interval(values, seed=seed)
    )
