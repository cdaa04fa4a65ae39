"""Groups: worst group, gap, weights, what chance alone does, and the protocol on planted data."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ostension.data.task import Task, read_task
from ostension.errors import DataError
from ostension.evals.group_robustness import by_group, chance_of_worst, weighted_average
from ostension.evals.heads import head_of_labels, split_off
from ostension.evals.inputs import ArrayInputs
from ostension.evals.protocol import load_protocol
from ostension.evals.records import Metric
from ostension.store import Features


def cells(*parts: tuple[int, str, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions, targets and places of cells (target, place, samples, right ones)."""
    targets = np.concatenate([np.full(n, target) for target, _, n, _ in parts])
    places = np.concatenate([np.full(n, place) for _, place, n, _ in parts])
    right = np.concatenate([np.arange(n) < k for _, _, n, k in parts])
    return np.where(right, targets, 1 - targets), targets, places


def test_the_average_of_waterbirds_is_weighted_by_its_training_cells():
    # Test cells of equal size: 90 %, 70 %, 50 % and 80 % right.
    predicted, targets, places = cells((0, "0", 10, 9), (0, "1", 10, 7), (1, "0", 10, 5), (1, "1", 10, 8))
    found = by_group(read_task("waterbirds"), predicted, targets, {"place": places})
    assert found.worst == "waterbird/0" and found.cells[found.worst].value == 0.5
    wanted = (0.9 * 3498 + 0.7 * 184 + 0.5 * 56 + 0.8 * 1057) / (3498 + 184 + 56 + 1057)
    assert found.average.value == pytest.approx(wanted) and found.gap == pytest.approx(wanted - 0.5)
    few = by_group(read_task("waterbirds"), predicted[:30], targets[:30], {"place": places[:30]})
    assert few.absent == ("waterbird/1",)
    assert few.average.value == pytest.approx((0.9 * 3498 + 0.7 * 184 + 0.5 * 56) / (3498 + 184 + 56))
    # The plain mean is another number.
    assert (predicted == targets).mean() == pytest.approx(0.725) and abs(wanted - 0.725) > 0.1
    assert {name: metric.direction for name, metric in found.metrics().items()}["gap"] == "lower"


def test_the_average_of_celeba_is_plain():
    predicted, targets, places = cells((0, "female", 30, 30), (0, "male", 10, 8), (1, "female", 8, 4), (1, "male", 2, 1))
    found = by_group(read_task("celeba_hair"), predicted, targets, {"gender": places})
    assert found.average.value == pytest.approx(43 / 50) and found.cells[found.worst].value == 0.5


def test_a_value_that_the_record_does_not_list_counts_in_the_average_only():
    task = read_task("fmow")
    predicted, targets, regions = cells((0, "Asia", 10, 8), (1, "Africa", 10, 6), (1, "Other", 20, 0))
    found = by_group(task, predicted, targets, {"region": regions})
    assert found.worst == "Africa" and set(found.cells) == {"Asia", "Africa"} and found.average.value == pytest.approx(14 / 40)


def test_small_groups_can_be_left_out_of_the_worst():
    predicted, targets, regions = cells((0, "Asia", 20, 16), (1, "Africa", 3, 0))
    task, groups = read_task("fmow"), {"region": regions}
    assert by_group(task, predicted, targets, groups).worst == "Africa"
    found = by_group(task, predicted, targets, groups, minimum=4)
    assert found.worst == "Asia" and found.small == {"Africa": 3} and found.average.value == pytest.approx(16 / 23)
    with pytest.raises(DataError, match="no group has 50 samples"):
        by_group(task, predicted, targets, groups, minimum=50)
    with pytest.raises(DataError, match="'region'"):
        by_group(task, predicted, targets, {})


def test_the_chance_of_a_worst_group_is_exact():
    # Two coins: the lower of two single tosses is 0 unless both are heads.
    assert chance_of_worst([1, 1], 0.5, 0.0) == pytest.approx(0.75)
    assert chance_of_worst([1, 1], 0.5, 1.0) == 1.0
    # 2 of 4 or fewer right at 0.75: 1 - (4 x 0.75^3 x 0.25 + 0.75^4).
    assert chance_of_worst([4], 0.75, 0.5) == pytest.approx(1 - 0.73828125)
    draws = np.random.default_rng(0).binomial([30, 60, 90], 0.8, size=(40_000, 3)) / [30, 60, 90]
    assert chance_of_worst([30, 60, 90], 0.8, 0.7) == pytest.approx(float((draws.min(axis=1) <= 0.7).mean()), abs=0.01)


def test_a_group_without_a_weight_is_named():
    with pytest.raises(DataError, match="'c' has no weight"):
        weighted_average({"c": Metric(value=1.0, count=1)}, {"a": 1.0, "b": 2.0})


def a_task(**changes) -> Task:
    """Two classes on two places, scored by the worst cell."""
    fields = {
        "title": "Birds", "name": "birds", "version": 1, "kind": "group", "classes": {"land": ("a",), "water": ("b",)},
        "templates": ("{}",), "metric": "worst_group", "group_by": "class-and-groups", "groups": {"place": ("l", "w")},
        "licence": "ours", "citation": "ours",
    }  # fmt: skip
    return Task(**(fields | changes))


def birds(sizes, seed=0):
    """Rows whose first number is the class, the second the place (louder), the third noise."""
    generator = np.random.default_rng(seed)
    label = np.concatenate([np.full(n, c) for (c, _), n in sizes.items()])
    place = np.concatenate([np.full(n, p) for (_, p), n in sizes.items()])
    rows = np.stack([label - 0.5, 2 * (place - 0.5), generator.standard_normal(len(label))], axis=1)
    rows[:, :2] += 0.6 * generator.standard_normal((len(label), 2))
    return Features(
        rows=rows.astype(np.float32), targets=label, classes=("land", "water"), groups={"place": np.array(["l", "w"])[place]},
        ids=tuple(f"{seed}-{row}" for row in range(len(label))),
    )  # fmt: skip


EVEN = {(0, 0): 150, (0, 1): 150, (1, 0): 150, (1, 1): 150}


def test_the_protocol_finds_the_group_that_a_spurious_feature_hurts():
    protocol = load_protocol("groups")
    inputs = ArrayInputs(
        a_task(), {"train": birds(EVEN, 1), "test": birds(EVEN, 2)},
        class_rows=np.array([[-1.0, -2.0, 0.0], [1.0, 2.0, 0.0]]), scale=10.0,
    )  # fmt: skip
    outcome = protocol.run(inputs, protocol.Config(), seed=0)
    record = outcome.record
    # The words look at the place more than at the bird; a probe on even cells does not.
    assert record.headline.value < 0.3 and record.metrics["gap"].value > 0.2
    assert record.details["worst"] in ("land/w", "water/l") and record.details["by_chance"] < 1e-6
    assert record.metrics["probe_worst_group"].value > record.headline.value + 0.1
    assert list(record.details["groups"]) == sorted(record.details["groups"], key=lambda c: record.details["groups"][c][0])
    for value, count, low, high in record.details["groups"].values():
        assert low <= value <= high and count == 150
    assert set(outcome.samples) == {"id", "group", "correct", "probe_correct"}
    assert protocol.run(inputs, protocol.Config(), seed=0).record == record
    without = protocol.run(inputs, protocol.Config(probe=False), seed=0).record
    assert "probe_groups" not in without.details and without.headline == record.headline


def test_a_task_scored_otherwise_keeps_its_score_first():
    protocol = load_protocol("groups")
    task = a_task(kind="classify", metric="macro_f1_present", group_by="groups")
    inputs = ArrayInputs(task, {"test": birds(EVEN)}, class_rows=np.eye(2, 3))
    record = protocol.run(inputs, protocol.Config(), seed=0).record
    assert list(record.metrics)[:2] == ["macro_f1_present", "worst_group"] and set(record.details["groups"]) == {"l", "w"}
    assert protocol.reason_not(dataclasses.replace(task, groups={})) == "its record names no groups"
    assert protocol.reason_not(read_task("voc2007")) and protocol.reason_not(read_task("coco"))
    assert protocol.reason_not(read_task("waterbirds")) is None and protocol.reason_not(read_task("domainnet")) is None
    assert protocol.reason_not(read_task("pacs")).startswith("each of its splits is one group")


def test_a_part_is_held_out_of_every_class_that_has_two():
    features = Features(
        rows=np.arange(24, dtype=np.float32).reshape(12, 2), targets=np.array([0] * 10 + [1] + [2]), classes=("a", "b", "c")
    )
    kept, held = split_off(features, seed=0)
    assert len(held) == 2 and set(held.targets) == {0} and set(kept.targets) == {0, 1, 2}
    assert not set(kept.ids) & set(held.ids) and split_off(features, seed=0)[1].ids == held.ids
    with pytest.raises(DataError, match="no class has two samples"):
        split_off(features.take([0, 10, 11]), seed=0)
    with pytest.raises(DataError, match="of one class"):
        head_of_labels(features.take([0, 1]), features, level="pre")
