"""LP-FT: what its first stage is, what it leaves alone, and where it is plain fine-tuning."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

sys.path.append(str(Path(__file__).parents[1] / "conformance"))
from adapt_making import NAMES, Pictures, examples, tiny_clip

from ostension.adapt import finetune, lp_ft, wise_ft
from ostension.adapt._examples import Labelled
from ostension.errors import ConfigError

MODEL = tiny_clip()
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def still(**changes):
    """The first stage alone."""
    return lp_ft.Config(recipe=dataclasses.replace(lp_ft.Config().recipe, epochs=0, views=0), **changes)


def test_the_first_stage_is_scikit_learns_on_features_standardised_by_one_mean_and_one_spread():
    targets = np.random.default_rng(3).integers(4, size=40)
    train = Labelled(source=Pictures(40, seed=2), targets=targets, name="train")
    data = dataclasses.replace(examples(), train=train)
    found = lp_ft.fit(MODEL, data, still(strength=0.5))
    rows = train.features(MODEL)[0]
    own = (rows.double() - rows.double().mean()) / rows.double().std(correction=0)
    oracle = LogisticRegression(C=0.5, tol=1e-9, max_iter=20_000).fit(own.numpy(), targets)
    np.testing.assert_allclose(found.logits(rows).softmax(-1).numpy(), oracle.predict_proba(own.numpy()), atol=2e-4)


def test_the_strength_is_the_best_by_validation_of_a_hundred():
    found = lp_ft.fit(MODEL, examples(), still())
    curve = dict(map(tuple, found.facts["curve"]))
    assert len(curve) == 100 and min(curve) == pytest.approx(1e-7) and max(curve) == pytest.approx(1e2)
    best = found.facts["strength"]
    assert curve[best] == max(curve.values()) and best == min(one for one, score in curve.items() if score == curve[best])
    with pytest.raises(ConfigError, match="validation pictures"):
        lp_ft.fit(MODEL, dataclasses.replace(examples(), val=None), still())


def test_the_tower_is_the_models_to_the_bit_after_the_first_stage_and_moves_in_the_second():
    first = lp_ft.fit(MODEL, examples(), still(strength=1.0))
    for name, value in MODEL.visual.state_dict().items():
        assert torch.equal(first.module.state_dict()[f"visual.{name}"], value)
    slow, fast = (dataclasses.replace(still().recipe, epochs=2, batch_size=4, lr=lr, select="last") for lr in (1e-12, 1e-2))
    after = lp_ft.fit(MODEL, examples(), lp_ft.Config(strength=1.0, recipe=slow))
    torch.testing.assert_close(after.forward(IMAGES), first.forward(IMAGES), rtol=1e-5, atol=1e-5)
    moved = lp_ft.fit(MODEL, examples(), lp_ft.Config(strength=1.0, recipe=fast))
    assert not torch.allclose(moved.forward(IMAGES), first.forward(IMAGES), atol=1e-2)
    assert not torch.equal(moved.module.state_dict()["visual.conv1.weight"], MODEL.visual.conv1.weight)


def test_with_a_head_of_words_it_is_fine_tuning_to_the_bit():
    recipe = dataclasses.replace(lp_ft.Config().recipe, epochs=2, batch_size=4, lr=1e-2, views=0, select="last")
    ours = lp_ft.fit(MODEL, examples(), lp_ft.Config(head="zero-shot", recipe=recipe), seed=3)
    plain = finetune.fit(MODEL, examples(), finetune.Config(recipe=recipe), seed=3)
    state = plain.module.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in ours.module.state_dict().items())
    with pytest.raises(ConfigError, match="strength"):
        lp_ft.Config(head="zero-shot", strength=1.0)


def test_a_class_without_pictures_is_finite_and_never_given():
    data = examples()
    kept = data.train.targets != 3
    train = Labelled(source=Pictures(int(kept.sum())), targets=data.train.targets[kept], name="train")
    recipe = dataclasses.replace(lp_ft.Config().recipe, epochs=2, batch_size=4, lr=1e-3, views=0)
    found = lp_ft.fit(MODEL, dataclasses.replace(data, train=train), lp_ft.Config(strength=1.0, recipe=recipe))
    logits = found.forward(IMAGES)
    assert logits.isfinite().all() and (logits.argmax(1) != 3).all()


def test_the_second_stage_is_sgd_with_momentum_a_cosine_by_epochs_and_the_best_epoch():
    recipe = lp_ft.Config().recipe
    assert (recipe.optimizer, recipe.momentum, recipe.weight_decay, recipe.select) == ("sgd", 0.9, 0.0, "best")
    assert [recipe.rate(epoch) for epoch in (0, 10)] == pytest.approx([1e-5, 0.5e-5])


def test_wise_ft_interpolates_what_it_has_tuned():
    recipe = dataclasses.replace(lp_ft.Config().recipe, epochs=1, batch_size=4, lr=1e-2, views=0, select="last")
    made = wise_ft.Config(method="lp-ft", settings={"strength": 1.0}, alpha=1.0, recipe=recipe)
    end = lp_ft.fit(MODEL, examples(), lp_ft.Config(strength=1.0, recipe=recipe))
    assert torch.equal(wise_ft.fit(MODEL, examples(), made).forward(IMAGES), end.forward(IMAGES))
    start = wise_ft.fit(MODEL, examples(), dataclasses.replace(made, alpha=0.0))
    zero_shot = MODEL.classifier(NAMES, examples().templates)
    torch.testing.assert_close(start.forward(IMAGES), zero_shot.forward(IMAGES), rtol=1e-5, atol=1e-5)
