"""What several tests of commands share."""

from __future__ import annotations

import pytest

import ostension
from ostension.model.clip import CLIP
from ostension.model.presets import preset


@pytest.fixture(scope="module")
def two_models(tmp_path_factory):
    """A folder with the models 0 and 1, of one architecture and other weights."""
    folder = tmp_path_factory.mktemp("models")
    for seed in (0, 1):
        ostension.save(CLIP(preset("tiny-vit"), seed=seed), folder / str(seed))
    return folder
