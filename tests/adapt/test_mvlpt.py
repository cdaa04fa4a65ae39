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
from ostension.adapt._joint import average, joined, learn
from ostension.errors import ConfigError

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
    joined = learn(mvlpt.MVLPT, model, [task], config, seed=5)
    for name, value in alone.state()[1].items():
        assert torch.equal(value, joined.state_dict()[name])


def test_a_name_that_two_tasks_share_is_one_class():
    both, members = joined([a_task(("cat", "dog"), 0), a_task(("dog", "car"), 1)])
    assert both.class_names == ("cat", "dog", "car") and members.tolist() == [[True, True, False], [False, True, True]]
    assert both.train.targets.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2] and both.val is None


def test_a_restricted_loss_does_not_see_other_tasks_names():
    model = tiny_clip()
    config = mvlpt.Config(family="text", length=2, restrict=True, recipe=RECIPE)
    first = a_task(("cat", "dog"), 0)
    losses = []
    for other in (("car", "tree"), ("house", "sea", "boat")):
        names = joined([first, a_task(other, 1)])[0].class_names
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
    assert torch.equal(average([state, {"a": state["a"].clone()}])["a"], state["a"])
    other = {"a": state["a"] + 2}
    torch.testing.assert_close(average([state, other])["a"], state["a"] + 1)


def test_a_target_task_begins_where_its_sources_ended(tmp_path):
    model = tiny_clip()
    config = mvlpt.Config(family="text", length=2, recipe=RECIPE, source_seeds=(1,))
    sources = [a_task(("cat", "dog"), 0), a_task(("car", "dog"), 1)]
    still = dataclasses.replace(config, recipe=dataclasses.replace(RECIPE, epochs=0))
    learned = learn(mvlpt.MVLPT, model, sources, config, seed=1).state_dict()
    addition = mvlpt.MVLPT(model, still, ("boat", "tree"), seed=0)
    addition.load_state_dict(average([learned]))
    target = a_task(("boat", "tree"), 2)
    predictor = mvlpt.fit(model, target, config, sources=sources, folder=tmp_path)
    assert predictor.class_names == ("boat", "tree") and not torch.equal(predictor.state()[1]["context"], learned["context"])
    assert torch.equal(addition.context, learned["context"])


def test_joint_learning_is_learning_on_all_with_the_targets_names():
    model = tiny_clip()
    config = mvlpt.Config(family="text", length=2, joint=True, recipe=RECIPE)
    target, other = a_task(("boat", "tree"), 2), a_task(("cat", "dog"), 0)
    predictor = mvlpt.fit(model, target, config, seed=3, sources=[other])
    whole = learn(mvlpt.MVLPT, model, [target, other], config, seed=3)
    assert predictor.class_names == ("boat", "tree") and torch.equal(predictor.module.context, whole.context)
    with pytest.raises(ConfigError, match="one task alone"):
        mvlpt.fit(model, target, config)


def test_the_best_epoch_of_several_tasks_is_judged_by_the_mean_over_tasks_among_their_own_classes():
    first, second = a_task(("cat", "dog"), 0), a_task(("car", "tree", "sea"), 1)
    both, members = joined([first, second])
    addition = mvlpt.MVLPT(tiny_clip(), mvlpt.Config(family="text", length=2), both.class_names)
    addition.tasks = members
    logits = torch.zeros(15, 5)
    logits[:6, 4] = 9.0  # a class of the other task, which does not count
    logits[:6, 0] = logits[6:9, 2] = 1.0
    assert addition.score(logits, both.train) == pytest.approx((1 / 2 + 1 / 3) / 2)
