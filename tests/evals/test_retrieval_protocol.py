"""Retrieval on planted pairs: any of five, per caption, the prefix, blocks, refusals."""

from __future__ import annotations

import dataclasses
import tracemalloc

import numpy as np
import pytest

from ostension.data.task import Task, read_task
from ostension.errors import ConfigError, DataError
from ostension.evals import metrics
from ostension.evals.inputs import ArrayInputs
from ostension.evals.protocol import load_protocol
from ostension.evals.retrieval import measure
from ostension.runtime import numpy_generator
from ostension.store import Features

RETRIEVAL = load_protocol("retrieval")


def a_task(**changes):
    given = {
        "title": "pairs",
        "name": "pairs",
        "version": 1,
        "kind": "retrieval",
        "metric": "recall_at_k",
        "templates": ("{}",),
    }
    return Task(**{**given, "captions_per_image": 5, "licence": "-", "citation": "-", **changes})


def planted(n=60, captions=5, e=16, noise=2.5, seed=0, prefix="a photo of"):
    """Pictures, captions around them, and the same captions with a prefix nearer to them."""
    generator = numpy_generator(seed, "pairs")
    images = generator.normal(size=(n, e)).astype(np.float32)
    rows, texts = {}, []
    for image, row in enumerate(images):
        texts.append(tuple(f"caption {k} of {image}" for k in range(captions)))
        for text in texts[-1]:
            away = generator.normal(size=e)
            rows[text], rows[f"{prefix} {text}"] = row + noise * away, row + 0.5 * noise * away
    features = Features(rows=images, texts=tuple(texts), ids=tuple(f"i{k}" for k in range(n)))
    return ArrayInputs(a_task(captions_per_image=captions), {"test": features}, prompt_rows=rows)


def run(inputs, **settings):
    return RETRIEVAL.run(inputs, RETRIEVAL.Config(**settings), seed=0)


def test_an_image_is_found_by_any_caption_and_every_caption_counts_for_itself():
    inputs = planted()
    outcome = run(inputs)
    rows = inputs.texts([text for texts in inputs.features("test").texts for text in texts])
    scores = inputs.features("test").unit() @ rows.T
    owners = np.repeat(np.arange(60), 5)
    found = outcome.record.metrics
    for k in (1, 5, 10):
        top = np.argsort(-scores, axis=1)[:, :k]
        assert found[f"image_to_text_r{k}"].value == pytest.approx((owners[top] == np.arange(60)[:, None]).any(1).mean())
        top = np.argsort(-scores.T, axis=1)[:, :k]
        assert found[f"text_to_image_r{k}"].value == pytest.approx((top == owners[:, None]).any(1).mean())
    assert found["image_to_text_r1"].value > found["text_to_image_r1"].value
    six = [found[f"{way}_r{k}"].value for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
    assert outcome.record.headline.value == pytest.approx(np.mean(six)) and "mean_recall" in found
    assert found["image_to_text_r1"].chance == pytest.approx(5 / 300)
    assert outcome.record.counts == {"images": 60, "texts": 300}


def test_both_with_and_without_the_prefix_are_reported():
    found = run(planted()).record.metrics
    assert found["prefixed_text_to_image_r1"].value > found["text_to_image_r1"].value
    assert not any(name.startswith("prefixed") for name in run(planted(), prefix="").record.metrics)
    with pytest.raises(ConfigError, match="a picture of"):
        run(planted(), prefix="a picture of")


def test_columns_hold_the_rank_of_each_image_and_the_share_of_its_captions_that_find_it():
    outcome = run(planted())
    found = outcome.record.metrics
    assert outcome.samples["correct"].mean() == pytest.approx(found["image_to_text_r1"].value)
    assert np.median(outcome.samples["rank"]) == found["image_to_text_median_rank"].value
    assert outcome.samples["captions_found"].mean() == pytest.approx(found["text_to_image_r1"].value)
    assert outcome.record.details["curves"]["image_to_text"][0] == [1, found["image_to_text_r1"].value]


def test_intervals_of_captions_are_wider_than_if_they_were_independent():
    # All five captions of an image are found, or none: there are 60 facts and not 300.
    images = np.eye(60, dtype=np.float32)
    texts = np.repeat(np.where(np.arange(60)[:, None] % 2, images, np.roll(images, 1, axis=0)), 5, axis=0)
    found = measure(images, texts, np.arange(60), np.repeat(np.arange(60), 5)).metrics["text_to_image_r1"]
    assert found.value == 0.5 and found.interval.method == "bootstrap"
    half = 1.96 * np.sqrt(0.25 / 60)
    assert (found.interval.low, found.interval.high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.02)


def test_an_order_of_images_changes_nothing():
    inputs = planted()
    turned = ArrayInputs(inputs.task, {"test": inputs.features("test").take(np.arange(60)[::-1])}, prompt_rows=inputs._prompts)
    first, second = run(inputs).record.metrics, run(turned).record.metrics
    assert {name: one.value for name, one in first.items()} == pytest.approx({name: one.value for name, one in second.items()})


def test_templates_of_the_task_go_around_captions():
    inputs = planted(prefix="sketch:")
    task = a_task(templates=("sketch: {}",))
    framed = ArrayInputs(task, {"test": inputs.features("test")}, prompt_rows=inputs._prompts)
    assert run(framed, prefix="").record.headline.value > run(inputs, prefix="").record.headline.value


def test_samples_without_captions_and_tasks_with_classes_are_refused():
    inputs = planted()
    features = inputs.features("test")
    none = ArrayInputs(inputs.task, {"test": Features(rows=features.rows)}, prompt_rows=inputs._prompts)
    with pytest.raises(DataError, match="no captions"):
        run(none)
    gap = dataclasses.replace(features, texts=(*features.texts[:7], (), *features.texts[8:]))
    with pytest.raises(DataError, match="i7"):
        run(ArrayInputs(inputs.task, {"test": gap}, prompt_rows=inputs._prompts))
    assert RETRIEVAL.reason_not(read_task("cifar10")) and RETRIEVAL.reason_not(read_task("coco")) is None


def test_the_largest_positive_counts_and_equal_scores_are_ranked_by_index_in_any_blocks():
    generator = numpy_generator(3, "ties")
    queries, gallery = np.round(generator.normal(size=(40, 3))), np.round(generator.normal(size=(70, 3)))
    query_groups, gallery_groups = generator.integers(0, 9, 40), np.arange(70) % 9
    expected = []
    for query, group in zip(queries, query_groups, strict=True):
        order = sorted(range(70), key=lambda g: (-(gallery[g] @ query), g))
        expected.append(min(place for place, g in enumerate(order) if gallery_groups[g] == group))
    for rows in (None, 1, 13):
        found = metrics.retrieval_ranks(queries, gallery, query_groups, gallery_groups, block_rows=rows)
        assert found.tolist() == expected


def test_memory_does_not_grow_with_queries_times_gallery(monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK_SCORES", 2**18)
    generator = numpy_generator(4, "many")
    gallery = generator.normal(size=(20_000, 8)).astype(np.float32)
    tracemalloc.start()
    found = metrics.retrieval_ranks(gallery[:2_000], gallery, np.arange(2_000), np.arange(20_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 2_000 and peak < 12e6  # all scores would be 160 MB
