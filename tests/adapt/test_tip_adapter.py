"""Caches of training pictures against a plain re-implementation; the grid against a double loop; what may choose is asked."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

sys.path.append(str(Path(__file__).parents[1] / "conformance"))
from adapt_making import NAMES, examples, tiny_clip

from ostension.adapt import tip_adapter, tip_adapter_f
from ostension.adapt._cache import Voting, grid_accuracies, keys_of
from ostension.adapt._fit import Recipe
from ostension.errors import ConfigError

PLAIN = {"views": 0, "alpha": 1.5, "beta": 2.5}
STILL = dataclasses.replace(tip_adapter_f.Config().recipe, views=0, epochs=0)


def rows(count=6, seed=0):
    width = tiny_clip().config.embed_dim
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_logits_are_the_published_ones():
    model, data = tiny_clip(), examples()
    predictor = tip_adapter.fit(model, data, tip_adapter.Config(**PLAIN))
    keys = data.train.features(model)[0]  # of one view, the unit rows
    values = F.one_hot(data.train.labels, 4).float()
    zero_shot = model.scale() * rows() @ model.classifier(NAMES, list(data.templates)).weights.T
    affinity = rows() @ keys.T
    expected = zero_shot + ((-1) * (2.5 - 2.5 * affinity)).exp() @ values * 1.5
    torch.testing.assert_close(predictor.logits(rows()), expected, rtol=1e-4, atol=1e-4)


def test_keys_are_unit_rows_of_the_mean_of_embeddings_with_their_lengths():
    long, short = torch.tensor([[10.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    torch.testing.assert_close(keys_of(torch.stack([long, short])), F.normalize(torch.tensor([[10.0, 1.0]]), dim=-1))
    model, data = tiny_clip(), examples()
    config = tip_adapter.Config(views=3, alpha=1.0, beta=1.0)
    found = tip_adapter.fit(model, data, config).module.keys
    from ostension.adapt._cache import CROPS

    pooled = data.train.features(model, 3, crop=CROPS, level="pre")
    with torch.no_grad():
        whole = torch.stack([model.project_image(view) for view in pooled])
    torch.testing.assert_close(found, F.normalize(whole.mean(0), dim=-1), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, F.normalize(F.normalize(whole, dim=-1).mean(0), dim=-1), rtol=1e-4, atol=1e-5)


def test_alpha_is_how_much_the_cache_counts_and_beta_how_fast_a_vote_fades():
    model, data = tiny_clip(), examples()
    zero_shot = model.classifier(NAMES, list(data.templates)).logits(rows())
    for beta in (0.1, 7.0):
        off = tip_adapter.fit(model, data, tip_adapter.Config(views=0, alpha=0.0, beta=beta))
        torch.testing.assert_close(off.logits(rows()), zero_shot, rtol=1e-5, atol=1e-5)
    flat = tip_adapter.fit(model, data, tip_adapter.Config(views=0, alpha=1.0, beta=0.0)).logits(rows()) - zero_shot
    torch.testing.assert_close(flat, torch.full_like(flat, 3.0), rtol=1e-4, atol=1e-4)  # every picture has a whole vote


@pytest.mark.parametrize("method", [tip_adapter, tip_adapter_f])
def test_large_alpha_and_beta_give_every_training_picture_its_own_class(method):
    model, data = tiny_clip(), examples(each=5)
    config = method.Config(alpha=1e6, beta=1e6, **({"views": 0} if method is tip_adapter else {"recipe": STILL}))
    logits = method.fit(model, data, config).logits(data.train.features(model)[0])
    assert logits.argmax(1).tolist() == data.train.targets.tolist()


@pytest.mark.parametrize("classes", [4, 9])
def test_the_grid_equals_a_plain_double_loop(classes):
    generator = np.random.default_rng(classes)
    labels = generator.integers(0, 4, size=30)  # of nine classes, five have no picture
    targets = generator.integers(0, classes, size=23)
    zero_shot, affinities = generator.normal(size=(23, classes)), generator.uniform(-0.2, 1.0, size=(23, 30))
    config = Voting(alpha_steps=5, beta_steps=40)
    alphas, betas = config.grid("alpha"), config.grid("beta")
    expected = np.empty((40, 5))
    for first, beta in enumerate(betas):
        for second, alpha in enumerate(alphas):
            votes = np.exp(-(beta - beta * affinities)) @ np.eye(classes)[labels]
            expected[first, second] = ((zero_shot + alpha * votes).argmax(1) == targets).mean()
    assert np.array_equal(grid_accuracies(zero_shot, affinities, labels, targets, alphas, betas), expected)
    assert len({*expected.ravel().tolist()}) > 3


def test_blocks_of_the_grid_change_nothing(monkeypatch):
    generator = np.random.default_rng(0)
    labels, targets = np.arange(12) % 3, generator.integers(0, 3, size=17)
    given = generator.normal(size=(17, 3)), generator.uniform(size=(17, 12)), labels, targets, np.arange(3.0), np.arange(4.0)
    whole = grid_accuracies(*given)
    monkeypatch.setattr("ostension.adapt._cache.VOTES", 30)
    assert np.array_equal(grid_accuracies(*given), whole)


def test_the_grids_are_the_published_ones():
    betas = [i * (7 - 0.1) / 200 + 0.1 for i in range(200)]
    alphas = [i * (3 - 0.1) / 20 + 0.1 for i in range(20)]
    np.testing.assert_allclose(Voting().grid("beta"), betas, rtol=1e-12)
    np.testing.assert_allclose(Voting().grid("alpha"), alphas, rtol=1e-12)
    assert Voting(alpha=2.0).grid("alpha").tolist() == [2.0]


def test_the_best_pair_on_validation_pictures_is_taken_and_said():
    model, data = tiny_clip(), examples()
    predictor = tip_adapter.fit(model, data, tip_adapter.Config(views=0, alpha_steps=4, beta_steps=6))
    config, val = predictor.module.config, data.val
    best = 0.0
    for beta in Voting(beta_steps=6).grid("beta"):
        for alpha in Voting(alpha_steps=4).grid("alpha"):
            one = tip_adapter.fit(model, data, tip_adapter.Config(views=0, alpha=alpha, beta=beta))
            right = one.logits(val.features(model)[0]).argmax(1) == val.labels
            best = max(best, float(right.float().mean()))
    chosen = (predictor.logits(val.features(model)[0]).argmax(1) == val.labels).float().mean()
    assert float(chosen) == best == predictor.facts["accuracy"]
    assert (predictor.facts["alpha"], predictor.facts["beta"]) == (config.alpha, config.beta)
    assert predictor.facts["selection"] == "val" and predictor.facts["pictures"] == 4


def test_without_an_epoch_the_trained_cache_is_the_plain_one():
    model, data = tiny_clip(), examples()
    grid = {"alpha_steps": 4, "beta_steps": 6}
    plain = tip_adapter.fit(model, data, tip_adapter.Config(views=0, **grid))
    trained = tip_adapter_f.fit(model, data, tip_adapter_f.Config(recipe=STILL, **grid))
    assert torch.equal(trained.logits(rows()), plain.logits(rows()))
    assert trained.facts["alpha"] == plain.facts["alpha"] and trained.facts["beta"] == plain.facts["beta"]


def test_the_first_step_of_training_keys_is_adamw_with_the_published_epsilon():
    model, data = tiny_clip(), examples()
    recipe = dataclasses.replace(STILL, epochs=1, batch_size=64, select="last")
    trained = tip_adapter_f.fit(model, data, tip_adapter_f.Config(alpha=1.5, beta=2.5, recipe=recipe)).module.keys
    keys = data.train.features(model)[0].clone().requires_grad_()
    features, rows_of_text = data.train.features(model)[0], model.classifier(NAMES, list(data.templates)).weights
    votes = (-2.5 * (1 - features @ keys.T)).exp() @ F.one_hot(data.train.labels, 4).float()
    loss = F.cross_entropy(model.scale() * features @ rows_of_text.T + 1.5 * votes, data.train.labels)
    (gradient,) = torch.autograd.grad(loss, keys)
    expected = keys * (1 - 1e-3 * 0.01) - 1e-3 * gradient / (gradient.abs() + 1e-4)
    torch.testing.assert_close(trained, expected.detach(), rtol=0, atol=2e-6)


def test_training_is_never_worse_on_validation_pictures_than_the_plain_cache():
    model, data = tiny_clip(), examples()
    recipe = dataclasses.replace(STILL, epochs=3, lr=0.1)
    facts = tip_adapter_f.fit(model, data, tip_adapter_f.Config(recipe=recipe, alpha_steps=4, beta_steps=6)).facts
    assert facts["accuracy"] >= facts["untrained"]["accuracy"]


@pytest.mark.parametrize("method", [tip_adapter, tip_adapter_f])
def test_the_test_split_is_looked_at_only_if_settings_and_examples_both_say_so(method):
    model, data = tiny_clip(), examples()
    still = {"recipe": STILL} if method is tip_adapter_f else {"views": 0}
    with pytest.raises(ConfigError, match="to choose by 'test', and the pictures to choose by are of 'val'"):
        method.fit(model, data, method.Config(selection="test", **still))
    of_test = dataclasses.replace(data, facts={"selection": "test"})
    with pytest.raises(ConfigError, match="to choose by 'val', and the pictures to choose by are of 'test'"):
        method.fit(model, of_test, method.Config(**still))
    assert method.fit(model, of_test, method.Config(selection="test", **still)).facts["selection"] == "test"
    with pytest.raises(ConfigError, match="no pictures to choose by"):
        method.fit(model, dataclasses.replace(data, val=None), method.Config(**still))


def test_what_a_cache_knows_belongs_to_its_classes():
    predictor = tip_adapter.fit(tiny_clip(), examples(), tip_adapter.Config(**PLAIN))
    with pytest.raises(ConfigError, match="belongs to its 4 classes"):
        predictor.bind(("boat",))


def test_settings_out_of_range_are_refused():
    for given, what in (({"alpha": -1.0}, "alpha"), ({"beta_steps": 0}, "beta_steps"), ({"alpha_most": 0.1}, "alpha_most")):
        with pytest.raises(ConfigError, match=what):
            tip_adapter.Config(**given)
    with pytest.raises(ConfigError, match="views"):
        tip_adapter.Config(views=-1)
    assert Recipe().eps == 1e-8
