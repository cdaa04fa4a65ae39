"""Protocols on cached rows of released CLIP models: floors far below what was found, far above what a mistake leaves."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ostension.evals.inputs import ArrayInputs
from ostension.files import read_json

ROOT = Path(__file__).parents[2]
DATA = os.environ.get("OSTENSION_DATA")
pytestmark = pytest.mark.skipif(DATA is None, reason="OSTENSION_DATA names no folder of data packs")


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import cached_clip_record

    return cached_clip_record


def test_photos_are_tagged_with_the_names_that_their_captions_mention(study):
    found = study.of_photos(Path(DATA))
    tags, things = found["tags"], found["things"]
    assert tags.headline.value > 0.45 and tags.headline.chance < 0.04
    assert tags.details["per_class"]["person"] > 0.9 and tags.details["per_class"]["dog"] > 0.9
    assert things.headline.value > 0.4 and things.metrics["top5"].value > 0.85 and things.headline.chance < 0.02


def test_rows_that_are_moved_by_one_place_tag_nothing(study):
    features, classes, rows = study.photos(Path(DATA))
    task = study.task_of("photos-tags", "-", classes, kind="multilabel", metric="map_11_point")
    prompts = {f"a {name}": row for name, row in zip(classes, np.roll(rows, 1, axis=0), strict=True)}
    assert study.run("zeroshot", ArrayInputs(task, {"test": features}, prompt_rows=prompts)).headline.value < 0.12


def test_pictures_of_shops_find_their_texts_and_texts_their_pictures(study):
    found = study.of_pairs(Path(DATA))
    for name, floor in (("shop_pairs", 0.77), ("myntra_pairs", 0.8)):
        assert min(found[name].metrics[f"{way}_r1"].value for way in ("image_to_text", "text_to_image")) > floor
        assert found[name].metrics["image_to_text_r5"].value > 0.96


def test_the_record_in_the_docs_is_what_comes_out(study):
    kept = read_json(ROOT / "docs" / "records" / "cached-clip.json")["records"]
    for name, record in (study.of_photos(Path(DATA)) | study.of_pairs(Path(DATA))).items():
        for metric, one in record.metrics.items():
            assert one.value == pytest.approx(kept[name]["metrics"][metric]["value"], abs=2e-3), (name, metric)
