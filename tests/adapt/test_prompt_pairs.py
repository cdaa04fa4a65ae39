"""FLYP and LiT: the loss is pre-training's, its floor, each prompt encoded once, locked towers, W of the tuned text tower."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

sys.path.append(str(Path(__file__).parents[1] / "conformance"))
from adapt_making import NAMES, examples, tiny_clip

from ostension.adapt import flyp, lit
from ostension.adapt._prompt_pairs import floor
from ostension.losses import contrastive_loss
from ostension.text.prompts import fill

IMAGES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TEMPLATES = ("a photo of a {}.", "a drawing of the {}.", "{} in the wild.")


def a_batch(targets, images=IMAGES, seed=0):
    targets = torch.tensor(targets)
    return SimpleNamespace(
        images=images[: len(targets)], features=None, targets=targets, domains=None, indices=np.arange(len(targets)), epoch=0,
        generator=torch.Generator().manual_seed(seed), notes={},
    )  # fmt: skip


def in_words(model, targets, drawn):
    return model.tokenizer([fill(TEMPLATES[number], NAMES[target]) for target, number in zip(targets, drawn, strict=True)])


@pytest.mark.parametrize("duplicates", ["separate", "share", "ignore"])
def test_the_loss_and_its_gradients_are_those_of_pre_training_on_the_same_pairs(duplicates):
    model, targets = tiny_clip().double(), [0, 1, 1, 3, 2, 1]
    tuned = flyp.Flyp(model, flyp.Config(templates=TEMPLATES, duplicates=duplicates), NAMES).double()
    loss = tuned.loss(a_batch(targets, IMAGES.double()))
    drawn = torch.randint(3, (6,), generator=torch.Generator().manual_seed(0)).tolist()
    texts = model.encode_text(in_words(model, targets, drawn), normalize=True, plain=True)
    rows = model.encode_image(IMAGES.double(), normalize=True)
    groups = None if duplicates == "separate" else torch.tensor(targets)
    plain = contrastive_loss(rows, texts, model.scale(), groups=groups, duplicates=duplicates).loss
    torch.testing.assert_close(loss, plain, rtol=0, atol=1e-12)
    own, theirs = dict(tuned.named_parameters()), dict(model.named_parameters())
    assert own.keys() == theirs.keys()  # everything is trained, under a model's names
    found = torch.autograd.grad(loss, list(own.values()))
    wanted = torch.autograd.grad(plain, [theirs[name] for name in own])
    for left, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-10)


def test_equal_prompts_are_encoded_once(monkeypatch):
    tuned = flyp.Flyp(tiny_clip(), flyp.Config(templates=TEMPLATES[:1]), NAMES)
    seen = []
    encode = tuned.live.encode_text
    monkeypatch.setattr(tuned.live, "encode_text", lambda tokens, **given: seen.append(len(tokens)) or encode(tokens, **given))
    tuned.loss(a_batch([2, 2, 0, 2, 0, 2]))
    assert seen == [2]


def test_the_floor_is_what_equal_prompts_cost():
    targets = torch.tensor([0, 0, 0, 1, 1, 2])
    expected = (3 * math.log(3) + 2 * math.log(2)) / 6
    assert floor(targets, targets, "separate") == pytest.approx(expected)
    assert floor(torch.arange(6), targets, "separate") == 0.0
    assert floor(torch.arange(6), targets, "share") == pytest.approx(expected)
    assert floor(targets, targets, "ignore") == 0.0


@pytest.mark.slow
def test_overfitting_comes_down_to_the_floor_and_not_below():
    data, seen = examples(each=3), []
    recipe = dataclasses.replace(flyp.Config().recipe, epochs=60, batch_size=12, lr=2e-3, views=0, weight_decay=0.0)
    flyp.fit(tiny_clip(), data, flyp.Config(recipe=recipe), progress=seen.append)
    assert all(epoch["floor"] == pytest.approx(math.log(3)) for epoch in seen)
    assert math.log(3) <= seen[-1]["loss"] < math.log(3) + 0.05 < seen[0]["loss"]


def test_afterwards_w_comes_from_the_tuned_text_tower_for_any_names():
    recipe = dataclasses.replace(flyp.Config().recipe, epochs=2, batch_size=6, lr=1e-3, views=0)
    found = flyp.fit(tiny_clip(), examples(), flyp.Config(templates=TEMPLATES, recipe=recipe))
    live = found.module.tuned_model()
    for names in (NAMES, ("horse", "ship")):
        rows = live.classifier(list(names), TEMPLATES)
        torch.testing.assert_close(found.bind(names).forward(IMAGES), rows.forward(IMAGES), rtol=1e-4, atol=1e-4)


def test_a_locked_tower_stays_and_kept_rows_give_the_live_step():
    model = tiny_clip()
    recipe = dataclasses.replace(lit.Config().recipe, epochs=2, batch_size=6, lr=1e-3, views=0)
    found = lit.fit(model, examples(), lit.Config(templates=TEMPLATES, recipe=recipe), seed=4)
    assert not any(name.startswith("visual.") for name in found.module.state_dict())
    assert torch.equal(found.features(IMAGES), model.encode_image(IMAGES, normalize=True))
    tuned = lit.Lit(model, lit.Config(templates=TEMPLATES), NAMES)
    batch = a_batch([0, 1, 2, 3, 1, 1])
    batch.features = F.normalize(model.visual(IMAGES).detach(), dim=-1)
    live = flyp.Flyp(model, flyp.Config(templates=TEMPLATES), NAMES)
    torch.testing.assert_close(tuned.loss(batch), live.loss(a_batch([0, 1, 2, 3, 1, 1])))
