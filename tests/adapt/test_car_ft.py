"""CAR-FT: the divergence against a plain re-implementation, 0 at the first step, no weight is plain fine-tuning to the bit."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

sys.path.append(str(Path(__file__).parents[1] / "conformance"))
from adapt_making import NAMES, examples, tiny_clip

from ostension.adapt import car_ft, finetune
from ostension.errors import ConfigError
from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.text.prompts import fill

CONTEXTS = ("a photo of a {}.", "a drawing of the {}.", "a blurry {}.")
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def a_batch(model, notes=None):
    side = model.config.vision.image_size
    images = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(0))
    return SimpleNamespace(images=images, targets=torch.tensor([0, 1, 3, 1]), features=None, notes={})


def made(**changes):
    return car_ft.Config(contexts=CONTEXTS, **changes)


def moved(model, config):
    """Its tower a little off the model's."""
    addition = car_ft.CarFT(model, config, NAMES)
    moved_off(addition)
    return addition


def moved_off(addition):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in addition.visual.parameters():
            value += 0.1 * torch.randn(value.shape, generator=generator)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_the_loss_is_cross_entropy_and_the_divergence_of_the_contexts(direction):
    model = tiny_clip()
    addition, batch = moved(model, made(weight=0.7, direction=direction)), a_batch(model)
    loss = addition.loss(batch)
    rows = torch.stack([
        F.normalize(torch.stack([model.embed_texts([fill(template, name)])[0] for name in NAMES]).mean(0), dim=0)
        for template in CONTEXTS
    ])  # fmt: skip
    scale = model.scale()
    before = (scale * model.encode_image(batch.images, normalize=True) @ rows.T).softmax(1)
    features = F.normalize(addition.visual(batch.images), dim=-1)
    now = (scale * features @ rows.T).softmax(1)
    first, second = (before, now) if direction == "forward" else (now, before)
    divergence = (first * (first / second).log()).sum(1).mean().detach()
    expected = F.cross_entropy(addition.head(features), batch.targets) + 0.7 * divergence
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    assert batch.notes["divergence"] == pytest.approx(float(divergence), rel=1e-3) and float(divergence) > 1e-3


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-resnet"])
def test_the_divergence_is_zero_at_the_first_step(name):
    model = CLIP(preset(name), seed=0).eval()
    addition, batch = car_ft.CarFT(model, made(), NAMES).train(), a_batch(model)
    addition.loss(batch)
    # Exactly 0 where both passes take the same kernels; without gradients some processors take others.
    assert abs(batch.notes["divergence"]) <= 1e-6


def test_without_weight_it_is_fine_tuning_to_the_bit():
    settings = dataclasses.replace(finetune.Config().recipe, epochs=2, batch_size=6, lr=1e-3)
    one = finetune.fit(tiny_clip(), examples(), finetune.Config(recipe=settings), seed=1)
    other = car_ft.fit(tiny_clip(), examples(), made(weight=0.0, recipe=settings), seed=1)
    for name, value in one.module.state_dict().items():
        assert torch.equal(value, other.module.state_dict()[name])


def test_kept_rows_of_pictures_that_are_not_cropped_give_the_same_first_step(monkeypatch):
    settings = dataclasses.replace(car_ft.Config().recipe, epochs=1, batch_size=12, views=0)
    data, model, seen = examples(), tiny_clip(), []
    loss = car_ft.CarFT.loss

    def twice(self, batch):
        moved_off(self)
        live = dataclasses.replace(batch, features=None, notes={})
        seen.append((float(loss(self, batch).detach()), batch.notes["divergence"]))
        seen.append((float(loss(self, live).detach()), live.notes["divergence"]))
        return loss(self, batch)

    monkeypatch.setattr(car_ft.CarFT, "loss", twice)
    car_ft.fit(model, data, made(recipe=settings))
    kept, live = seen[:2]
    assert kept == pytest.approx(live, rel=1e-4) and kept[1] > 1e-3


def test_it_stays_nearer_to_the_model_than_fine_tuning():
    model, settings = tiny_clip(), dataclasses.replace(finetune.Config().recipe, epochs=10, batch_size=12, lr=1e-3, views=0)
    plain = finetune.fit(model, examples(), finetune.Config(recipe=settings))
    held = car_ft.fit(model, examples(), made(weight=10.0, recipe=settings))
    rows = car_ft.CarFT(model, made(), NAMES).contexts
    wanted = (model.encode_image(IMAGES, normalize=True) @ rows).log_softmax(1).detach()

    def far(found):
        now = (found.features(IMAGES) @ rows).log_softmax(1)
        return float(F.kl_div(now, wanted, log_target=True, reduction="batchmean").detach())

    assert far(held) < 0.7 * far(plain)


def test_one_context_is_refused():
    with pytest.raises(ConfigError, match="contexts"):
        car_ft.Config(contexts=("a {}.",))
