"""The calibration protocol: fitted on other samples than are measured, which get better."""

from __future__ import annotations

import numpy as np
import pytest

from ostension.data.task import Task, read_task
from ostension.errors import ConfigError
from ostension.evals.figures import reliability
from ostension.evals.inputs import ArrayInputs, unit
from ostension.evals.protocol import load_protocol
from ostension.evals.scores import softmax
from ostension.runtime import numpy_generator
from ostension.store import Features

CALIBRATION = load_protocol("calibration")
KEYS = tuple("abcde")


def a_task(**changes):
    given = {
        "title": "letters",
        "name": "letters",
        "version": 1,
        "classes": {key: (key,) for key in KEYS},
        "templates": ("{}",),
    }
    return Task(**{**given, "licence": "-", "citation": "-", **changes})


def planted(splits=("val", "test"), scale=100.0, honest=10.0, n=4_000, seed=0):
    """Rows whose labels are drawn from the softmax at another scale than the model's: it is honest at T = scale / honest."""
    generator = numpy_generator(seed, "planted")
    classes = unit(generator.normal(size=(5, 12)), KEYS)
    features = {}
    for split in splits:
        rows = unit(generator.normal(size=(n, 12)), [""] * n)
        chances = np.cumsum(softmax(honest * rows @ classes.T), axis=1)
        targets = (generator.random(n)[:, None] > chances).sum(axis=1).clip(0, 4)
        features[split] = Features(rows=rows, targets=targets, classes=KEYS)
    return ArrayInputs(a_task(), features, class_rows=classes, scale=scale)


def run(inputs, **settings):
    return CALIBRATION.run(inputs, CALIBRATION.Config(**settings), seed=0)


@pytest.mark.parametrize("scale, verdict", [(100.0, "over-confident"), (2.0, "under-confident")])
def test_a_model_of_the_wrong_scale_is_told_so_and_mended(scale, verdict):
    record = run(planted(scale=scale)).record
    told = record.details["temperature"]
    assert told["low"] < scale / 10 < told["high"] and told["verdict"] == verdict
    found = {name: one.value for name, one in record.metrics.items()}
    assert found["ece"] > 0.1 > 0.03 > found["ece_after"]
    for name in ("ece_adaptive", "ece_classwise", "nll", "brier"):
        assert found[f"{name}_after"] < found[name]
    assert found["confidence_after"] == pytest.approx(found["accuracy"], abs=0.03)
    assert sum(row["count"] for row in record.details["reliability_after"]) == 4_000
    assert next(iter(record.metrics)) == "ece" and record.headline.direction == "lower"


def test_the_temperature_is_fitted_on_val_or_else_on_train_and_never_on_what_is_measured():
    assert run(planted(("train", "val", "test"))).record.config["fitted_on"] == "val"
    outcome = run(planted(("train", "test")), max_fit=500)
    assert outcome.record.config["fitted_on"] == "train" and outcome.record.counts["fit_samples"] == 500
    with pytest.raises(ConfigError, match="neither val nor train"):
        run(planted(("test",)))


def test_labels_of_the_measured_split_do_not_move_the_temperature():
    inputs = planted()
    test = inputs.features("test")
    turned = Features(rows=test.rows, targets=4 - test.targets, classes=KEYS)
    other = ArrayInputs(inputs.task, {"val": inputs.features("val"), "test": turned}, class_rows=inputs.classifier())
    assert run(other).record.details["temperature"] == run(inputs).record.details["temperature"]


def test_columns_hold_both_probabilities():
    outcome = run(planted())
    found = outcome.record.metrics
    assert outcome.samples["probability"].mean() == pytest.approx(found["confidence"].value, abs=1e-6)
    assert outcome.samples["probability_after"].mean() == pytest.approx(found["confidence_after"].value, abs=1e-6)


def test_tasks_that_it_cannot_measure_say_why():
    assert "several labels" in CALIBRATION.reason_not(read_task("voc2007"))
    assert "neither" in CALIBRATION.reason_not(read_task("imagenet_v2"))
    assert CALIBRATION.reason_not(read_task("dtd")) is None


def test_a_model_that_guesses_has_errors_and_no_temperature():
    inputs = planted()
    turned = {split: Features(rows=inputs.features(split).rows, targets=4 - inputs.features(split).targets, classes=KEYS)
              for split in ("val", "test")}  # fmt: skip
    far = ArrayInputs(inputs.task, turned, class_rows=inputs.classifier()[::-1] * -1)
    outcome = run(far)
    assert outcome.record.metrics["ece"].value > 0.2 and "ece_after" not in outcome.record.metrics
    told = outcome.record.details["temperature"]
    assert told["value"] is None and "more of the classes than a guess" in told["verdict"]
    assert "probability_after" not in outcome.samples
    (figure,) = reliability.draw([outcome.record])
    assert "There is no best temperature, for lack of logits" in figure.says
    (figure,) = reliability.draw([run(inputs).record])
    assert "after dividing the logits by" in figure.says
