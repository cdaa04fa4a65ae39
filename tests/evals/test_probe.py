"""The probe protocol against scikit-learn, its searches on known curves, and its edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from ostension.data.task import Split, Task, read_task
from ostension.errors import ConfigError, DataError
from ostension.evals.few_shots import held_out, joined, nested_shots, short_classes
from ostension.evals.inputs import ArrayInputs
from ostension.evals.protocol import load_protocol
from ostension.runtime import numpy_generator
from ostension.store import Features
from ostension.train.strength_search import GRID, PathProbe, coop_search, paper_search, whole_grid

PROBE = load_protocol("probe")


def a_task(classes=4, **changes):
    names = {f"c{index}": (f"name {index}",) for index in range(classes)}
    given = {"title": "planted", "name": "planted", "version": 1, "classes": names, "templates": ("a {}.",), "licence": "-",
             "citation": "-", "splits": {name: Split(count=1) for name in ("train", "val", "test")}}  # fmt: skip
    return Task(**{**given, **changes})


def planted(classes=4, width=10, noise=1.0, seed=0, task=None, **counts):
    """Splits of Gaussian clouds, one a class, far from the origin."""
    generator = numpy_generator(seed, "clouds")
    centres = generator.normal(size=(classes, width)) + 3
    task = a_task(classes) if task is None else task
    splits = {}
    for split, count in (counts or {"train": 120, "val": 80, "test": 200}).items():
        targets = np.arange(count) % classes
        rows = (centres[targets] + noise * generator.normal(size=(count, width))).astype(np.float32)
        splits[split] = Features(rows=rows, targets=targets, classes=tuple(task.display_names()))
    return ArrayInputs(task, splits)


def run(inputs, seed=0, **settings):
    return PROBE.run(inputs, PROBE.Config(**settings), seed=seed)


def test_the_probe_is_scikit_learns_chosen_on_val_and_refitted_on_both():
    inputs = planted()
    record = run(inputs).record
    train, val, test = (inputs.features(split, "pre") for split in ("train", "val", "test"))
    curve = {
        strength: LogisticRegression(C=strength, tol=1e-7, max_iter=10_000).fit(train.rows, train.targets)
        .score(val.rows, val.targets) for strength in GRID[16:73:8]  # past 1e3 the optimum is flat, and stopping decides
    }  # fmt: skip
    mine = dict(record.details["curve"])
    assert len(mine) == 97
    assert all(abs(mine[strength] - score) <= 1.01 / 80 for strength, score in curve.items())
    best = record.details["strength"]
    assert mine[best] == max(mine.values()) and best == min(s for s, score in mine.items() if score == mine[best])
    rows, targets = np.concatenate([train.rows, val.rows]), np.concatenate([train.targets, val.targets])
    oracle = LogisticRegression(C=best, tol=1e-8, max_iter=10_000).fit(rows, targets)
    assert record.headline.value == pytest.approx(oracle.score(test.rows, test.targets), abs=1.01 / 200)
    assert record.counts["fitted"] == 200 and record.details["gradient_norm"] <= 1e-5


def test_the_record_has_the_papers_interval_and_the_task_s_own_metric_first():
    record = run(planted(task=a_task(metric="mean_per_class"))).record
    assert next(iter(record.metrics)) == "mean_per_class" and record.metrics["top1"].interval.method == "wilson"
    low, high = record.details["clopper_pearson"]
    wilson = record.metrics["top1"].interval
    assert low < wilson.low < record.metrics["top1"].value < wilson.high < high
    assert {"per_class", "confusion", "reliability"} <= set(record.details)


def test_samples_say_what_was_predicted():
    outcome = run(planted())
    assert next(iter(outcome.samples)) == "id" and outcome.samples["correct"].mean() == outcome.record.metrics["top1"].value


def test_without_val_a_part_of_each_class_of_train_is_held_out_and_the_last_fit_has_all():
    inputs = planted(train=40, test=40)
    record = run(inputs, held_out=0.3).record
    assert record.details["chosen_on"] == "a part of train" and record.counts["fitted"] == 40
    assert {score * 12 % 1 for _, score in record.details["curve"]} == {0.0}  # 3 of 10 of each of 4 classes
    assert run(inputs, held_out=0.3).record == record
    assert run(inputs, held_out=0.3, seed=1).record.details["curve"] != record.details["curve"]


def test_the_paper_s_mode_fits_fifteen_times_at_most_and_a_given_strength_once():
    inputs = planted()
    paper = run(inputs, mode="paper").record.details
    assert 7 <= len(paper["curve"]) <= 15 and paper["strength"] in dict(paper["curve"])
    given = run(inputs, strength=0.316).record.details
    assert given["curve"] == [] and given["strength"] == 0.316 and given["chosen_on"] == "given"


def test_a_choice_at_the_end_of_the_grid_is_said():
    apart = run(planted(noise=1e-3)).record.details  # everything is right at every strength
    assert apart["at_end"] == "strongest" and "strongest penalty of the grid" in apart["notes"][0]


def test_a_class_without_training_samples_is_never_predicted_and_named():
    inputs = planted()
    rows, targets = inputs.features("train").rows, np.array(inputs.features("train").targets)
    keep = targets != 2
    classes = tuple(inputs.task.display_names())
    partial = ArrayInputs(inputs.task, {"train": Features(rows=rows[keep], targets=targets[keep], classes=classes),
                                        "test": inputs.features("test")})  # fmt: skip
    outcome = run(partial, mode="paper")
    assert "c2" not in set(outcome.samples["predicted"]) and "1 of 4 classes" in outcome.record.details["notes"][-1]


def test_samples_with_several_labels_get_a_sigmoid_for_each():
    generator = numpy_generator(0, "labels")
    task = a_task(3, kind="multilabel", metric="map_11_point")
    rows = generator.normal(size=(300, 6)).astype(np.float32)
    targets = (rows[:, :3] + 0.3 * generator.normal(size=(300, 3)) > 0.5).astype(np.int64)
    splits = {name: Features(rows=rows[part], targets=targets[part], classes=tuple(task.display_names()))
              for name, part in (("train", slice(150)), ("test", slice(150, 300)))}  # fmt: skip
    outcome = run(ArrayInputs(task, splits), mode="paper")
    assert outcome.record.metrics["map_11_point"].value > 0.85 > outcome.record.headline.chance
    one = PathProbe(rows[:150], targets[:150], 3).logits(0.1, rows[150:])
    oracle = LogisticRegression(C=0.1, tol=1e-8).fit(rows[:150], targets[:150, 1]).decision_function(rows[150:])
    assert one[:, 1] == pytest.approx(oracle, abs=1e-3)


def test_the_strength_of_two_classes_is_scikit_learns_too():
    inputs = planted(classes=2)
    train, test = inputs.features("train"), inputs.features("test")
    logits = PathProbe(train.rows, train.targets, 2).logits(0.02, test.rows)
    oracle = LogisticRegression(C=0.02, tol=1e-8).fit(train.rows, train.targets).decision_function(test.rows)
    assert logits[:, 1] - logits[:, 0] == pytest.approx(oracle, abs=1e-3)


def test_permuted_classes_change_nothing():
    inputs, order = planted(), np.array([2, 0, 3, 1])
    task = a_task()
    turned = ArrayInputs(task, {
        split: Features(rows=part.rows, targets=order[part.targets], classes=part.classes)
        for split in ("train", "val", "test") for part in [inputs.features(split)]
    })  # fmt: skip
    first, second = run(inputs, mode="paper").record, run(turned, mode="paper").record
    assert first.headline.value == second.headline.value and first.details["strength"] == second.details["strength"]


def test_splits_and_labels_that_are_missing_are_named():
    inputs = planted(test=40)
    with pytest.raises(ConfigError, match="train"):
        run(inputs)
    bare = ArrayInputs(a_task(), {"train": inputs.features("test"), "test": Features(rows=np.ones((3, 10), np.float32))})
    with pytest.raises(DataError, match="no labels"):
        run(bare)
    assert PROBE.reason_not(read_task("flickr8k_1000")) == "a retrieval task has no classes"
    assert "train" in PROBE.reason_not(a_task(splits={"test": Split(count=1)})) and PROBE.reason_not(a_task()) is None


@pytest.mark.parametrize(
    "settings", [{"strength": 0.0}, {"held_out": 1.0}, {"tolerance": 0.0}, {"strength": 1.0, "mode": "paper"}]
)
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(ConfigError):
        PROBE.Config(**settings)


def test_the_grid_is_the_papers():
    assert len(GRID) == 97 and GRID[0] == 1e-6 and GRID[-1] == 1e6 and GRID[48] == 1.0
    assert np.diff(np.log10(GRID)) == pytest.approx(1 / 8)


@pytest.mark.parametrize("peak", [0, 1, 5, 37, 48, 90, 96])
def test_the_papers_search_finds_the_only_peak_of_a_curve(peak):
    tried = []

    def score(strength):
        tried.append(strength)
        return -abs(math.log10(strength) - math.log10(GRID[peak]))

    choice = paper_search(score)
    assert choice.strength == GRID[peak] and len(tried) == len(set(tried)) <= 15 and len(choice.curve) == len(tried)
    assert (choice.at_end is not None) == (peak in (0, 96))


def test_equal_scores_go_to_the_strongest_penalty():
    assert whole_grid(lambda strength: 1.0).strength == 1e-6 == paper_search(lambda strength: 1.0).strength
    assert whole_grid(lambda strength: float(strength > 1)).strength == GRID[49]


def test_coops_search_halves_two_decades_eight_times():
    tried = []

    def score(strength):
        tried.append(strength)
        return -abs(math.log10(strength) - 0.3)

    choice = coop_search(score)
    assert abs(math.log10(choice.strength) - 0.3) <= 2 / 2**7 and len(tried) == len(set(tried)) <= 7 + 16
    # Of equal starts the weakest penalty, then always the lower end.
    assert math.log10(coop_search(lambda strength: 0.0).strength) == pytest.approx(5)


def test_shots_are_nested_and_balanced_and_short_classes_give_all():
    labels = np.array([0] * 10 + [1] * 3 + [5] * 20)
    drawn = nested_shots(labels, (1, 2, 4, 16), seed=3)
    assert [np.bincount(labels[rows], minlength=6)[[0, 1, 5]].tolist() for rows in drawn.values()] == [
        [1, 1, 1], [2, 2, 2], [4, 3, 4], [10, 3, 16],
    ]  # fmt: skip
    for small, large in ((1, 2), (2, 4), (4, 16)):
        assert set(drawn[small]) < set(drawn[large])
    assert short_classes(labels, 4) == 1 and short_classes(labels, 16) == 2
    assert not np.array_equal(drawn[4], nested_shots(labels, (1, 2, 4, 16), seed=4)[4])
    with pytest.raises(DataError, match="from 1"):
        nested_shots(labels, (0, 1), seed=0)


def test_what_is_held_out_never_empties_a_class():
    targets = np.array([0] * 10 + [1] * 2 + [2])
    out = held_out(targets, 0.9, seed=0)
    assert np.bincount(targets[out], minlength=3).tolist() == [9, 1, 0]
    with pytest.raises(DataError, match="no class has two samples"):
        held_out(np.arange(4), 0.5, seed=0)


def test_joined_splits_keep_targets_and_shared_groups():
    one = Features(rows=np.ones((2, 3), np.float32), targets=np.array([0, 1]), classes=("a", "b"),
                   groups={"g": np.array(["x", "y"]), "h": np.array([1, 2])})  # fmt: skip
    two = Features(rows=np.zeros((1, 3), np.float32), targets=np.array([1]), classes=("a", "b"), groups={"g": np.array(["z"])})
    both = joined(one, two)
    assert both.targets.tolist() == [0, 1, 1] and both.groups["g"].tolist() == ["x", "y", "z"] and "h" not in both.groups
