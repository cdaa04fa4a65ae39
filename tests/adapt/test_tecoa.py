"""Adversarial training: the loss is that of attacked pictures, prompts that add nothing are the model, towers are copies."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

sys.path.append(str(Path(__file__).parents[1] / "conformance"))
from adapt_making import examples

from ostension.adapt import tecoa
from ostension.errors import ConfigError
from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.train.attacks import Budget

NAMES = ("Cat", "dog/wolf")


def a_model():
    return CLIP(preset("tiny-vit"), seed=0).eval()


def a_batch(seed=0):
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 0.3
    return SimpleNamespace(images=images, targets=torch.tensor([0, 1, 1, 0]), generator=torch.Generator().manual_seed(5))


def test_without_room_the_loss_is_plain_fine_tuning():
    addition = tecoa.TeCoA(a_model(), tecoa.Config(attack=Budget(epsilon=0.0, steps=0)), NAMES)
    batch = a_batch()
    torch.testing.assert_close(
        addition.loss(batch),
        F.cross_entropy(addition.logits(addition.image(batch.images)), batch.targets),
        rtol=1e-5,
        atol=1e-6,
    )


def test_an_attack_raises_the_loss_and_leaves_no_gradient():
    model = a_model()
    plain = tecoa.TeCoA(model, tecoa.Config(attack=Budget(epsilon=0.0, steps=0)), NAMES)
    addition = tecoa.TeCoA(model, tecoa.Config(attack=Budget(epsilon=8 / 255, step=4 / 255, steps=3)), NAMES)
    assert addition.loss(a_batch()) > plain.loss(a_batch())
    assert all(parameter.grad is None for parameter in (*addition.parameters(), *model.parameters()))


def test_no_frame_and_no_tokens_are_the_frozen_model():
    model = a_model()
    addition = tecoa.TeCoA(model, tecoa.Config(train="prompts", frame_px=0, tokens=0), NAMES)
    images = a_batch().images
    torch.testing.assert_close(addition.image(images), model.encode_image(images, normalize=True))
    framed = tecoa.TeCoA(model, tecoa.Config(train="prompts", frame_px=4, tokens=0), NAMES)
    assert not torch.allclose(framed.image(images), model.encode_image(images, normalize=True), atol=1e-3)
    inside = images.clone()
    inside[:, :, :4] = 0
    assert framed.inner[4:28, 4:28].all() and not framed.inner[:4].any()
    with pytest.raises(ConfigError, match="frame_px"):
        tecoa.TeCoA(model, tecoa.Config(train="prompts", frame_px=16), NAMES)


def test_names_are_lower_case_words():
    model = a_model()
    addition = tecoa.TeCoA(model, tecoa.Config(), NAMES)
    expected = model.classifier(["cat", "dog wolf"], ["This is a photo of a {}"]).weights
    torch.testing.assert_close(addition.hand_written, expected)
    assert addition.class_names == NAMES


def test_the_tower_is_a_copy():
    model = a_model()
    addition = tecoa.TeCoA(model, dataclasses.replace(tecoa.Config()), NAMES)
    with torch.no_grad():
        for parameter in addition.parameters():
            parameter.zero_()
    assert any(parameter.abs().sum() > 0 for parameter in model.visual.parameters())


@pytest.mark.parametrize(("train", "rate"), [("tower", 1e-5), ("prompts", 40.0)])
def test_the_learning_rate_follows_what_is_trained(train, rate):
    rates = []
    recipe = dataclasses.replace(tecoa.Config().recipe, epochs=1)
    config = tecoa.Config(train=train, frame_px=4, tokens=2, recipe=recipe)
    tecoa.fit(a_model(), examples(classes=2, each=1), config, progress=lambda record: rates.append(record["lr"]))
    assert rates == [rate]


def test_running_statistics_of_a_resnet_stay_the_models_own():
    model = CLIP(preset("tiny-resnet"), seed=0).eval()
    config = tecoa.Config(recipe=dataclasses.replace(tecoa.Config().recipe, epochs=1, lr=1e-3))
    predictor = tecoa.fit(model, examples(classes=2, each=2), config)
    buffers = dict(predictor.module.tower.named_buffers())
    assert buffers and all(torch.equal(value, buffers[name]) for name, value in model.visual.named_buffers())
    assert not torch.equal(next(predictor.module.tower.parameters()), next(model.visual.parameters()))
