"""The linear probe and the zero-shot prior: the optimum, its limits, what is chosen by what, and rows before the projection."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

sys.path.append(str(Path(__file__).parents[1] / "conformance"))
from adapt_making import NAMES, Pictures, examples, tiny_clip

from ostension.adapt import prior, probe
from ostension.adapt._examples import Examples, Labelled
from ostension.errors import ConfigError
from ostension.model.predictor import Predictor
from ostension.weights.line import head_line, ratio_of_spreads

MODEL = tiny_clip()


class Twice(Pictures):
    """Each picture twice: with two labels no head tells them apart, and every optimum is finite."""

    def __init__(self, count: int, seed: int = 0):
        super().__init__(count // 2, seed)
        self.images = self.images * 2


def torn(count: int = 96, classes: int = 4) -> Examples:
    """Pictures of which some carry two labels, and others to choose by."""
    generator = np.random.default_rng(7)
    first = np.arange(count // 2) % classes
    second = np.where(generator.random(count // 2) < 0.5, first, generator.integers(classes, size=count // 2))
    train = Labelled(source=Twice(count), targets=np.concatenate([first, second]), name="train")
    val = Labelled(source=Pictures(24, seed=0), targets=first[:24], name="val")
    return Examples(class_names=NAMES[:classes], train=train, val=val)


DATA = torn()


def rows_of(data, level="post"):
    return data.features(MODEL, level=level)[0]


def objective(weight, bias, rows, targets, strength):
    logits = rows @ weight.double().T + bias.double()
    return float(
        F.cross_entropy(logits, torch.as_tensor(targets), reduction="sum") + weight.double().square().sum() / 2 / strength
    )


@pytest.mark.parametrize("level", ["pre", "post"])
def test_the_probe_is_scikit_learns(level):
    predictor = probe.fit(MODEL, DATA, probe.Config(level=level, strength=2.0))
    rows = rows_of(DATA.train, level).double().numpy()
    oracle = LogisticRegression(C=2.0, tol=1e-9, max_iter=20_000).fit(rows, DATA.train.targets)
    found = predictor.logits(torch.from_numpy(rows)).softmax(-1).numpy()
    np.testing.assert_allclose(found, oracle.predict_proba(rows), atol=2e-4)
    assert predictor.facts["gradient_norm"] <= 1e-5 and predictor.level == level


def test_rows_before_the_projection_are_the_towers_pooled_features():
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    predictor = probe.fit(MODEL, DATA, probe.Config(strength=1.0))
    pooled = MODEL.image_features(images)["pooled"]
    assert torch.equal(predictor.features(images), pooled) and pooled.shape[1] != MODEL.config.embed_dim
    expected = pooled.double() @ predictor.module.weight.double().T + predictor.module.bias.double()
    assert torch.equal(predictor.forward(images), expected.float())


def test_the_strength_is_the_best_on_validation_pictures_and_refitting_takes_them_in():
    chosen = probe.fit(MODEL, DATA, probe.Config(level="post"))
    curve = dict(map(tuple, chosen.facts["curve"]))
    best = chosen.facts["strength"]
    assert curve[best] == max(curve.values()) == chosen.facts["validation"] and len(curve) <= 15
    assert chosen.module.config.strength == best  # what is saved says it
    again = probe.fit(MODEL, DATA, probe.Config(level="post", strength=best))
    # The objective, not W: with a weak penalty many W come within the tolerance of the optimum.
    rows = rows_of(DATA.train).double()
    both = [objective(found.module.weight, found.module.bias, rows, DATA.train.targets, best) for found in (chosen, again)]
    assert both[0] == pytest.approx(both[1], rel=1e-4)
    refitted = probe.fit(MODEL, DATA, probe.Config(level="post", refit=True))
    rows = torch.cat([rows_of(DATA.train), rows_of(DATA.val)]).double()
    targets = np.concatenate([DATA.train.targets, DATA.val.targets])
    oracle = LogisticRegression(C=best, tol=1e-5, max_iter=20_000).fit(rows.numpy(), targets)
    ours = objective(refitted.module.weight, refitted.module.bias, rows, targets, best)
    theirs = objective(torch.from_numpy(oracle.coef_), torch.from_numpy(oracle.intercept_), rows, targets, best)
    assert ours <= theirs * (1 + 1e-3) and theirs <= ours * 1.02  # the oracle stops earlier where the penalty is weak


def test_a_head_serves_some_of_its_classes_and_no_others():
    predictor = probe.fit(MODEL, DATA, probe.Config(strength=1.0))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    some = predictor.bind((NAMES[2], NAMES[0]))
    assert torch.equal(some.forward(images), predictor.forward(images)[:, [2, 0]])
    with pytest.raises(ConfigError, match="4 classes, and 'boat' is none of them"):
        predictor.bind((NAMES[0], "boat"))
    with pytest.raises(ConfigError, match="constant matrix"):
        predictor.freeze()


def test_a_class_without_pictures_is_never_given_by_a_probe_and_keeps_its_words_beside_a_prior():
    kept = DATA.train.targets != 3
    source = Pictures(int(kept.sum()), seed=5)
    data = dataclasses.replace(DATA, train=Labelled(source=source, targets=DATA.train.targets[kept], name="train"))
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert (probe.fit(MODEL, data, probe.Config(strength=1.0)).forward(images)[:, 3] == -torch.inf).all()
    found = prior.fit(MODEL, data, prior.Config(strength=1.0)).forward(images)
    assert torch.equal(found[:, 3], MODEL.classifier(NAMES, data.templates).forward(images)[:, 3])


def test_what_chooses_asks_for_pictures_to_choose_by():
    data = dataclasses.replace(DATA, val=None)
    for method in (probe, prior):
        with pytest.raises(ConfigError, match="validation pictures, and there are none; give the strength"):
            method.fit(MODEL, data, method.Config())
        assert method.fit(MODEL, data, method.Config(strength=1.0)).facts["strength"] == 1.0
    for settings in ({"strength": 0.0}, {"strength": float("inf")}, {"strength": 1.0, "refit": True}):
        with pytest.raises(ConfigError):
            probe.Config(**settings)


def test_at_strength_nought_the_prior_is_zero_shot_to_the_bit():
    predictor = prior.fit(MODEL, DATA, prior.Config(strength=0.0, templates=("a {}.", "an old {}.")))
    rows = rows_of(DATA.train)
    assert torch.equal(predictor.logits(rows), MODEL.classifier(NAMES, ("a {}.", "an old {}.")).logits(rows))
    assert not predictor.module.weight.any() and predictor.facts["penalty"] is None


@pytest.mark.parametrize("penalty", [1e-4, 1e-1])
def test_the_prior_is_at_the_minimum_of_its_own_objective(penalty):
    """mean CE((s T + D) x + b) + penalty ||D||^2, written down again."""
    rows, targets = rows_of(DATA.train).double(), DATA.train.labels
    strength = 1 / (2 * penalty * len(rows))
    found = prior.fit(MODEL, DATA, prior.Config(strength=strength))
    assert found.facts["penalty"] == pytest.approx(penalty)
    words = MODEL.scale().double() * MODEL.classifier(NAMES, DATA.templates).weights.double()
    moved, bias = (value.double().requires_grad_() for value in found.state()[1].values())

    def objective(moved, bias):
        return F.cross_entropy(rows @ (words + moved).T + bias, targets) + penalty * moved.square().sum()

    gradients = torch.autograd.grad(objective(moved, bias), (moved, bias))
    assert max(float(gradient.norm()) for gradient in gradients) < 2e-5
    torch.testing.assert_close(found.logits(rows), (rows @ (words + moved).T + bias).detach())


def test_a_pull_of_a_million_leaves_nothing_of_the_difference():
    found = prior.fit(MODEL, DATA, prior.Config(strength=1 / (2e6 * len(DATA.train))))
    assert found.facts["penalty"] == pytest.approx(1e6)
    assert float(found.module.weight.abs().max()) < 1e-5


def test_without_a_pull_words_do_not_matter():
    rows = rows_of(DATA.train)
    unpulled = prior.fit(MODEL, DATA, prior.Config(strength=1e6)).logits(rows).softmax(-1)
    plain = probe.fit(MODEL, DATA, probe.Config(level="post", strength=1e6)).logits(rows).softmax(-1)
    torch.testing.assert_close(unpulled, plain, atol=5e-3, rtol=0)


def test_of_equal_ones_zero_shot_is_chosen_and_rivals_stand_beside():
    blind = dataclasses.replace(DATA, val=dataclasses.replace(DATA.val, targets=np.zeros(24, dtype=np.int64)))
    words = MODEL.classifier(NAMES, DATA.templates)
    for data in (DATA, blind):
        found = prior.fit(MODEL, data, prior.Config())
        facts, tried = found.facts, [score for _, score in found.facts["curve"]]
        assert facts["validation"] == max(*tried, facts["validation_zero_shot"])
        assert (facts["strength"] == 0) == (facts["validation_zero_shot"] >= max(tried))
        assert list(found.rivals) == ["zero-shot", "unpulled", "probe", "wise", "mix"]
    rows = rows_of(DATA.val)
    ends = [found.rivals[name].logits(rows).numpy() for name in ("zero-shot", "probe")]
    assert np.array_equal(ends[0], words.logits(rows).numpy())
    for name, factor in (("wise", 1.0), ("mix", facts["spread"])):
        alpha, curve = facts[name], dict(map(tuple, facts[f"{name}_curve"]))
        assert curve[alpha] == max(curve.values()) and alpha == min(at for at, score in curve.items() if score == curve[alpha])
        expected = head_line(ends[0], (factor * ends[1]).astype(np.float32), alpha)
        np.testing.assert_allclose(found.rivals[name].logits(rows).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_a_mixture_hears_a_probe_whose_logits_are_small():
    wide, small = np.array([[1.0, -1.0], [2.0, -2.0]]), np.array([[-0.01, 0.01], [0.02, -0.02]])
    assert ratio_of_spreads(wide, small) == pytest.approx(100.0)
    never = np.column_stack([small, [-np.inf, -np.inf]])
    assert ratio_of_spreads(np.column_stack([wide, [0.0, 0.0]]), never) == pytest.approx(100.0)
    assert ratio_of_spreads(wide, np.zeros((2, 2))) == 1.0


def test_a_saved_head_says_what_was_chosen_and_answers_the_same(tmp_path):
    rows = {level: rows_of(DATA.val, level) for level in ("pre", "post")}
    for method in (probe, prior):
        found = method.fit(MODEL, DATA, method.Config())
        found.save(tmp_path / method.__name__)
        loaded = Predictor.load(tmp_path / method.__name__, MODEL)
        assert loaded.level == found.level and loaded.module.config.strength == found.facts["strength"]
        assert torch.equal(loaded.logits(rows[loaded.level]), found.logits(rows[loaded.level]))


def test_the_same_command_gives_the_same_bits_whatever_the_seed():
    first, second = (prior.fit(MODEL, examples(), prior.Config(), seed=seed) for seed in (1, 2))
    assert all(torch.equal(value, second.state()[1][name]) for name, value in first.state()[1].items())
