"""Figures of bias, near misses and audits: what they draw from records, and that a report can hold them."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from ostension.config import from_tree, to_tree
from ostension.data.task import Task
from ostension.evals.figure import FIGURES, SECTIONS
from ostension.evals.inputs import ArrayInputs
from ostension.evals.protocol import load_protocol
from ostension.evals.records import Record
from ostension.store import Features


@pytest.fixture(scope="module")
def records() -> list[Record]:
    """200 pictures near two classes, in two groups; some of group x lean to "thief", and a near miss takes others."""
    generator = np.random.default_rng(0)
    task = Task(title="People", name="people", version=1, classes={"p": ("person",), "o": ("house_pet",)}, templates=("a {}.",),
                groups={"group": ("x", "y")}, licence="none", citation="ours")  # fmt: skip
    targets = np.arange(200) % 2
    group = np.where(np.arange(200) % 4 < 2, "x", "y")
    lean = (group == "x") * generator.uniform(0, 2, 200)
    rows = np.eye(6)[targets] + lean[:, None] * np.eye(6)[2] + 0.2 * generator.normal(size=(200, 6))
    split = Features(rows=rows, targets=targets, classes=("p", "o"), groups={"group": group})
    texts = ["a person.", "a house_pet.", "a photo of a thief.", "a photo of a child.", "almost"]
    prompts = {text: np.eye(6)[place] for place, text in enumerate(texts)}
    inputs = ArrayInputs(task, {"test": split, "train": split}, prompt_rows=prompts, model_name="m")
    return [_record(name, inputs) for name in ("bias-accuracy", "bias-labels", "near-miss", "audit")]


def _record(name: str, inputs: ArrayInputs) -> Record:
    module = load_protocol(name)
    config = module.Config(near={"p": ("almost",)}) if name == "near-miss" else module.Config()
    record = module.run(inputs, config, seed=0).record
    return from_tree(Record, to_tree(record))  # as a report reads it


def figures(name: str, records: list[Record]) -> list:
    module = FIGURES.load(name)
    assert module.SECTION in SECTIONS
    found = module.draw(records)
    assert module.draw([]) == []
    assert len({figure.name for figure in found}) == len(found)
    for figure in found:
        assert figure.says.endswith(".") and (figure.svg or figure.more)
        if figure.svg:
            ElementTree.fromstring(figure.svg)
    return found


def test_accuracy_by_group_has_both_classifiers(records):
    accuracy, labels = figures("bias", records)
    assert [key.name for key in accuracy.keys] == ["zero-shot", "logistic regression"]
    assert ">x<" in accuracy.svg and ">y<" in accuracy.svg and "points between groups" in accuracy.says
    assert "house_pet" not in labels.more and ">p<" in labels.more  # labels are called by their keys


def test_near_misses_are_told_in_points(records):
    (figure,) = figures("near-miss", records)
    fall = 100 * (records[2].metrics["accuracy"].value - records[2].metrics["accuracy_with_near_misses"].value)
    assert f"{fall:.1f} points" in figure.says and "with near misses" in figure.svg


def test_an_audit_is_counted_by_kind(records):
    (figure,) = figures("audit", records)
    assert "How names are written" in figure.more and "underscores" in figure.more


def test_harms_have_a_bar_for_each_category_and_what_a_class_more_changed(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'title = "Mine"\nversion = 1\nsource = "us"\nevidence = "ours"\nneutral = ["adult"]\nadded = ["child"]\n'
        '[categories]\ncrime = ["thief"]\nanimal = ["ape"]\n'
    )
    texts = {f"a photo of a {text}.": np.eye(4)[place] for place, text in enumerate(("adult", "thief", "ape", "child"))}
    task = Task(title="T", name="t", version=1, classes={"a": ("a",), "b": ("b",)}, templates=("{}",), groups={"g": ()},
                licence="none", citation="ours")  # fmt: skip
    rows = np.eye(4)[np.arange(40) % 4]
    split = Features(rows=rows, groups={"g": np.array(["<x>", "y"] * 20)})
    module = load_protocol("bias-harms")
    outcome = module.run(ArrayInputs(task, {"test": split}, prompt_rows=texts), module.Config(label_set=str(path)), seed=0)
    (figure,) = figures("bias", [from_tree(Record, to_tree(outcome.record))])
    assert [key.name for key in figure.keys] == ["crime", "animal", "any harm"]
    assert "&lt;x&gt;" in figure.svg and "<x>" not in figure.more
    assert "With child as one more class" in figure.more and "published" not in figure.more
    published = {"category": "crime", "by": "g", "group": "y", "added": False, "value": 0.165, "measured": 0.25,
                 "evidence": "read"}  # fmt: skip
    record = dataclasses.replace(outcome.record, details={**outcome.record.details, "published": [published]})
    (figure,) = figures("bias", [from_tree(Record, to_tree(record))])
    assert "16.5 %" in figure.more and "What the CLIP paper found" in figure.more
