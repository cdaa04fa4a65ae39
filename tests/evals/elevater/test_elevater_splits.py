"""Shots and held-out images in both modes."""

from __future__ import annotations

import random

import numpy as np
import pytest

from ostension.evals.elevater.splits import draw_shots, hold_out

MODES = ("faithful", "honest")
TARGETS = np.array([0, 0, 1, 0, 2, 1, 0, 2, 0, 1, 2, 1])  # 5, 4 and 3 of a class


@pytest.mark.parametrize("mode", MODES)
def test_shots_are_so_many_of_each_class_and_all_of_a_smaller_one(mode):
    chosen = draw_shots(TARGETS, 3, 4, seed=0, mode=mode)
    assert len(set(chosen)) == len(chosen)
    assert np.bincount(TARGETS[chosen]).tolist() == [4, 4, 3]
    assert draw_shots(TARGETS, 3, 4, seed=0, mode=mode).tolist() == chosen.tolist()
    assert draw_shots(TARGETS, 3, 4, seed=1, mode=mode).tolist() != chosen.tolist()


def test_faithful_shots_are_the_first_of_each_class_in_pythons_shuffle():
    order = list(range(len(TARGETS)))
    random.Random(2).shuffle(order)
    expected = [place for index, place in enumerate(order) if (TARGETS[order[:index]] == TARGETS[place]).sum() < 2]
    assert draw_shots(TARGETS, 3, 2, seed=2, mode="faithful").tolist() == expected


def test_with_several_labels_no_class_is_overfilled_by_half():
    # Everything has label 0; images with label 1 as well are taken until label 0 holds 1.5 times the shots.
    labels = np.array([[1, 1]] * 30)
    labels[:20, 1] = 0
    chosen = draw_shots(labels, 2, 4, seed=0, mode="faithful")
    sums = labels[chosen].sum(axis=0)
    assert sums[1] >= 3 and 4 <= sums[0] <= 7
    alone = draw_shots(np.array([[0, 0], [0, 0], [0, 0], [1, 1]]), 2, 2, seed=0, mode="honest")
    assert 3 in alone and len(alone) <= 3  # at most two images without a label


def test_faithful_holds_out_the_first_fifth_of_each_class():
    train, out = hold_out(TARGETS, seed=5, mode="faithful")
    assert out.tolist() == [0, 2, 4]  # ceil(0.2 * 5, 4, 3) = 1 each
    assert sorted([*train, *out]) == list(range(12))
    assert hold_out(np.array([0, 1, 1]), seed=0, mode="faithful")[0].tolist() == [2]  # class 0 has nothing to train on


def test_honest_holds_out_at_random_and_leaves_each_class_an_image():
    outs = [tuple(hold_out(TARGETS, seed=seed, mode="honest")[1]) for seed in range(20)]
    assert all(sorted(TARGETS[list(out)]) == [0, 1, 2] for out in outs)
    assert len(set(outs)) > 5
    assert 0 in hold_out(np.array([0, 1, 1]), seed=0, mode="honest")[0]


@pytest.mark.parametrize("mode", MODES)
def test_with_several_labels_every_label_is_covered(mode):
    labels = (np.random.default_rng(0).random((60, 6)) < 0.25).astype(np.int64)
    train, out = hold_out(labels, seed=3, mode=mode)
    assert (labels[out].sum(axis=0) >= np.ceil(0.2 * labels.sum(axis=0))).all()
    assert len(out) < 30 and len(train) + len(out) == 60


def test_the_faithful_cover_is_the_toolkits():
    labels = np.array([[1, 0], [1, 1], [0, 1], [0, 1], [1, 0], [0, 0]])
    # Label 0 lacks ceil(0.6) = 1: image 0. Label 1 lacks 1: the first with it, image 1.
    assert hold_out(labels, seed=0, mode="faithful")[1].tolist() == [0, 1]
