"""DPT: without image tokens it is CoOp; class-aware tokens follow the frozen ranking and send nothing down."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

sys.path.append(str(Path(__file__).parents[1] / "conformance"))
from adapt_making import examples, tiny_clip

from ostension.adapt import coop, dpt
from ostension.model.clip import CLIP
from ostension.model.presets import preset

NAMES = ("cat", "dog", "car", "tree")


@pytest.fixture(scope="module")
def model():
    base = preset("tiny-vit")
    text, tokenizer = (dataclasses.replace(part, context_length=48) for part in (base.text, base.tokenizer))
    return CLIP(dataclasses.replace(base, text=text, tokenizer=tokenizer), seed=0).eval()


def a_batch(epoch=0):
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return SimpleNamespace(images=images, targets=torch.tensor([0, 1, 2, 3]), epoch=epoch)


def test_without_image_tokens_it_is_coop(model):
    addition = dpt.DPT(model, dpt.Config(top=0, visual_length=0, length=3), NAMES)
    other = coop.CoOp(model, coop.Config(length=3), NAMES)
    with torch.no_grad():
        other.context.copy_(addition.context)
    images = a_batch().images
    features = model.encode_image(images, normalize=True)
    assert torch.equal(addition.image(images), features)
    torch.testing.assert_close(addition.logits(features), other.logits(features))


def test_the_losses_are_those_of_the_two_phases(model):
    addition = dpt.DPT(model, dpt.Config(length=3, auxiliary=0.0, alone_epochs=1), NAMES)
    batch = a_batch(epoch=1)
    features, rows, scale = addition.image(batch.images), addition.weights(), addition.scale()
    both = F.cross_entropy(scale * features @ rows.T, batch.targets)
    torch.testing.assert_close(addition.loss(batch), both)
    frozen = model.encode_image(batch.images, normalize=True)
    text = F.cross_entropy(scale * frozen @ rows.T, batch.targets)
    image = F.cross_entropy(scale * features @ addition.hand_written.T, batch.targets)
    torch.testing.assert_close(addition.loss(a_batch(epoch=0)), text + image + 0.1 * both)


def test_the_auxiliary_loss_counts_pictures_whose_class_is_among_the_top(model):
    plain = dpt.DPT(model, dpt.Config(length=3, top=1, auxiliary=0.0, alone_epochs=0), NAMES)
    addition = dpt.DPT(model, dpt.Config(length=3, top=1, auxiliary=0.5, alone_epochs=0), NAMES)
    batch = a_batch()
    frozen = model.encode_image(batch.images, normalize=True)
    likeliest = (frozen @ addition.hand_written.T).argmax(1)
    batch.targets = (likeliest + 1) % len(NAMES)
    torch.testing.assert_close(addition.loss(batch), plain.loss(batch))
    batch.targets = likeliest
    assert addition.loss(batch) > plain.loss(batch)


def test_class_aware_tokens_send_no_gradient_to_the_blocks_below(model):
    addition = dpt.DPT(model, dpt.Config(length=3, visual_length=2), NAMES)
    aware = addition.aware[0]
    patches = torch.randn(2, 17, model.config.vision.width, requires_grad=True)
    rows = torch.randn(2, 4, model.config.embed_dim, requires_grad=True)
    tokens, read = aware(rows, patches)
    assert tokens.shape == read.shape == (2, 4, model.config.vision.width)
    (to_rows,) = torch.autograd.grad(tokens.sum() * 2 + (tokens**2).sum(), rows, retain_graph=True)
    assert to_rows.abs().sum() > 0
    assert torch.autograd.grad((tokens**2).sum(), patches, allow_unused=True)[0] is None


def test_new_names_and_use_drop_the_auxiliary_classifier(model):
    addition = dpt.DPT(model, dpt.Config(length=3), NAMES)
    assert any(name.startswith("classifier") for name, _ in addition.named_parameters())
    predictor = addition.predictor()
    assert not any(name.startswith("classifier") for name in predictor.state()[1])
    assert predictor.bind(("boat", "plane")).class_names == ("boat", "plane")


def test_the_text_side_learns_at_a_fifth_of_the_rate():
    recipe = dpt.Config().recipe
    assert recipe.factor("context") == 0.2 and recipe.factor("tokens") == recipe.factor("aware.0.query.weight") == 1.0


def test_class_aware_tokens_are_made_of_rows_as_long_as_the_tower_makes_them(model):
    addition = dpt.DPT(model, dpt.Config(length=3), NAMES)
    images, seen = a_batch().images, []
    addition.aware[0].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    addition.image(images)
    frozen = model.encode_image(images, normalize=True)
    order = (frozen @ addition.hand_written.T).sort(dim=1, descending=True).indices
    assert torch.equal(seen[0], addition.rows()[order])
    torch.testing.assert_close(F.normalize(addition.rows(), dim=-1), addition.weights())
    assert not torch.allclose(addition.rows(), addition.weights())
    assert len(addition.tokens) == model.config.vision.layers - 1


def test_the_rows_are_computed_once_where_nothing_is_learned(model):
    predictor = dpt.DPT(model, dpt.Config(length=3), NAMES).predictor()
    with torch.no_grad():
        assert predictor.module.rows() is predictor.module.rows()


def test_the_hand_written_prompts_are_the_tasks_where_it_has_one():
    data = dataclasses.replace(examples(), templates=("a drawing of a {}.",))
    config = dpt.Config(length=2, recipe=dataclasses.replace(dpt.Config().recipe, epochs=0))
    assert dpt.fit(tiny_clip(), data, config).module.config.template == "a drawing of a {}."
    several = dataclasses.replace(data, templates=("a {}.", "the {}."))
    assert dpt.fit(tiny_clip(), several, config).module.config.template == "a photo of a {}."
