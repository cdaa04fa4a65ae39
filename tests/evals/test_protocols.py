"""Zero-shot, retrieval, linear probe and pixel baseline on cases that can be checked by hand or planted."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ostension.errors import ConfigError, DataError
from ostension.evals.linear_probe import choose_strength, draw_shots, few_shot, shots_to_match
from ostension.evals.metrics import Interval
from ostension.evals.pixels import nearest_pixel_scores
from ostension.evals.records import Metric, Record, load_records, save_records
from ostension.evals.retrieval import group_sizes, retrieval
from ostension.evals.scores import accuracy
from ostension.evals.zero_shot import difference, zero_shot
from ostension.runtime import numpy_generator

ABOUT = {"subject": "a test", "config": {"templates": ["{}"]}, "hashes": {"model": "0" * 64}}


def planted(n=240, d=16, c=6, noise=0.4, seed=0):
    """Unit features around planted class centres."""
    generator = numpy_generator(seed, "planted")
    centres = generator.normal(size=(c, d))
    labels = np.arange(n) % c
    features = centres[labels] + noise * generator.normal(size=(n, d)) * np.sqrt(d) / 2
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32), labels


def test_zero_shot_record_of_a_perfect_and_of_a_wrong_classifier():
    targets = np.arange(12) % 4
    right = zero_shot(20 * np.eye(4, dtype=np.float32)[targets], targets, **ABOUT)
    assert right.metrics["top1"].value == right.metrics["mean_per_class"].value == 1.0
    assert right.metrics["ece"].value < 1e-6
    assert right.counts == {"samples": 12, "classes": 4} and right.metrics["top1"].chance == 0.25
    wrong = zero_shot(-20 * np.eye(4, dtype=np.float32)[targets], targets, **ABOUT)
    assert wrong.metrics["top1"].value == 0.0 and wrong.metrics["top1"].interval.low == 0.0
    assert wrong.metrics["top5"].value == wrong.metrics["top5"].chance == 1.0


def test_accuracy_and_paired_difference_agree_on_the_estimate():
    ours, theirs = np.array([True, True, True, False]), np.array([True, False, False, False])
    gap = difference(ours, theirs, seed=0)
    assert gap.value == accuracy(ours, chance=None).value - accuracy(theirs, chance=None).value == 0.5
    assert gap.interval.low <= 0.5 <= gap.interval.high and gap.interval.method == "bootstrap"


def test_retrieval_counts_an_image_as_found_by_any_of_its_texts():
    images = np.eye(3, dtype=np.float32)
    texts = np.array([[1, 0, 0], [0, 0, 0.9], [0, 1, 0], [0, 0, 1]], dtype=np.float32)
    record = retrieval(images, texts, np.array([0, 1, 2]), np.array([0, 0, 1, 2]), **ABOUT)
    assert record.metrics["image_to_text_r1"].value == pytest.approx(1.0)
    # The second text of image 0 describes image 2.
    assert record.metrics["text_to_image_r1"].value == pytest.approx(3 / 4)
    assert record.metrics["text_to_image_r1"].chance == pytest.approx(1 / 3)
    assert record.metrics["image_to_text_r1"].chance == pytest.approx((2 / 4 + 1 / 4 + 1 / 4) / 3)


def test_group_sizes_count_the_positives_of_each_query():
    assert group_sizes(np.array([7, 3, 7]), np.array([3, 7, 7, 9])).tolist() == [2, 1, 2]


def test_shots_are_drawn_per_class_by_seed_and_without_replacement():
    labels = np.repeat(np.arange(5), 8)
    chosen = draw_shots(labels, 3, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [3] * 5 and len(set(chosen.tolist())) == 15
    assert draw_shots(labels, 3, seed=0).tolist() == chosen.tolist() != draw_shots(labels, 3, seed=1).tolist()
    with pytest.raises(DataError, match="class 0 has 8 samples; expected at least 9"):
        draw_shots(labels, 9, seed=0)


def test_more_shots_make_a_better_probe_and_the_record_carries_its_certificate():
    features, labels = planted()
    strength, scores = choose_strength(features[:120], labels[:120], np.arange(120) % 4, (1.0, 100.0))
    assert scores[f"{strength:g}"] == max(scores.values())
    record = few_shot(
        *(features[:120], labels[:120], features[120:], labels[120:]),
        shots=(1, 4, 16),
        strength=strength,
        seeds=(0, 1, 2),
        **ABOUT,
    )
    values = [record.metrics[f"{k}_shot"].value for k in (1, 4, 16)]
    assert 1 / 6 < values[0] < values[1] < values[2]
    assert record.seeds == (0, 1, 2) and record.config["largest_gradient_norm"] <= 1e-5
    assert set(record.config["spread"]) == {"1_shot", "4_shot", "16_shot"}


@pytest.mark.parametrize(
    ("accuracy", "expected"),
    [(0.2, 1.0), (0.4, 2.0), (0.5, 2 * math.sqrt(2)), (0.6, 4.0), (0.0, 0.5), (0.7, None)],
)
def test_shots_to_match_is_piecewise_linear_in_the_logarithm(accuracy, expected):
    found = shots_to_match({1: 0.2, 2: 0.4, 4: 0.6}, accuracy)
    assert found == (None if expected is None else pytest.approx(expected))


def test_pixel_scores_are_the_nearest_neighbours_and_minus_infinity_without_references():
    generator = numpy_generator(0, "pixels")
    references = generator.integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    queries = generator.integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    classes = np.array([0, 0, 1, 1, 3, 3])
    scores = nearest_pixel_scores(queries, references, classes, 4)
    distances = ((queries[:, None].astype(float) - references[None]) ** 2).sum((2, 3, 4)) / 255**2 / 48
    for c in (0, 1, 3):
        np.testing.assert_allclose(scores[:, c], -distances[:, classes == c].min(1), rtol=1e-4, atol=1e-5)
    assert np.isneginf(scores[:, 2]).all()
    assert (scores.argmax(1) == classes[distances.argmin(1)]).all()


def test_a_picture_is_its_own_nearest_neighbour():
    images = numpy_generator(1, "pixels").integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
    assert nearest_pixel_scores(images, images, np.arange(9), 9).argmax(1).tolist() == list(range(9))


def test_records_survive_a_round_trip_through_json(tmp_path):
    metric = Metric(value=0.5, count=10, chance=0.1, interval=Interval(0.2, 0.8, 0.95, "wilson"))
    record = Record(
        protocol="zero-shot", subject="x", metrics={"top1": metric}, config={"k": [1]}, hashes={}, counts={"n": 10}, seeds=(3,)
    )
    save_records(tmp_path / "records.json", {"one": record})
    assert load_records(tmp_path / "records.json") == {"one": record}


def test_a_file_that_holds_no_records_is_refused_by_name(tmp_path):
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(DataError, match=r"other\.json: not a file of records"):
        load_records(tmp_path / "other.json")
    (tmp_path / "wrong.json").write_text('{"format": 1, "records": {"one": {"protocol": "x"}}}')
    with pytest.raises(ConfigError, match=r"wrong\.json: one: the setting 'subject' is missing"):
        load_records(tmp_path / "wrong.json")
