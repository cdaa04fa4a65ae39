"""What zero-shot is worth in labels, and zero-shot against probe, on the paper's values and on planted ones."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ostension.data.suite import read_suite
from ostension.evals.linear_probe import labels_needed, shots_to_match
from ostension.evals.records import Metric, Record
from ostension.evals.summaries import data_efficiency, zeroshot_vs_probe

# CLIP's figure of data efficiency, as recalled; their mean and median are the printed ones.
PAPER = {
    "fer2013": 184, "cifar10": 81, "food101": 64, "oxford_pets": 48, "country211": 32, "imagenet": 16, "pcam": 14.7,
    "sst2": 14.7, "kinetics700": 13.6, "stl10": 12.7, "cifar100": 12, "hateful_memes": 9.8, "stanford_cars": 6.0,
    "mnist": 4.8, "sun397": 3.9, "caltech101": 3.5, "kitti": 2.9, "ucf101": 2.9, "birdsnap": 2.7, "dtd": 2.6,
    "fgvc_aircraft": 2.0, "gtsrb": 1.6, "clevr_counts": 1.5, "resisc45": 1.5, "eurosat": 0.9, "flowers102": 0.9,
}  # fmt: skip


def record(protocol, task, value, *, model="m", details=None, counts=None, config=None, **extra):
    measured = {"accuracy": Metric(value=value, count=100)}
    sizes = {"samples": 100, "classes": 10, **(counts or {})}
    return Record(protocol=protocol, subject=task, metrics=measured, config=config or {}, hashes={}, task=task, model=model,
                  counts=sizes, split="test", details=details or {}, **extra)  # fmt: skip


def few(task, curve, **extra):
    details = {"curve": [[k, value, 0.01] for k, value in curve.items()], "regime": "paper", "zero_shot": None}
    return record("fewshot", task, max(curve.values()), details=details, config={"level": "pre", "normalise": False}, **extra)


def test_labels_are_read_off_straight_lines_in_log_shots():
    curve = {1: 0.2, 4: 0.4, 16: 0.4, 64: 0.8}
    assert labels_needed(curve, 0.3) == (pytest.approx(2.0), "interpolated")
    assert labels_needed(curve, 0.4) == (pytest.approx(4.0), "interpolated")
    assert labels_needed(curve, 0.6) == (pytest.approx(32.0), "interpolated")
    assert labels_needed(curve, 0.1) == (pytest.approx(0.5), "extrapolated")
    assert labels_needed(curve, 0.81) == (None, "never") and shots_to_match(curve, 0.81) is None
    assert labels_needed({1: 0.5, 2: 0.5, 4: 0.9}, 0.4) == (pytest.approx(1.0), "at most")


def test_the_papers_values_have_the_papers_median_mean_and_maximum():
    assert set(PAPER) | {"voc2007"} == set(read_suite("clip27").tasks)
    measured = data_efficiency.aggregate({task: float(needed) for task, needed in PAPER.items()})
    assert round(measured["median"].value, 1) == 5.4 and round(measured["mean"].value, 1) == 20.8
    assert measured["max"].value == 184 and measured["reached"].value == 1


def test_each_of_the_papers_values_comes_back_from_a_curve_that_passes_there():
    records = []
    for task, needed in PAPER.items():
        curve = {k: 0.3 + 0.05 * math.log2(k) for k in (1, 2, 4, 8, 16)}
        records.append(few(task, curve))
        records.append(record("probe", task, 0.3 + 0.05 * math.log2(512), counts={"fitted": 5120},
                              config={"level": "pre", "normalise": False}))  # fmt: skip
        records.append(record("zeroshot", task, 0.3 + 0.05 * math.log2(needed)))
    found = data_efficiency.run(records)
    assert {one.task: one.details["needed"] for one in found[:-1]} == pytest.approx(PAPER)
    assert {one.task for one in found[:-1] if one.details["how"] == "extrapolated"} == {"eurosat", "flowers102"}
    overall = found[-1]
    assert (
        overall.task == "" and overall.counts["tasks"] == 26 and overall.metrics["mean"].value == pytest.approx(20.8, abs=0.05)
    )


def test_what_no_probe_reaches_counts_as_infinitely_many():
    records = [few("a", {1: 0.1, 2: 0.2}), few("b", {1: 0.1, 2: 0.3}), few("c", {1: 0.1, 2: 0.2}),
               *(record("zeroshot", task, value) for task, value in (("a", 0.9), ("b", 0.3), ("c", 0.1)))]  # fmt: skip
    one, two, three, overall = data_efficiency.run(records)
    assert one.details["needed"] is None and one.details["how"] == "never" and one.metrics["more_than"].value == 2
    assert two.metrics["needed"].value == pytest.approx(2) and three.metrics["needed"].value == pytest.approx(1)
    assert list(overall.metrics) == ["median", "reached"] and overall.metrics["median"].value == pytest.approx(2)
    assert overall.metrics["reached"].value == pytest.approx(2 / 3)


def test_the_whole_training_set_is_a_point_only_on_the_same_rows():
    curve = few("a", {1: 0.2, 16: 0.4})
    same = record("probe", "a", 0.9, counts={"fitted": 5000}, config={"level": "pre", "normalise": False, "mode": "grid"})
    other = record("probe", "a", 0.9, counts={"fitted": 5000}, config={"level": "post", "normalise": False})
    assert data_efficiency.curve_of(curve, same) == {1.0: 0.2, 16.0: 0.4, 500.0: 0.9}
    assert data_efficiency.curve_of(curve, other) == data_efficiency.curve_of(curve, None) == {1.0: 0.2, 16.0: 0.4}


def test_without_zero_shot_or_a_curve_there_is_nothing_to_say():
    assert data_efficiency.run([few("a", {1: 0.2, 2: 0.4})]) == []
    assert data_efficiency.run([few("a", {1: 0.2}), record("zeroshot", "a", 0.3)]) == []
    assert data_efficiency.run([]) == zeroshot_vs_probe.run([]) == []


def test_zero_shot_against_probe_is_a_line_with_its_shares():
    values = {f"t{index}": (0.4 + 0.1 * index, 0.1 + 0.15 * index) for index in range(5)}
    records = [one for task, (probe, zero_shot) in values.items()
               for one in (record("probe", task, probe), record("zeroshot", task, zero_shot))]  # fmt: skip
    (found,) = zeroshot_vs_probe.run(records)
    assert found.metrics["pearson"].value == pytest.approx(1) and found.metrics["slope"].value == pytest.approx(1.5)
    assert found.metrics["slope"].interval.low == pytest.approx(1.5)
    assert found.metrics["transfer_efficiency"].value == pytest.approx(np.mean([z / p for p, z in values.values()]))
    assert found.details["within_3_points"] == [] and found.details["intercept"] == pytest.approx(-0.5)
    assert len(found.details["points"]) == 5 and found.model == "m"
    assert zeroshot_vs_probe.run(records[:6]) == []


def test_scores_that_are_all_equal_have_no_line():
    records = [one for index in range(5) for one in (record("probe", f"t{index}", 0.5), record("zeroshot", f"t{index}", 0.5))]
    assert zeroshot_vs_probe.run(records) == []
