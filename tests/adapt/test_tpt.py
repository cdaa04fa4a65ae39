"""Tuning at test time: batched equals the plain loop, order and company of pictures do not matter, views are reproducible."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ostension.adapt import cocoop, coop, maple, tpt
from ostension.adapt._agreement import confident, entropy, plain_tuned
from ostension.adapt._views import Views
from ostension.errors import ConfigError
from ostension.model.clip import CLIP
from ostension.model.presets import preset

NAMES = ("cat", "dog", "red car", "boat", "tree")


@pytest.fixture(scope="module")
def model():
    base = preset("tiny-vit")
    text, tokenizer = (dataclasses.replace(part, context_length=48) for part in (base.text, base.tokenizer))
    return CLIP(dataclasses.replace(base, text=text, tokenizer=tokenizer), seed=2).double().eval()


def some_views(model, pictures=3, views=20):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(pictures, views, model.config.embed_dim, generator=generator, dtype=torch.float64)
    return F.normalize(rows, dim=-1)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_block_of_pictures_is_tuned_as_the_plain_loop_tunes_each(model, steps):
    addition = tpt.TPT(model, tpt.Config(steps=steps, keep=0.3), NAMES).double()
    views = some_views(model)
    together = addition.tuned(views)
    for row, own in zip(together, views, strict=True):
        torch.testing.assert_close(row, plain_tuned(addition, own), rtol=1e-9, atol=1e-12)
    assert torch.equal(addition.tuned(views[[2, 0]]), together[[2, 0]]) or torch.allclose(
        addition.tuned(views[[2, 0]]), together[[2, 0]], rtol=1e-9, atol=1e-12
    )


def test_the_first_step_goes_by_signs(model):
    addition = tpt.TPT(model, tpt.Config(weight_decay=0.0, keep=0.3), NAMES).double()
    moved = addition.tuned(some_views(model)) - addition.context
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 0.005), rtol=1e-3, atol=0)


def test_the_marginal_entropy_of_the_chosen_views_drops(model):
    addition = tpt.TPT(model, tpt.Config(lr=1e-4, keep=0.3), NAMES).double()
    views = some_views(model)
    chosen = confident(views, addition.weights(), addition.scale(), addition.config.keep)
    before = entropy(chosen, addition.weights(), addition.scale())
    after = entropy(chosen, addition.rows_of_views(views), addition.scale())
    assert (after < before).all()


def test_one_view_alone_gives_its_own_entropy(model):
    addition = tpt.TPT(model, tpt.Config(keep=0.01), NAMES).double()
    views = some_views(model, views=4)
    rows = addition.weights()
    chosen = confident(views, rows, addition.scale(), addition.config.keep)
    probabilities = (addition.scale() * chosen[:, 0] @ rows.T).softmax(-1)
    torch.testing.assert_close(entropy(chosen, rows, addition.scale()), -(probabilities * probabilities.log()).sum(-1))
    every = (addition.scale() * views @ rows.T).softmax(-1)
    lowest = -(every * every.log()).sum(-1)
    torch.testing.assert_close(entropy(chosen, rows, addition.scale()), lowest.min(1).values)


def test_the_models_and_the_first_contexts_stay_as_they_are(model):
    addition = tpt.TPT(model, tpt.Config(), NAMES).double()
    before = addition.context.detach().clone()
    predictor = tpt.TPTPredictor(addition)
    predictor.logits_of_views(some_views(model))
    assert torch.equal(addition.context, before) and all(parameter.grad is None for parameter in model.parameters())


def test_embeddings_of_one_view_are_refused_with_steps(model):
    predictor = tpt.TPTPredictor(tpt.TPT(model, tpt.Config(), NAMES).double())
    with pytest.raises(ConfigError, match="several views"):
        predictor.logits(some_views(model)[:, 0])


@pytest.mark.parametrize("mix", ["none", "augmix"])
def test_views_are_a_function_of_seed_and_picture(mix):
    model = CLIP(preset("tiny-vit"), seed=0).eval()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8))
    first, again = (Views(model, 9, mix).pixels(picture) for _ in range(2))
    assert torch.equal(first, again) and first.shape[0] == 9 and first.isfinite().all()
    torch.testing.assert_close(first[0], model.transform(picture))
    assert not torch.equal(first[1:], Views(model, 9, mix, seed=1).pixels(picture)[1:])


@pytest.mark.parametrize("position", ["end", "middle"])
def test_it_may_begin_with_coops_contexts_where_coop_has_them(model, position):
    start = coop.CoOp(model, coop.Config(length=3, position=position), NAMES, seed=4).predictor()
    data = SimpleNamespace(class_names=NAMES)
    still, tuned = (tpt.fit(model, data, tpt.Config(steps=steps), start=start) for steps in (0, 1))
    rows = some_views(model)
    torch.testing.assert_close(still.logits_of_views(rows), start.logits(rows[:, 0]).float(), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(tuned.logits_of_views(rows), still.logits_of_views(rows))


def test_on_cocoop_the_contexts_of_view_0_are_tuned_and_the_net_stays(model, tmp_path):
    start = cocoop.CoCoOp(model, cocoop.Config(), NAMES, seed=4).predictor()
    data, views = SimpleNamespace(class_names=NAMES), some_views(model)
    still = tpt.fit(model, data, tpt.Config(steps=0), start=start)
    torch.testing.assert_close(still.logits_of_views(views), start.logits(views[:, 0]).float(), rtol=1e-5, atol=1e-5)
    predictor = tpt.fit(model, data, tpt.Config(steps=2, keep=0.3), start=start)
    addition = predictor.module.double()
    for row, own in zip(addition.tuned(views), views, strict=True):
        torch.testing.assert_close(row, plain_tuned(addition, own), rtol=1e-9, atol=1e-12)
    other = tpt.TPTPredictor.from_state(*predictor.state(), model)
    torch.testing.assert_close(other.logits_of_views(views), predictor.logits_of_views(views), rtol=1e-5, atol=1e-5)
    assert other.bind(("boat", "car")).logits_of_views(views).shape == (3, 2)


def test_it_cannot_begin_with_a_method_that_has_no_contexts_or_another_image_side(model):
    data = SimpleNamespace(class_names=NAMES)
    for start in (model.classifier(NAMES), maple.MaPLe(model, maple.Config(), NAMES).predictor()):
        with pytest.raises(ConfigError, match="no contexts"):
            tpt.fit(model, data, tpt.Config(), start=start)


def test_what_a_picture_gets_does_not_depend_on_where_it_stands():
    model = CLIP(preset("tiny-vit"), seed=0).eval()
    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(generator.integers(0, 255, (40, 40, 3), dtype=np.uint8)) for _ in range(3)]
    predictor = tpt.TPTPredictor(tpt.TPT(model, tpt.Config(views=8, keep=0.3), ("cat", "dog")))
    torch.testing.assert_close(predictor.predict(pictures[::-1]), predictor.predict(pictures).flip(0))
