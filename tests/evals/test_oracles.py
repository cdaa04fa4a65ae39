"""Results beside published values: which are compared, which can fail, how names are read."""

from __future__ import annotations

import dataclasses

import pytest

from ostension.data.task import read_task
from ostension.evals.oracles import check_oracles, known_model
from ostension.evals.records import Metric, Record


def a_record(**changes):
    given = {
        "protocol": "zeroshot", "subject": "-", "config": {"templates": "own", "names": "own"}, "hashes": {},
        "metrics": {"accuracy": Metric(value=0.5570, count=10_000), "top5": Metric(value=0.80, count=10_000)},
        "counts": {"samples": 10_000}, "task": "imagenet_v2", "model": "ViT-B-32-openai", "split": "test",
    }  # fmt: skip
    return Record(**{**given, **changes})


def test_a_result_is_near_or_far_from_what_was_published_for_the_same_weights():
    found = check_oracles(a_record(), read_task("imagenet_v2"))
    by_source = {(one.metric, one.published): one for one in found}
    notebook = by_source["accuracy", 0.5593]
    assert notebook.gate and notebook.near and not notebook.failed
    top5 = by_source["top5", 0.8336]
    assert top5.failed and "FAR" in top5.line and "-3.36 points" in top5.line
    assert not any(one.oracle.weights != "openai" for one in found)


def test_what_was_measured_otherwise_cannot_fail():
    task = read_task("imagenet_v2")
    some = check_oracles(a_record(counts={"samples": 500}), task)
    assert not any(one.failed for one in some) and "500 of 10,000" in some[0].line
    other = check_oracles(a_record(config={"templates": "photo", "names": "own"}), task)
    assert not any(one.failed for one in other) and "templates 'photo'" in other[0].why_not


def test_recalls_have_their_direction_and_their_prefix():
    metrics = {f"{prefix}{way}_r5": Metric(value=0.7, count=5_000)
               for prefix in ("", "prefixed_") for way in ("image_to_text", "text_to_image")}  # fmt: skip
    record = a_record(protocol="retrieval", metrics=metrics, task="coco", counts={"images": 5_000}, model="ViT-L-14-336 openai")
    published = {one.metric: one.published for one in check_oracles(record, read_task("coco"))}
    assert published["image_to_text_r5"] == 0.81 and published["text_to_image_r5"] == 0.616
    assert published["prefixed_image_to_text_r5"] == 0.815 and published["prefixed_text_to_image_r5"] == 0.624


@pytest.mark.parametrize(
    "name, known",
    [
        ("ViT-B-32-openai", ("ViT-B-32", "openai")),
        ("openai/ViT-L/14@336", ("ViT-L-14-336", "openai")),
        ("open_clip ViT-H-14 laion2b_s32b_b79k", ("ViT-H-14", "laion2b")),
        ("ViT-B-32", None),
        ("my model openai", None),
    ],
)
def test_a_models_name_says_preset_and_weights_or_nothing(name, known):
    assert known_model(name) == known


def test_a_model_that_is_not_known_is_compared_with_nothing_unless_it_is_said():
    record = dataclasses.replace(a_record(), model="mine")
    assert check_oracles(record, read_task("imagenet_v2")) == []
    said = check_oracles(record, read_task("imagenet_v2"), preset="ViT-B-32", weights="laion2b")
    assert said[0].published == pytest.approx(0.582)
