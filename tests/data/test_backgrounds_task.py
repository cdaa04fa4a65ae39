"""Emoji on backgrounds: in training the background nearly tells the class, elsewhere it says nothing; splits share nothing."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from ostension.data.pairs import image_digest
from ostension.data.sets.backgrounds import EmojiBackgrounds
from ostension.data.task import read_task
from ostension.data.task_data import open_task

STYLES = {"noto", "twemoji", "fluent3d", "openmoji", "openmoji_black"}


@pytest.fixture(scope="module")
def made():
    return EmojiBackgrounds()


def cells(made, split):
    rows = zip(made.splits, made.labels, made.fields["background"], strict=True)
    return Counter(f"{label}/{ground}" for where, (label,), ground in rows if where == split)


def test_training_cells_are_the_weights_of_the_record_and_nearly_tell_the_class(made):
    found = cells(made, "train")
    assert found == read_task("emoji_backgrounds").group_weights
    for label, own in (("animal", "forest"), ("vehicle", "water")):
        whole = sum(count for cell, count in found.items() if cell.startswith(label))
        assert found[f"{label}/{own}"] / whole == pytest.approx(0.95, abs=0.002)


@pytest.mark.parametrize("split", ["val", "test"])
def test_in_validation_and_test_every_drawing_is_on_both_backgrounds(made, split):
    drawings = [sample.pair for sample in made._samples if sample.split == split]
    assert set(Counter(drawings).values()) == {2}
    found = cells(made, split)
    assert found["animal/forest"] == found["animal/water"] and found["vehicle/forest"] == found["vehicle/water"]


def test_no_drawing_is_in_two_splits_and_no_concept_either(made):
    digests, concepts = {}, {}
    for sample in made._samples:
        pair = made._pairs.read(sample.pair)
        digests.setdefault(sample.split, set()).add(image_digest(pair.image))
        concepts.setdefault(sample.split, set()).add(pair.meta["concept"].partition("-")[0])
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not digests[one] & digests[other] and not concepts[one] & concepts[other]


def test_a_picture_is_a_function_of_its_name(made):
    again = EmojiBackgrounds()
    assert made.ids == again.ids and len(set(made.ids)) == len(made) and made.fingerprint() == again.fingerprint()
    assert all(made.image(index) == again.image(index) for index in (0, 1000, 2526))
    assert set(made.fields["style"]) == STYLES


def test_it_needs_no_data_even_where_other_data_is_given(tmp_path):
    for data in (None, tmp_path):
        found = open_task("emoji_backgrounds", data, split="val")
        assert len(found) == 410 and found.notes == () and np.bincount(found.targets).tolist() == [270, 140]
        assert set(found.groups["background"]) == {"forest", "water"}
