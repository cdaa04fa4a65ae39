"""Named intermediates of the towers."""

from __future__ import annotations

import pytest
import torch

from ostension.errors import ConfigError


def test_the_taps_of_a_vision_transformer_fit_together(tiny):
    model, images = tiny("tiny-vit").double(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    found = model.image_features(images, ("blocks.2", "patches", "pooled", "embedding", "embedded"))
    assert list(found) == ["blocks.2", "patches", "pooled", "embedding", "embedded"]
    assert found["embedded"].shape == (2, 17, 48) and found["patches"].shape == (2, 16, 48)
    normed = model.visual.ln_post(found["blocks.2"])
    assert torch.equal(normed[:, 1:], found["patches"]) and torch.equal(normed[:, 0], found["pooled"])
    assert torch.equal(found["pooled"] @ model.visual.proj, found["embedding"])
    assert (found["embedding"] - model.encode_image(images)).abs().max() < 1e-12


def test_the_pooled_feature_does_not_need_every_token(tiny):
    model, images = tiny("tiny-vit").double(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    alone = model.image_features(images)["pooled"]
    assert (alone - model.image_features(images, ("pooled", "patches"))["pooled"]).abs().max() < 1e-12


def test_the_taps_of_a_resnet_are_its_stages(tiny):
    model, images = tiny("tiny-resnet"), torch.randn(2, 3, 64, 64)
    found = model.image_features(images, ("blocks.0", "blocks.3", "patches", "pooled", "embedding"))
    assert found["blocks.0"].shape == (2, 32, 16, 16) and found["blocks.3"].shape == (2, 256, 2, 2)
    assert torch.equal(found["patches"], found["blocks.3"].flatten(2).transpose(1, 2))
    assert found["pooled"].shape == (2, 256)
    assert torch.allclose(found["embedding"], model.encode_image(images))


def test_the_taps_of_the_text_tower_fit_together(tiny, tokens):
    model = tiny("tiny-vit").double()
    found = model.text_features(tokens, ("blocks.2", "tokens", "pooled", "embedding"))
    assert torch.equal(model.text.ln_final(found["blocks.2"]), found["tokens"])
    ends = tokens.argmax(dim=1)
    assert (found["tokens"][torch.arange(len(tokens)), ends] - found["pooled"]).abs().max() < 1e-12
    assert (found["pooled"] @ model.text.text_projection - found["embedding"]).abs().max() < 1e-12
    assert (model.text_features(tokens)["pooled"] - found["pooled"]).abs().max() < 1e-12


def test_an_unknown_tap_lists_the_nearest(tiny):
    with pytest.raises(ConfigError, match=r"unknown tap 'block\.1'.*'blocks\.1'"):
        tiny("tiny-vit").image_features(torch.zeros(1, 3, 32, 32), ("block.1",))
