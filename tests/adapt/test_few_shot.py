"""The k-shot draw against a re-statement of the published one, base and new halves, the harmonic mean."""

from __future__ import annotations

import random

import numpy as np
import pytest

from ostension.data.few_shot import base_and_new, draw_few_shot, harmonic_mean, hold_out
from ostension.errors import ConfigError, DataError


def as_published(labels, shots):
    """Dassl's loop: a dictionary of items by label, in the order of first appearance, then random.sample."""
    tracker = {}
    for place, label in enumerate(labels):
        tracker.setdefault(label, []).append(place)
    return [place for items in tracker.values() for place in (random.sample(items, shots) if len(items) >= shots else items)]


def test_the_samples_are_the_published_ones():
    labels = np.random.default_rng(0).integers(0, 7, 300)
    labels[:3] = [5, 2, 6]  # the order of first appearance is not that of the numbers
    held = np.random.default_rng(1).integers(0, 7, 60)
    for seed in (1, 2, 3):
        state = random.getstate()
        random.seed(seed)
        expected = as_published(labels.tolist(), 16), as_published(held.tolist(), 4)
        random.setstate(state)
        train, val = draw_few_shot(labels, held, 16, seed)
        assert train.tolist() == expected[0] and val is not None and val.tolist() == expected[1]
        assert random.getstate() == state


def test_a_class_with_fewer_samples_gives_all():
    train, val = draw_few_shot(np.array([0, 0, 1, 0]), None, 2, 1)
    assert val is None and len(train) == 3 and 2 in train.tolist()
    with pytest.raises(ConfigError, match="shots"):
        draw_few_shot(np.array([0]), None, 0, 1)


def test_base_classes_are_the_first_half_rounded_up():
    base, new = base_and_new(101)
    assert (len(base), len(new)) == (51, 50) and new[0] == 51


def test_the_harmonic_mean_is_the_published_one():
    assert harmonic_mean(82.69, 63.22) == pytest.approx(71.66, abs=0.01)
    assert harmonic_mean(0.0, 0.0) == 0.0


def test_samples_to_choose_by_are_held_out_of_the_rest_of_the_shots_or_of_everything():
    labels = np.repeat([0, 1, 2], [30, 40, 2])
    chosen, _ = draw_few_shot(labels, None, 2, 1)
    train, val = hold_out(labels, chosen, 2, 1)
    assert train.tolist() == chosen.tolist() and not set(val) & set(train)
    assert np.bincount(labels[val]).tolist() == [2, 2]  # the third class has given all
    train, val = hold_out(labels, np.arange(len(labels)), 0, 1)
    assert sorted([*train, *val]) == list(range(len(labels)))
    assert np.bincount(labels[val]).tolist() == [3, 4, 1]
    with pytest.raises(DataError, match="left to choose by"):
        hold_out(labels[:2], np.arange(2), 2, 1)
