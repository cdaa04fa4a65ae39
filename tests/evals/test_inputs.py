"""Inputs from plain arrays: prompt ensembles, refusals, hashes."""

from __future__ import annotations

import numpy as np
import pytest

from ostension.data.task import Task
from ostension.errors import ConfigError, DataError
from ostension.evals.inputs import ArrayInputs
from ostension.evals.protocol import Outcome, load_protocol
from ostension.evals.records import Metric, Record
from ostension.store import Features


def a_task() -> Task:
    return Task(
        title="Two", name="two", version=1, classes={"c": ("cat", "kitten"), "d": ("dog",)}, templates=("a {}.", "the {}."),
        licence="none", citation="ours",
    )  # fmt: skip


def some_features(count: int = 4) -> Features:
    rows = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)
    return Features(rows=rows, targets=np.arange(count) % 2, classes=("c", "d"))


def prompt_rows() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(1)
    prompts = [template.format(name) for name in ("cat", "kitten", "dog") for template in ("a {}.", "the {}.")]
    return {prompt: generator.normal(size=3) * 7 for prompt in prompts}


def test_a_class_is_the_mean_of_unit_rows_of_all_its_prompts():
    rows = prompt_rows()
    inputs = ArrayInputs(a_task(), {"test": some_features()}, prompt_rows=rows)
    of_cats = [rows[prompt] / np.linalg.norm(rows[prompt]) for prompt in ("a cat.", "the cat.", "a kitten.", "the kitten.")]
    mean = np.mean(of_cats, axis=0)
    np.testing.assert_allclose(inputs.classifier()[0], mean / np.linalg.norm(mean), rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(inputs.classifier(templates=["a {}."]), axis=1), 1, rtol=1e-6)


def test_a_prompt_without_a_row_is_named():
    inputs = ArrayInputs(a_task(), {"test": some_features()}, prompt_rows=prompt_rows())
    with pytest.raises(ConfigError, match="a big cat"):
        inputs.classifier(templates=["a big {}"])


def test_rows_of_classes_stand_for_the_tasks_own_prompts_only():
    inputs = ArrayInputs(a_task(), {"test": some_features()}, class_rows=np.eye(2, 3) * 4)
    np.testing.assert_allclose(inputs.classifier(), np.eye(2, 3))
    with pytest.raises(ConfigError, match="none of prompts"):
        inputs.classifier(templates=["a {}."])
    with pytest.raises(DataError, match="one row a class"):
        ArrayInputs(a_task(), {"test": some_features()}, class_rows=np.eye(3))
    with pytest.raises(DataError, match="the class 'd' has no direction"):
        ArrayInputs(a_task(), {"test": some_features()}, class_rows=np.array([[1.0, 0, 0], [0, 0, 0]]))


def test_features_of_other_classes_are_refused():
    rows = some_features()
    swapped = Features(rows=rows.rows, targets=rows.targets, classes=("d", "c"))
    with pytest.raises(DataError, match="in that order"):
        ArrayInputs(a_task(), {"test": swapped})


def test_splits_and_levels_are_those_that_were_given():
    inputs = ArrayInputs(a_task(), {("test", "post"): some_features()})
    assert inputs.has("test") and not inputs.has("train")
    with pytest.raises(ConfigError, match="split"):
        inputs.features("tset")
    with pytest.raises(ConfigError, match="'pre'"):
        inputs.features("test", "pre")


def test_the_same_model_on_another_task_is_there_only_where_its_data_is():
    task = a_task()
    there = ArrayInputs(task, {"test": some_features()})
    assert ArrayInputs(task, {"test": some_features()}, others={task.name: there}).other(task) is there
    assert there.other(task) is None


def test_hashes_follow_rows_and_labels():
    first = ArrayInputs(a_task(), {"test": some_features()}).hashes()
    assert first == ArrayInputs(a_task(), {"test": some_features()}).hashes()
    features = some_features()
    other = Features(rows=features.rows, targets=1 - features.targets, classes=features.classes)
    assert first != ArrayInputs(a_task(), {"test": other}).hashes()


def test_columns_of_samples_have_one_length_and_ids():
    record = Record(protocol="p", subject="s", metrics={"m": Metric(value=1.0, count=1)}, config={}, hashes={}, counts={})
    assert record.headline.value == 1.0
    with pytest.raises(DataError, match="one length"):
        Outcome(record=record, samples={"id": np.array(["a"]), "correct": np.array([True, False])})
    with pytest.raises(DataError, match="'id' among them"):
        Outcome(record=record, samples={"correct": np.array([True, False])})


def test_an_unknown_protocol_is_named():
    with pytest.raises(ConfigError, match="protocol"):
        load_protocol("zeroshoot")
