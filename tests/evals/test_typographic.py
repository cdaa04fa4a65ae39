"""Typographic attacks, measured: between two classes, among all, deceived, and clean."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ostension.data.task import Split, read_task
from ostension.errors import DataError
from ostension.evals.inputs import ArrayInputs
from ostension.evals.protocol import load_protocol
from ostension.evals.typographic import attack_scores, written_classes
from ostension.store import Features

TARGETS = np.array([0, 0, 1, 2])
WRITTEN = np.array([1, 2, 2, 0])
# Right; deceived; a third class wins but the shown one beats the written; a tie of the two.
LOGITS = np.array([[3.0, 1.0, 2.0], [1.0, 0.0, 2.0], [5.0, 3.0, 1.0], [2.0, 0.0, 2.0]])


def test_the_metrics_by_hand():
    found = attack_scores(LOGITS, TARGETS, WRITTEN)
    assert {name: metric.value for name, metric in found.items()} == {"two_way": 0.5, "accuracy": 0.25, "deceived": 0.5}
    assert found["two_way"].chance == 0.5 and found["accuracy"].chance == pytest.approx(1 / 3)
    assert found["deceived"].direction == "lower"


def test_what_is_written_must_be_another_class():
    keys = ("a", "b", "c")
    assert written_classes(["b", "c", "c", "a"], keys, TARGETS).tolist() == WRITTEN.tolist()
    for texts, words in ((["b", "x", "c", "a"], "'x' on sample 1 is no class"), (["b", "a", "c", "a"], "picture's own class"),
                         (["", "c", "c", "a"], "is no class")):  # fmt: skip
        with pytest.raises(DataError, match=words):
            written_classes(texts, keys, TARGETS)


def inputs(clean: bool) -> ArrayInputs:
    base = read_task("emoji")
    task = dataclasses.replace(
        base, classes={key: (key,) for key in "abc"}, class_set=None, template_set=None, templates=("{}",), written="text",
        splits={"test": Split(count=4), **({"clean": Split(count=2)} if clean else {})}, groups={},
    )  # fmt: skip
    keys = ("a", "b", "c")
    rows = {"test": Features(rows=LOGITS.astype(np.float32), targets=TARGETS, classes=keys, ids=tuple("1234"),
                             groups={"text": np.array(["b", "c", "c", "a"])})}  # fmt: skip
    if clean:
        rows["clean"] = Features(rows=np.eye(3, dtype=np.float32)[:2], targets=np.array([0, 2]), classes=keys, ids=("5", "6"))
    return ArrayInputs(task, rows, class_rows=np.eye(3, dtype=np.float32), scale=1.0)


@pytest.mark.parametrize("clean", [True, False])
def test_the_protocol_measures_attacked_and_clean_pictures(clean):
    protocol = load_protocol("typographic")
    found = protocol.run(inputs(clean), protocol.Config(), seed=0)
    values = {name: metric.value for name, metric in found.record.metrics.items()}
    assert values == {"two_way": 0.5, "accuracy": 0.25, "deceived": 0.5} | ({"clean": 0.5} if clean else {})
    assert found.samples["written"].tolist() == ["b", "c", "c", "a"]
    assert found.samples["correct"].tolist() == [True, False, False, False]


def test_it_says_which_tasks_it_cannot_measure():
    assert "does not say what is written" in load_protocol("typographic").reason_not(read_task("cifar10"))
