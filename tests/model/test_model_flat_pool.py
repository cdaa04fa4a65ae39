"""The residual network with a flattened map in place of the attention pool, and the spread of the token embeddings."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import ostension
from ostension.errors import CheckpointError, ConfigError
from ostension.model.clip import CLIP
from ostension.model.config import ResNetConfig
from ostension.model.presets import preset


def flattened(**changes):
    config = preset("tiny-resnet")
    return dataclasses.replace(config, vision=dataclasses.replace(config.vision, pool="flatten", **changes))


def images(side):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side))


def test_the_embedding_is_the_projection_of_the_whole_last_map(tiny):
    model = tiny(flattened())
    found = model.image_features(images(64), taps=("patches", "pooled", "embedding"))
    torch.testing.assert_close(found["pooled"], found["patches"].flatten(1))
    torch.testing.assert_close(found["embedding"], found["patches"].flatten(1) @ model.visual.proj)


@pytest.mark.parametrize(
    ("layers", "stem_pool", "stride"), [((1, 1, 1, 1), True, 32), ((1, 1, 1), False, 8), ((1, 1), True, 8)]
)
def test_stages_and_the_stems_pool_set_the_stride(tiny, layers, stem_pool, stride):
    model = tiny(flattened(layers=layers, stem_pool=stem_pool))
    vision = model.config.vision
    assert (vision.stride, vision.grid) == (stride, 64 // stride)
    patches = model.image_features(images(64), taps=("patches",))["patches"]
    assert patches.shape == (2, vision.grid**2, vision.channels)


def test_a_place_in_the_picture_means_something(tiny):
    model, picture = tiny(flattened()), images(64)
    assert not torch.allclose(model.encode_image(picture), model.encode_image(picture.flip(-1)), atol=1e-3)


def test_it_is_saved_and_loaded_in_our_layout_and_refused_in_open_clips(tiny, tmp_path):
    model = tiny(flattened())
    ostension.save(model, tmp_path / "ours")
    loaded = ostension.load(tmp_path / "ours", dtype="float32", device="cpu")
    torch.testing.assert_close(loaded.encode_image(images(64)), model.encode_image(images(64)))
    with pytest.raises(CheckpointError, match=r"vision\.pool"):
        ostension.save(model, tmp_path / "theirs", layout="open_clip")


def test_an_unknown_pool_is_refused():
    from ostension.config import from_tree

    with pytest.raises(ConfigError, match="pool"):
        from_tree(ResNetConfig, {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "pool": "max"})


def test_token_embeddings_start_with_the_configured_spread():
    config = preset("tiny-vit")
    plain, wide = CLIP(config, seed=0), CLIP(dataclasses.replace(config, init_token_std=0.3), seed=0)
    assert float(plain.text.token_embedding.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
    torch.testing.assert_close(wide.text.token_embedding.weight, plain.text.token_embedding.weight * 15)
    assert torch.equal(wide.visual.conv1.weight, plain.visual.conv1.weight)
