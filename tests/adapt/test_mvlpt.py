"""Prompts of many tasks: one task is the single-task method, restricted losses see no other names, equal means are equal."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "conformance"))
from adapt_making import Pictures, tiny_clip

from ostension.adapt import mvlpt
from ostension.adapt._examples import Examples, Labelled
from ostension.adapt._fit import Recipe

RECIPE = Recipe(epochs=2, batch_size=4, views=0, warmup_epochs=0, lr=0.02)
FAMILIES = ("text", "visual", "unified")


def a_task(names, seed):
    targets = np.repeat(np.arange(len(names)), 3)
    return Examples(
        class_names=names, train=Labelled(source=Pictures(len(targets), seed), targets=targets, name=f"task-{seed}")
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_one_task_learned_as_many_is_that_task(family):
    model, config = tiny_clip(), mvlpt.Config(family=family, length=2, visual_length=2, recipe=RECIPE)
    task = a_task(("cat", "dog"), 0)
    alone = mvlpt.fit(model, task, config, seed=5)
    joined = mvlpt.learn(model, [task], config, seed=5)
    for name, value in alone.state()[1].items():
        assert torch.equal(value, joined.state_dict()[name])


def test_a_name_that_two_tasks_share_is_one_class():
    names, places = mvlpt.vocabulary([a_task(("cat", "dog"), 0), a_task(("dog", "car"), 1)])
    assert names == ("cat", "dog", "car") and [own.tolist() for own in places] == [[0, 1], [1, 2]]


def test_a_restricted_loss_does_not_see_other_tasks_names():
    model = tiny_clip()
    config = mvlpt.Config(family="text", length=2, restrict=True, recipe=RECIPE)
    first = a_task(("cat", "dog"), 0)
    losses = []
    for other in (("car", "tree"), ("house", "sea", "boat")):
        names, _ = mvlpt.vocabulary([first, a_task(other, 1)])
        addition = mvlpt.MVLPT(model, config, names, seed=1)
        addition.tasks = torch.tensor([[name in first.class_names for name in names], [name in other for name in names]])
        features = first.train.features(model)[0]
        batch = type(
            "Batch", (), {"features": features, "targets": first.train.labels, "domains": torch.zeros(6, dtype=torch.long)}
        )
        losses.append(addition.loss(batch))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)


def test_the_mean_of_equal_prompts_is_the_same_bits():
    state = {"a": torch.randn(3, 4)}
    assert torch.equal(mvlpt.average([state, {"a": state["a"].clone()}])["a"], state["a"])
    other = {"a": state["a"] + 2}
    torch.testing.assert_close(mvlpt.average([state, other])["a"], state["a"] + 1)


def test_a_target_task_begins_where_its_sources_ended(tmp_path):
    model = tiny_clip()
    config = mvlpt.Config(family="text", length=2, recipe=RECIPE)
    sources = [a_task(("cat", "dog"), 0), a_task(("car", "dog"), 1)]
    still = dataclasses.replace(config, recipe=dataclasses.replace(RECIPE, epochs=0))
    learned = mvlpt.learn(model, sources, config, seed=1).state_dict()
    addition = mvlpt.MVLPT(model, still, ("boat", "tree"), seed=0)
    addition.load_state_dict(mvlpt.average([learned]))
    target = a_task(("boat", "tree"), 2)
    predictor = mvlpt.fit(model, target, config, sources=sources, source_seeds=(1,), folder=tmp_path)
    assert predictor.class_names == ("boat", "tree") and not torch.equal(predictor.state()[1]["context"], learned["context"])
    assert torch.equal(addition.context, learned["context"])
