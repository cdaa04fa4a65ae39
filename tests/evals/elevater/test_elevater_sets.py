"""The leaderboard's sets against our records of them."""

from __future__ import annotations

import numpy as np
import pytest

from ostension.data.suite import read_suite
from ostension.data.task import read_task
from ostension.errors import ConfigError, DataError
from ostension.evals.elevater.sets import OPTIONAL, detection_set, detection_sets, image_sets, in_order, set_of_task


def test_the_twenty_sets_are_the_suites_tasks_with_their_sizes():
    twenty = {entry.task: entry for entry in image_sets().values() if entry.name != OPTIONAL}
    suite = read_suite("elevater20")
    assert set(twenty) == set(suite.tasks)
    for task in suite.read():
        published = twenty[task.name]
        assert published.classes == task.num_classes
        assert published.multilabel == task.takes_several
        # The one known difference, which the suite's record says: the hub lacks a picture of Caltech101.
        assert task.splits["test"].count - published.test_images == (1 if task.name == "caltech101" else 0)


@pytest.mark.parametrize("entry", image_sets().values(), ids=lambda entry: entry.name)
def test_an_order_holds_every_class_once(entry):
    keys = list(read_task(entry.task).display_names())
    assert sorted(entry.order or keys) == sorted(keys)
    assert set(entry.published_names) <= set(keys)


def test_columns_move_with_their_classes():
    task = read_task("eurosat")
    published = set_of_task(task)
    assert published.name == "eurosat_clip" and published.order
    keys = list(task.display_names())
    moved = in_order(published, task, np.arange(10.0)[None])
    assert [keys[int(place)] for place in moved[0]] == list(published.order)
    assert in_order(set_of_task(read_task("dtd")), read_task("dtd"), np.arange(47.0)[None])[0, 3] == 3
    with pytest.raises(DataError, match="9 columns for 10 classes; expected the 10 of eurosat_clip"):
        in_order(published, task, np.zeros((1, 9)))


def test_a_task_of_no_leaderboard_is_named():
    with pytest.raises(ConfigError, match="stl10"):
        set_of_task(read_task("stl10"))


def test_detection_sets_are_found_whatever_their_separators():
    assert len(detection_sets()) == 35
    assert detection_set("OxfordPets_by-breed") == "OxfordPets_by_breed"
    assert detection_set("no such set") is None
