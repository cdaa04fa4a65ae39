"""Scores of tasks by their own metrics, against scikit-learn and small cases by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from ostension.data.task import Task, read_task
from ostension.errors import ConfigError, DataError
from ostension.evals import scores
from ostension.evals.metrics import wilson_interval
from ostension.runtime import numpy_generator


def task(classes=6, **changes):
    named = {f"k{index}": (f"thing {index}",) for index in range(classes)}
    given = {"title": "things", "version": 1, "classes": named, "templates": ("a {}.",), "licence": "-", "citation": "-"}
    return Task(**{**given, **changes})


def sample(n=400, c=6, seed=0, strength=1.0):
    """Logits that prefer the target, with some classes rarer than others."""
    generator = numpy_generator(seed, "logits")
    targets = generator.choice(c, size=n, p=np.arange(1, c + 1) / (c * (c + 1) / 2))
    return (generator.normal(size=(n, c)) + strength * np.eye(c)[targets]).astype(np.float32), targets


GROUPS = {"kind": "group", "metric": "worst_group", "groups": {"place": ("0", "1")}, "group_by": "class-and-groups"}


def test_accuracy_is_the_share_of_right_answers_with_wilsons_interval():
    logits, targets = sample()
    found = scores.score(task(), logits, targets)
    right = int((logits.argmax(1) == targets).sum())
    assert (found.value, found.count, found.chance) == (right / 400, 400, pytest.approx(1 / 6))
    assert found.interval == wilson_interval(right, 400)


def test_mean_per_class_is_balanced_accuracy_and_its_interval_holds_it():
    logits, targets = sample()
    found = scores.score(task(metric="mean_per_class"), logits, targets)
    assert found.value == pytest.approx(balanced_accuracy_score(targets, logits.argmax(1)), abs=1e-12)
    shares = [(logits.argmax(1) == targets)[targets == c] for c in range(6)]
    error = np.sqrt(sum(s.mean() * (1 - s.mean()) / len(s) for s in shares)) / 6
    half = 1.96 * error
    assert (found.interval.low, found.interval.high) == pytest.approx((found.value - half, found.value + half), abs=0.01)


def test_single_samples_of_classes_do_not_make_a_mean_over_classes_certain():
    generator = numpy_generator(0, "single")
    right = generator.random(60) < 0.4
    logits = np.eye(60)[np.where(right, np.arange(60), (np.arange(60) + 1) % 60)]
    found = scores.score(task(60, metric="mean_per_class"), logits, np.arange(60))
    assert found.value == pytest.approx(right.mean())
    plain = wilson_interval(int(right.sum()), 60)
    assert (found.interval.low, found.interval.high) == pytest.approx((plain.low, plain.high))
    other = np.roll(logits, 1, axis=1)
    changes = right * 1.0 - (other.argmax(1) == np.arange(60))
    gained = scores.gain(task(60, metric="mean_per_class"), logits, other, np.arange(60))
    half = 1.96 * changes.std() / np.sqrt(60)
    assert (gained.interval.low, gained.interval.high) == pytest.approx((gained.value - half, gained.value + half), abs=5e-3)


@pytest.mark.parametrize("sizes, shares", [((200, 40, 10), (0.9, 0.5, 0.7)), ((30,) * 40, (0.2, 0.6, 0.95, 0.7) * 10)])
def test_the_interval_of_a_mean_over_classes_covers_the_truth(sizes, shares):
    targets, truth = np.repeat(np.arange(len(sizes)), sizes), np.mean(shares)
    generator = numpy_generator(0, "coverage")
    covered = []
    for _ in range(300):
        right = generator.random(len(targets)) < np.array(shares)[targets]
        found = scores.mean_per_class(np.where(right, targets, targets + 1), targets, chance=None).interval
        covered.append(found.low <= truth <= found.high)
    assert 0.92 < np.mean(covered) <= 0.995


def test_mean_of_top1_and_top5_by_hand():
    logits = np.eye(10, dtype=np.float32)[:3] * 5 + np.linspace(1, 0, 10, dtype=np.float32)
    found = scores.score(task(10, metric="mean_top1_top5"), logits, np.array([0, 3, 9]))
    assert found.value == pytest.approx((1 / 3 + 2 / 3) / 2)  # first right, second among five, third not
    assert found.chance == pytest.approx((0.1 + 0.5) / 2)


def test_macro_f1_over_present_classes_equals_scikit_learns():
    logits, targets = sample()
    targets = np.where(targets == 2, 3, targets)
    found = scores.score(task(metric="macro_f1_present"), logits, targets)
    expected = f1_score(targets, logits.argmax(1), average="macro", labels=np.unique(targets))
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.interval.low < found.value < found.interval.high
    draws = []
    generator = numpy_generator(0, "draws")
    for _ in range(300):
        rows = generator.integers(0, 400, 400)
        draws.append(f1_score(targets[rows], logits[rows].argmax(1), average="macro", labels=np.unique(targets[rows])))
    assert (found.interval.low, found.interval.high) == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.015)


def test_auc_of_two_classes_is_that_of_the_second_ones_probability():
    logits, targets = sample(c=2)
    found = scores.score(task(2, metric="roc_auc"), logits, targets)
    assert found.value == pytest.approx(roc_auc_score(targets, scores.softmax(logits)[:, 1]), abs=1e-12)
    assert found.chance == 0.5 and found.interval.low < found.value < found.interval.high


def test_auc_of_more_classes_is_the_mean_of_one_against_the_rest():
    logits, targets = sample()
    expected = roc_auc_score(targets, scores.softmax(logits), multi_class="ovr")
    assert scores.score_value(task(metric="roc_auc"), logits, targets) == pytest.approx(expected, abs=1e-12)


def test_multi_label_map_ranks_the_softmax_unless_the_classifiers_are_independent():
    several = task(2, kind="multilabel", metric="map_11_point")
    # Raw similarities of the second picture are all higher; the softmax takes that out.
    logits, labels = np.array([[2.0, 0.0], [3.0, 5.0]]), np.array([[1, 0], [0, 1]])
    found = scores.score(several, logits, labels)
    assert (found.value, found.chance) == (1.0, 0.5)
    # As they are, the first label's only positive comes second: its precision is 1/2 at every step of recall.
    assert scores.score(several, logits, labels, independent=True).value == pytest.approx((1 / 2 + 1) / 2)


def test_frames_are_right_if_the_prediction_is_in_their_set():
    frames = task(3, kind="video", metric="pm_k")
    logits = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    found = scores.scores(frames, logits, np.array([[1, 1, 0], [1, 1, 0]]))
    assert list(found) == ["pm_0"] and found["pm_0"].value == 0.5


def test_the_worst_group_is_a_cell_of_class_and_attribute_and_the_average_is_weighted():
    grouped = task(2, **GROUPS, group_weights={"k0/0": 3.0, "k0/1": 1.0, "k1/0": 0.0, "k1/1": 4.0})
    targets, place = np.array([0, 0, 0, 0, 1, 1]), np.array(["0", "0", "1", "1", "1", "1"])
    right = np.array([1, 1, 1, 0, 0, 0])
    logits = np.eye(2)[np.where(right == 1, targets, 1 - targets)]
    found = scores.scores(grouped, logits, targets, {"place": place})
    assert list(found) == ["worst_group", "average"]
    assert (found["worst_group"].value, found["worst_group"].count) == (0.0, 2)
    assert found["average"].value == pytest.approx((3 * 1.0 + 1 * 0.5 + 4 * 0.0) / 8)  # k1/0 is empty
    plain = dataclasses.replace(grouped, group_weights={})
    assert scores.scores(plain, logits, targets, {"place": place})["average"].value == 0.5
    assert set(scores.per_sample(grouped, logits, targets, {"place": place})["group"]) == {"k0/0", "k0/1", "k1/1"}


def test_a_group_that_the_record_does_not_list_counts_in_the_average_only():
    grouped = task(2, **{**GROUPS, "group_by": "groups"})
    logits, targets = np.eye(2)[[0, 0, 1]], np.array([0, 0, 0])
    found = scores.scores(grouped, logits, targets, {"place": np.array(["0", "1", "Other"])})
    assert found["worst_group"].value == 1.0 and found["average"].value == pytest.approx(2 / 3)


def test_groups_that_are_missing_are_named():
    with pytest.raises(DataError, match="place"):
        scores.score(task(2, **GROUPS), np.eye(2), np.array([0, 1]))


@pytest.mark.parametrize("metric", ["accuracy", "mean_per_class", "mean_top1_top5", "macro_f1_present", "roc_auc"])
def test_the_value_alone_is_the_score_and_a_permutation_of_the_classes_changes_nothing(metric):
    logits, targets = sample()
    one = task(metric=metric)
    found = scores.score(one, logits, targets)
    order = np.array([3, 0, 5, 1, 4, 2])
    moved = logits[:, order], np.argsort(order)[targets]
    assert scores.score_value(one, logits, targets) == found.value == pytest.approx(scores.score_value(one, *moved), abs=1e-12)
    assert found == scores.score(one, logits, targets)


def test_each_shipped_task_with_classes_is_scored_and_retrieval_is_not():
    assert scores.score_name(read_task("hateful_memes")) == "roc_auc"
    assert scores.score_name(read_task("ytbb_robust")) == "pm_0"
    with pytest.raises(ConfigError, match="retrieval"):
        scores.score_name(read_task("coco"))


@pytest.mark.parametrize("metric", ["accuracy", "mean_per_class", "mean_top1_top5", "roc_auc"])
def test_a_gain_is_the_difference_of_scores_with_a_narrower_interval_than_unpaired_ones_give(metric):
    one, (logits, targets) = task(metric=metric), sample(strength=2.0)
    other = logits + 0.3 * numpy_generator(7, "noise").normal(size=logits.shape).astype(np.float32)
    found = scores.gain(one, logits, other, targets)
    ours, theirs = scores.score(one, logits, targets), scores.score(one, other, targets)
    assert found.value == pytest.approx(ours.value - theirs.value) and found.chance == 0
    assert found.interval.low <= found.value <= found.interval.high
    assert found.interval.high - found.interval.low < ours.interval.high - ours.interval.low
    same = scores.gain(one, logits, logits, targets).interval
    assert (same.low, same.high) == (0.0, 0.0)
    almost = scores.gain(one, logits, logits * np.float32(1.001), targets)  # no answer differs
    assert almost.value == pytest.approx(0, abs=1e-3) and almost.interval.low <= 0 <= almost.interval.high


def test_columns_say_keys_and_whether_the_prediction_is_right():
    logits, targets = sample(n=50)
    columns = scores.per_sample(task(), logits, targets)
    assert columns["target"][:2].tolist() == [f"k{c}" for c in targets[:2]]
    assert columns["correct"].mean() == scores.score(task(), logits, targets).value
    assert columns["probability"] == pytest.approx(scores.softmax(logits).max(1))


def test_classes_at_minus_infinity_are_never_given():
    logits, targets = sample()
    logits[:, 4] = -np.inf
    assert "k4" not in scores.per_sample(task(), logits, targets)["predicted"]
    assert np.isfinite(scores.score(task(metric="roc_auc"), logits, targets).value)


def test_targets_and_logits_that_cannot_be_scored_are_refused():
    logits, targets = sample()
    with pytest.raises(DataError, match="0 to 5"):
        scores.score(task(), logits, targets + 1)
    with pytest.raises(DataError, match="shape"):
        scores.score(task(), logits, targets[:-1])
    logits[4] = np.nan
    with pytest.raises(DataError, match="row 4"):
        scores.score(task(), logits, targets)
