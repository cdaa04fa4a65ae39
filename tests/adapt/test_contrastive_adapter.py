"""Contrastive adapters: the loss against the published one, who is pulled to whom, balanced epochs, the choice by groups."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

sys.path.append(str(Path(__file__).parents[1] / "conformance"))
from adapt_making import NAMES, examples, tiny_clip

from ostension.adapt import _anchors
from ostension.adapt import contrastive_adapter as method
from ostension.adapt._clusters import as_classes, k_means
from ostension.errors import ConfigError, LimitError

RECIPE = dataclasses.replace(method.Config().recipe, epochs=4, batch_size=4)


def generator_of(seed):
    return torch.Generator().manual_seed(seed)


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=generator_of(seed), dtype=torch.float64), dim=-1)


def a_pool(labels, guessed, seed=0):
    return _anchors.Pool(unit(len(labels), 6, seed=seed), torch.tensor(labels), np.array(guessed))


def published(anchor, positives, negatives, temperature):
    """The submission's loss of one anchor."""
    exp_pos = torch.exp(nn.CosineSimilarity(dim=1)(anchor[None], positives) / temperature)
    exp_neg = torch.exp(nn.CosineSimilarity(dim=1)(anchor[None], negatives) / temperature)
    return -(torch.log(exp_pos) - torch.log(exp_pos + exp_neg.sum(0, keepdim=True))).mean()


def test_the_loss_is_the_published_one_for_every_anchor():
    rows, masks = unit(9, 5), np.random.default_rng(0).random((2, 3, 9)) < 0.4
    masks[:, :, 0], masks[:, :, 1] = [[True] * 3, [False] * 3], [[False] * 3, [True] * 3]
    positive, negative = (torch.from_numpy(mask) for mask in (masks[0] & ~masks[1], masks[1]))
    found = _anchors.contrast(rows[:3] @ rows.T / 0.1, positive, negative)
    for place in range(3):
        one = published(rows[place], rows[positive[place]], rows[negative[place]], 0.1)
        torch.testing.assert_close(found[place], one, rtol=1e-9, atol=1e-9)
    assert (found >= 0).all()


def test_one_positive_and_one_equally_similar_negative_cost_log_two():
    yes, no = torch.tensor([[True, False]]), torch.tensor([[False, True]])
    assert float(_anchors.contrast(torch.tensor([[3.0, 3.0]]), yes, no)) == pytest.approx(math.log(2))


def test_what_is_masked_counts_for_nothing_and_the_order_of_negatives_neither():
    similarities = torch.randn(2, 6, generator=generator_of(1), requires_grad=True)
    positive = torch.tensor([[True, True, False, False, False, False]] * 2)
    negative = torch.tensor([[False, False, True, True, True, False]] * 2)
    plain = _anchors.contrast(similarities, positive, negative)
    more = [torch.cat([part, part[:, 5:].repeat(1, 4)], 1) for part in (similarities, positive, negative)]
    torch.testing.assert_close(_anchors.contrast(*more), plain)
    order = [0, 1, 4, 2, 3, 5]
    torch.testing.assert_close(_anchors.contrast(similarities[:, order], positive, negative), plain)


def test_an_anchor_without_negatives_costs_nothing_and_has_no_gradient():
    similarities = torch.randn(1, 3, requires_grad=True)
    loss = _anchors.contrast(similarities, torch.tensor([[True, True, False]]), torch.zeros(1, 3, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(loss.sum(), similarities)
    assert float(loss.detach()) == 0 and torch.equal(gradient, torch.zeros(1, 3))


def test_anchors_are_what_is_wrong_positives_what_is_right_and_negatives_other_classes_among_the_nearest():
    labels, guessed = [0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0, 1]
    pool = a_pool(labels, guessed)
    assert pool.anchors.tolist() == [2, 5]
    positive, negative = pool.companions(torch.tensor([2, 5]), 2048, 2048, 3, generator_of(0))
    assert positive.nonzero().tolist() == [[0, 0], [0, 1], [1, 3], [1, 4], [1, 6]]
    for row, anchor in enumerate((2, 5)):
        closeness = (pool.rows[anchor] @ pool.rows.T).numpy().copy()
        closeness[anchor] = -np.inf
        near = np.argsort(-closeness)[:3]
        assert set(negative[row].nonzero()[:, 0].tolist()) == {int(n) for n in near if labels[n] != labels[anchor]}


def test_no_more_are_drawn_than_asked_for_and_without_replacement():
    mask = torch.rand(5, 40, generator=generator_of(0)) < 0.5
    found = _anchors.drawn_of(mask, 7, generator_of(1))
    assert (found.sum(1) == 7).all() and not (found & ~mask).any()
    assert torch.equal(_anchors.drawn_of(mask, 40, generator_of(1)), mask)
    uneven = torch.tensor([[True] * 6, [True, True] + [False] * 4])
    assert _anchors.drawn_of(uneven, 3, generator_of(2)).sum(1).tolist() == [3, 2]


def test_a_step_s_loss_is_the_sum_over_its_anchors_of_the_published_one():
    model, data = tiny_clip(), examples(classes=2, each=8)
    addition = method.ContrastiveAdapter(model, method.Config(), NAMES[:2], seed=2)
    addition.prepare(data.train, 0)
    addition.pool = pool = _anchors.Pool(addition.pool.rows, data.train.labels, np.arange(16) % 3 % 2)
    batch = type("Batch", (), {"indices": pool.anchors[:5], "epoch": 0, "generator": generator_of(0)})
    anchors = pool.anchors[:5]
    used = np.unique([*anchors, *np.flatnonzero(pool.right), *range(16)])  # with few pictures all of them are used
    total, outputs = 0.0, addition.train().adapted(pool.rows[used])
    for anchor in anchors:
        alike = pool.targets == pool.targets[anchor]
        right = np.flatnonzero(alike & (pool.guessed == pool.targets))
        total += published(outputs[anchor], outputs[right], outputs[np.flatnonzero(~alike)], 0.1)
    torch.testing.assert_close(addition.loss(batch), total, rtol=1e-4, atol=1e-4)


def test_epochs_of_cross_entropy_have_as_many_of_each_class_and_first_prediction():
    labels, guessed = [0] * 9 + [1] * 5, [0] * 7 + [1] * 2 + [1] * 5
    pool = a_pool(labels, guessed)
    for cell, size in ((None, 7), (4, 4), (20, 20)):
        chosen = pool.balanced(cell, np.random.default_rng(0))
        cells = [(labels[place], guessed[place]) for place in chosen]
        assert {one: cells.count(one) for one in set(cells)} == {(0, 0): size, (0, 1): size, (1, 1): size}
        if size <= 7:
            assert len(set(chosen.tolist())) == min(7, size) + min(2, size) + min(5, size)


def test_epochs_alternate_and_begin_with_the_contrast():
    model, data = tiny_clip(), examples(classes=2, each=8)
    addition = method.ContrastiveAdapter(model, method.Config(recipe=RECIPE), NAMES[:2])
    addition.prepare(data.train, 0)
    addition.pool = _anchors.Pool(addition.pool.rows, data.train.labels, np.arange(16) % 2)
    assert [addition.contrasts(epoch) for epoch in range(4)] == [True, False, True, False]
    anchors = np.concatenate(list(addition.order(data.train, 0, np.random.default_rng(0))))
    assert sorted(anchors) == sorted(addition.pool.anchors)
    assert sorted(np.concatenate(list(addition.order(data.train, 1, np.random.default_rng(0))))) == list(range(16))
    addition.config = dataclasses.replace(addition.config, share=0.5)
    assert sum(map(len, addition.order(data.train, 2, np.random.default_rng(0)))) == 4


def test_perfect_first_predictions_leave_the_cross_entropy_alone_and_that_is_said(caplog):
    model, data = tiny_clip(), examples(classes=2, each=4)
    addition = method.ContrastiveAdapter(model, method.Config(recipe=RECIPE), NAMES[:2])
    pool = addition.pool = _anchors.Pool(data.train.features(model)[0], data.train.labels, data.train.targets)
    assert not any(addition.contrasts(epoch) for epoch in range(4))
    told = pool.told(NAMES[:2])
    assert told["anchors"] == {"cat": 0, "large dog": 0} and told["without_errors"] == ["cat", "large dog"]
    assert "all epochs are of the cross-entropy" in caplog.text


def test_a_class_without_errors_and_one_without_anything_right_are_said_and_give_no_anchors(caplog):
    pool = a_pool([0, 0, 1, 1, 2, 2], [0, 0, 2, 0, 1, 2])
    assert pool.anchors.tolist() == [4]
    told = pool.told(NAMES[:3])
    assert told["without_errors"] == ["cat"] and told["without_anything_right"] == ["large dog"]
    assert told["anchors"] == {"cat": 0, "large dog": 0, "kite (bird of prey)": 1}
    assert told["initial_accuracy"] == 0.5 and "large dog" in caplog.text


def test_no_batch_has_a_single_picture():
    model = tiny_clip()
    for each, size in ((1, 4), (3, 2), (5, 4), (1, 1)):
        data = examples(classes=1, each=each)
        config = method.Config(recipe=dataclasses.replace(RECIPE, batch_size=size))
        addition = method.ContrastiveAdapter(model, config, NAMES[:1])
        addition.prepare(data.train, 0)
        batches = list(addition.order(data.train, 1, np.random.default_rng(0)))
        assert min(map(len, batches)) >= 2 and set(np.concatenate(batches).tolist()) == set(range(each))


def test_the_epoch_is_chosen_by_the_worst_class_and_domain():
    addition = method.ContrastiveAdapter(tiny_clip(), method.Config(), NAMES[:2])
    data = examples(classes=2, each=4).train  # domains 0 1 0 1 in both classes
    logits = F.one_hot(data.labels, 2).float()
    assert addition.score(logits, data) == pytest.approx(1.001)
    logits[1] = logits[1].flip(0)  # one of two in the cell (0, 1)
    assert addition.score(logits, data) == pytest.approx(0.5 + 0.001 * 7 / 8)
    whole = dataclasses.replace(data, domains=None)
    assert addition.score(logits, whole) == pytest.approx(0.75 + 0.001 * 7 / 8)


def test_it_is_a_net_with_batch_normalisation_and_a_picture_is_predicted_alone():
    model, data = tiny_clip(), examples()
    predictor = method.fit(model, data, method.Config(recipe=RECIPE), seed=1)
    module, rows = predictor.module, unit(3, model.config.embed_dim).float()
    hidden = rows @ module.down.T
    hidden = (hidden - module.norm.running_mean) / (module.norm.running_var + 1e-5).sqrt()
    hidden = (hidden * module.norm.weight + module.norm.bias).relu()
    expected = F.normalize(hidden @ module.up.T + module.offset, dim=-1) @ module.rows.T * model.scale()
    torch.testing.assert_close(predictor.logits(rows), expected, rtol=1e-4, atol=1e-4)
    assert module.pool is None and module.down.shape == (128, model.config.embed_dim)
    assert predictor.facts["initial"] == "zero-shot" and predictor.facts["epoch"] in range(-1, 4)


def test_clusters_are_found_and_stand_for_the_classes_that_they_agree_with_most():
    centres = torch.eye(3)
    rows = F.normalize(centres.repeat_interleave(10, 0) + 0.05 * torch.randn(30, 3, generator=generator_of(0)), dim=-1)
    clusters = k_means(rows, 3, generator_of(1))
    assert [len(set(clusters[start : start + 10])) for start in (0, 10, 20)] == [1, 1, 1] and len(set(clusters)) == 3
    targets = np.repeat([2, 0, 1], 10)
    assert np.array_equal(as_classes(clusters, targets, 3), targets)
    # Not every cluster's own majority: 10 + 0 right that way, 9 + 8 the other way.
    clusters, targets = np.repeat([0, 0, 1], [10, 9, 8]), np.repeat([0, 1, 0], [10, 9, 8])
    assert (as_classes(clusters, targets, 2) == targets).sum() == 17
    with pytest.raises(LimitError, match="9 classes are too many for clusters"):
        as_classes(np.arange(9), np.arange(9), 9)
    assert len(k_means(torch.ones(1, 3), 2, generator_of(0))) == 1 == len(set(k_means(torch.ones(4, 3), 2, generator_of(0))))


def test_settings_out_of_range_are_refused():
    for given in ({"width": 0}, {"temperature": 0.0}, {"share": 0.0}, {"cell": 0}):
        with pytest.raises(ConfigError, match=next(iter(given))):
            method.Config(**given)
    with pytest.raises(ConfigError, match=r"recipe\.views"):
        method.Config(recipe=dataclasses.replace(RECIPE, views=2))
