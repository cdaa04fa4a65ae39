"""Counterfactuals: they flip with the fewest coordinates, and without them CPL is CoCoOp."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F

from ostension.adapt import cocoop, cpl
from ostension.adapt._counterfactual import flips, partners
from ostension.model.clip import CLIP
from ostension.model.presets import preset

NAMES = ("cat", "dog", "car")


def rows(count, seed, width=12):
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_the_copied_coordinates_flip_the_decision_and_all_but_the_last_do_not():
    own, rival = rows(6, 0), rows(6, 1)
    features = F.normalize(own + 0.3 * rows(6, 2), dim=-1)
    borrowed = F.normalize(rival + 0.3 * rows(6, 3), dim=-1)
    found = flips(features, borrowed, own, rival)
    assert ((found == 0) | (found == 1)).all()
    mixed = torch.where(found.bool(), borrowed, features)
    assert ((mixed * rival).sum(1) > (mixed * own).sum(1)).all()
    for row in range(6):
        path, current = [], features[row].clone()
        while float(current @ rival[row]) <= float(current @ own[row]):  # the plain greedy search
            scores = []
            for place in range(12):
                tried = current.clone()
                tried[place] = borrowed[row, place]
                scores.append(-np.inf if place in path else float(tried @ rival[row] / tried.norm()))
            path.append(int(np.argmax(scores)))
            current[path[-1]] = borrowed[row, path[-1]]
        assert sorted(path) == found[row].nonzero()[:, 0].tolist()


def test_a_picture_that_is_lost_already_borrows_nothing():
    own, rival = rows(2, 0), rows(2, 1)
    assert flips(rival.clone(), rival, own, rival).sum() == 0


def test_partners_are_of_the_rival_class():
    targets = torch.tensor([0, 0, 1, 1, 2])
    rivals = torch.tensor([1, 0, 0])
    found = partners(targets, rivals, 0)
    assert targets[found].tolist() == [1, 1, 0, 0, 0]
    assert torch.equal(found, partners(targets, rivals, 0))
    lonely = partners(torch.tensor([0, 0, 2]), rivals, 0)
    assert lonely.tolist()[:2] == [2, 2]  # the rival has no picture, so any other class stands in


def test_without_weight_it_is_cocoop_and_without_change_the_contrast_is_log_2():
    model = CLIP(preset("tiny-vit"), seed=0).eval()
    one = cpl.CPL(model, cpl.Config(weight=0.0), NAMES, seed=4)
    other = cocoop.CoCoOp(model, cocoop.Config(), NAMES, seed=4)
    features = rows(3, 5, model.config.embed_dim)
    batch = SimpleNamespace(features=features, targets=torch.tensor([0, 1, 2]), indices=np.arange(3))
    assert torch.equal(one.loss(batch), other.loss(batch))
    full = cpl.CPL(model, cpl.Config(), NAMES, seed=4)
    full.reach, full.flips, full.borrowed = torch.zeros(3, features.shape[1]), torch.zeros_like(features), features.flip(0)
    torch.testing.assert_close(full.loss(batch), one.loss(batch) + torch.log(torch.tensor(2.0)), rtol=1e-5, atol=1e-5)
