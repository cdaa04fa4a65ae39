"""Class maps: subsets and pools of another task's logits, and the partner in distribution."""

from __future__ import annotations

import numpy as np
import pytest

from ostension.data.task import read_task
from ostension.errors import ConfigError, DataError
from ostension.evals.class_maps import ClassMap, class_map, partner, pool

SMALL = ClassMap("animals", ("cat", "lion", "dog", "car"), ("feline", "unicorn", "canine"), ((0, 1), (), (2,)))


def test_a_superclass_has_the_largest_logit_of_its_pool_and_an_unmapped_one_minus_infinity():
    logits = np.array([[-1.0, -2.0, -3.0, 9.0], [-5.0, -1.5, -1.0, 9.0]], dtype=np.float32)
    pooled = pool(logits, SMALL)
    np.testing.assert_array_equal(pooled, np.array([[-1, -np.inf, -3], [-1.5, -np.inf, -1]], dtype=np.float32))
    # A zero for the unmapped class would win both rows; what is predicted is what the best mapped class says.
    assert pooled.argmax(axis=1).tolist() == [0, 2]


def test_a_pool_is_predicted_exactly_where_one_of_its_classes_is_the_largest_mapped_one():
    logits = np.random.default_rng(0).standard_normal((200, 4))
    mapped = np.array([0, 0, 2])[logits[:, :3].argmax(axis=1)]
    np.testing.assert_array_equal(pool(logits, SMALL).argmax(axis=1), mapped)


def test_the_partner_keeps_samples_of_mapped_classes_with_the_classes_of_the_task():
    logits = np.eye(4)[[0, 1, 2, 3, 2]]
    pooled, targets, kept = partner(logits, np.array([1, 0, 2, 3, 0]), SMALL)
    assert kept.tolist() == [True, True, True, False, True] and targets.tolist() == [0, 0, 2, 0]
    # The first two confuse cat and lion, which are one class here: right; the last sees a dog in a cat: wrong.
    assert (pooled.argmax(axis=1) == targets).tolist() == [True, True, True, False]


def test_a_class_in_two_pools_has_no_partner():
    twice = ClassMap("animals", ("cat", "dog"), ("pet", "feline"), ((0, 1), (0,)))
    assert pool(np.array([[1.0, 2.0]]), twice).tolist() == [[2.0, 1.0]]
    with pytest.raises(ConfigError, match="'cat' is in the pools of 'pet' and 'feline'"):
        partner(np.eye(2), np.array([0, 1]), twice)


@pytest.mark.parametrize(
    ("task", "classes", "sources", "empty"),
    [
        # Sources x 50 are the sizes of the published "val-on-..." settings: 6,250, 14,400 and 11,550 pictures.
        ("imagenet_v2", 1000, 1000, 0), ("imagenet_sketch", 1000, 1000, 0), ("imagenet_a", 200, 200, 0),
        ("imagenet_r", 200, 200, 0), ("objectnet", 113, 125, 0), ("imagenet_vid_robust", 30, 288, 0),
        ("ytbb_robust", 24, 231, 5),
    ],
)  # fmt: skip
def test_the_seven_shifts_have_the_published_numbers_of_classes(task, classes, sources, empty):
    found = class_map(task)
    assert found.source == "imagenet" and len(found.source_keys) == 1000 and len(found.keys) == classes
    assert (found.class_of >= 0).sum() == sources
    assert [key for key, columns in zip(found.keys, found.columns, strict=True) if not columns] == list(
        read_task(task).unmapped
    ) and sum(not columns for columns in found.columns) == empty


def test_a_subset_keeps_its_columns_in_order():
    keys = list(read_task("imagenet").display_names())
    logits = np.arange(1000, dtype=np.float32)[None].repeat(2, axis=0)
    wanted = [keys.index(key) for key in read_task("imagenet_a").display_names()]
    assert pool(logits, "imagenet_a")[0].tolist() == wanted and wanted == sorted(wanted)


def test_logits_of_another_class_list_are_refused():
    with pytest.raises(DataError, match="30 columns of logits"):
        pool(np.zeros((2, 30)), "imagenet_vid_robust")
    with pytest.raises(ConfigError, match="made of no other task's classes"):
        class_map("cifar10")
    with pytest.raises(ConfigError, match="of 'imagenet'; expected"):
        class_map("imagenet_a", source="cifar10")
    with pytest.raises(DataError, match="no sample is of a class"):
        partner(np.eye(4)[[3]], np.array([3]), SMALL)
