"""Calibration of zero-shot probabilities: errors before and after a temperature that is fitted on validation samples.

The temperature is fitted on the split "val", or where there is none on samples drawn from "train"; never on those that are
measured. Accuracy does not change with it. Errors: "ece" (of the predicted class, bins of equal width), "ece_adaptive" (bins of
equal counts), "ece_classwise" (of every class's probability), "nll" in nats and "brier"; "..._after" at the temperature.

Details: "temperature" {value, low, high, verdict, nll_before, nll_after}, "reliability", "reliability_after", "adaptive",
"adaptive_after" as `metrics.reliability` gives them. Where no temperature is best there is nothing "after": "temperature" is
then {"value": null, "verdict"}, which says why.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ostension.config import require, to_tree
from ostension.data.task import Task
from ostension.errors import ConfigError
from ostension.evals import metrics
from ostension.evals.calibration import calibration, fit_temperature, no_temperature
from ostension.evals.inputs import Inputs
from ostension.evals.protocol import Outcome
from ostension.evals.records import Metric, Record
from ostension.evals.scores import accuracy, top_probability
from ostension.evals.zero_shot import OWN, classify, labels_of, words
from ostension.runtime import numpy_generator

SPLITS = ("test",)  # and one of val and train
OF_PREDICTORS = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """How errors are counted, and how much is fitted on.

    Attributes:
        templates: as for zero-shot.
        bins: of the calibration errors.
        max_fit: samples that the temperature is fitted on, at most; drawn where there are more.
    """

    templates: str = OWN
    bins: int = metrics.CALIBRATION_BINS
    max_fit: int = 20_000

    def __post_init__(self):
        require(self.bins >= 1, "bins", self.bins, "1 or more")
        require(self.max_fit >= 1, "max_fit", self.max_fit, "1 or more")


def reason_not(task: Task) -> str | None:
    """Why it cannot be run on this task."""
    if task.kind == "retrieval":
        return "a retrieval task has no classes"
    if task.takes_several:
        return "samples have several labels, whose probabilities do not add up to one"
    return None if {"val", "train"} & set(task.splits) else "it has neither val nor train to fit a temperature on"


def run(inputs: Inputs, config: Config, *, seed: int) -> Outcome:
    """Errors before and after; before only, where no temperature is best, as of a model that guesses.

    Raises:
        ConfigError: where there are neither validation nor training samples.
        DataError: for samples without labels.
    """
    task = inputs.task
    fitted_on = next((name for name in ("val", "train") if inputs.has(name)), None)
    if fitted_on is None:
        raise ConfigError(f"{task.name or task.title}: neither val nor train is there", expected="samples to fit on")
    asked = words(task, config.templates)
    fit_logits, fit_targets = classify(inputs, fitted_on, asked), labels_of(inputs, fitted_on)
    if len(fit_targets) > config.max_fit:
        chosen = numpy_generator(seed, "calibration").choice(len(fit_targets), size=config.max_fit, replace=False)
        fit_logits, fit_targets = fit_logits[chosen], fit_targets[chosen]
    logits, targets = classify(inputs, "test", asked), labels_of(inputs, "test")
    correct, count = logits.argmax(axis=1) == targets, len(targets)
    before = calibration(logits, targets, bins=config.bins)
    versions = {"": before}
    details: dict[str, Any] = {"reliability": before.reliability, "adaptive": before.reliability_adaptive}
    samples = {"id": np.array(inputs.features("test").ids), "correct": correct, "probability": top_probability(logits)}
    why_none = no_temperature(fit_logits, fit_targets)
    if why_none is None:
        found = fit_temperature(fit_logits, fit_targets)
        after = versions["_after"] = calibration(logits, targets, temperature=found.value, bins=config.bins)
        details |= {"reliability_after": after.reliability, "adaptive_after": after.reliability_adaptive}
        details["temperature"] = dataclasses.asdict(found) | {"verdict": found.verdict}
        if not np.isfinite(found.high):
            details["temperature"]["high"] = None
        samples["probability_after"] = top_probability(logits / np.float32(found.value))
    else:
        details["temperature"] = {"value": None, "verdict": f"is no best temperature, for lack of {why_none}"}
    measured: dict[str, Metric] = {}
    for name in ("ece", "ece_adaptive", "ece_classwise", "nll", "brier"):
        for suffix, one in versions.items():
            measured[name + suffix] = Metric(value=getattr(one, name), count=count, direction="lower")
    for suffix, one in versions.items():
        measured[f"confidence{suffix}"] = Metric(value=one.confidence, count=count)
    measured["accuracy"] = accuracy(correct, chance=1 / logits.shape[1])
    if why_none is None:
        measured["temperature"] = Metric(value=found.value, count=len(fit_targets), direction="lower")
    record = Record(
        protocol="calibration", subject=f"{inputs.model_name} on {task.title}", metrics=measured,
        config={**to_tree(config), "scale": inputs.scale, "fitted_on": fitted_on}, hashes=inputs.hashes(),
        counts={"samples": count, "classes": logits.shape[1], "fit_samples": len(fit_targets)}, seeds=(seed,), task=task.name,
        model=inputs.model_name, split=inputs.name_of("test"),
        details=details,
    )  # fmt: skip
    return Outcome(record=record, samples=samples)
