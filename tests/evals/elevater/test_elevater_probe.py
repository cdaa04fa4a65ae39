"""Heads and their training: starts, equality of trials side by side and one at a time, trials that overflow."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ostension.data.task import Task
from ostension.errors import ConfigError
from ostension.evals.elevater.heads import Head, HeadConfig, Start, loss_of, start_of
from ostension.evals.elevater.probe import TrainConfig, Trial, train_one, train_probes
from ostension.evals.inputs import ArrayInputs, unit
from ostension.store import Features

TRIALS = [Trial(learning_rate=rate, weight_decay=decay) for rate in (1e-3, 1e-2, 1e-1) for decay in (1e-6, 1e-2, 1.0)]


def some_inputs(*, with_projection: bool = True) -> ArrayInputs:
    generator = np.random.default_rng(0)
    classes = {"a": ("a",), "b": ("b",), "c": ("c",)}
    task = Task(title="Three", name="three", version=1, classes=classes, templates=("{}",), licence="none", citation="")
    before = generator.normal(size=(20, 8)).astype(np.float32)
    matrix, offset = generator.normal(size=(8, 5)).astype(np.float32), generator.normal(size=5).astype(np.float32)
    shared = {"targets": generator.integers(0, 3, 20), "classes": tuple(classes)}
    after = unit(before @ matrix + offset, [""] * 20)
    return ArrayInputs(
        task, {("test", "pre"): Features(rows=before, **shared), ("test", "post"): Features(rows=after, **shared)},
        class_rows=generator.normal(size=(3, 5)), projection=(matrix, offset) if with_projection else None, scale=30.0,
    )  # fmt: skip


def some_rows(several: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(37, 6, generator=generator, dtype=torch.float64) * 3 + 1
    targets = torch.randint(0, 2, (37, 4), generator=generator) if several else torch.randint(0, 4, (37,), generator=generator)
    return rows, targets


def a_start(scale: float = 0.0) -> Start:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    return Start(weight=weight, bias=torch.randn(4, generator=generator, dtype=torch.float64), log_scale=scale)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(
    "head",
    [
        HeadConfig(),
        HeadConfig(normalize=True, train_scale=True),
        HeadConfig(normalize=True, train_scale=True, batch_norm=False),
    ],
    ids=["plain", "unit rows and scale", "no batch norm"],
)
def test_trials_side_by_side_equal_one_at_a_time(head, several):
    rows, targets = some_rows(several)
    train = TrainConfig(epochs=5, batch_size=9)  # 37 = 4 * 9 + 1: the last batch of one is skipped
    together = train_probes(head, a_start(0.7), TRIALS, rows, targets, train)
    assert together.alive == list(range(len(TRIALS)))
    for place, trial in enumerate(TRIALS):
        alone = train_one(head, a_start(0.7), trial, rows, targets, train)
        with torch.no_grad():
            torch.testing.assert_close(together.logits(rows, place), alone(rows), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(together.weight[place], alone.linear.weight.data, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(together.log_scale[place], alone.log_scale.data, rtol=1e-12, atol=0)


def test_a_trial_that_overflows_is_dropped_and_the_others_do_not_notice():
    rows, targets = some_rows()
    bad = Trial(learning_rate=0.1, weight_decay=1e6)
    train = TrainConfig(epochs=40, batch_size=9)
    both = train_probes(HeadConfig(), a_start(), [TRIALS[0], bad, TRIALS[3]], rows, targets, train)
    assert both.alive == [0, 2] and list(both.ended) == [1] and 1 < both.ended[1] < 40
    without = train_probes(HeadConfig(), a_start(), [TRIALS[0], TRIALS[3]], rows, targets, train)
    torch.testing.assert_close(both.weight, without.weight, rtol=1e-12, atol=0)


def test_a_merged_head_starts_as_the_zero_shot_classifier():
    inputs = some_inputs()
    rows = inputs.features("test", "pre").array()
    start = start_of(HeadConfig(init="merged"), 8, inputs.classifier(), inputs, seed=0)
    head = Head(HeadConfig(init="merged", batch_norm=False, scale_init="pretrained"), start).eval()
    matrix, offset = inputs.projection()
    lengths = np.linalg.norm(rows @ matrix + offset, axis=1, keepdims=True)
    with torch.no_grad():
        logits = head(torch.from_numpy(rows)).numpy() / lengths
    zero_shot = inputs.features("test").array() @ inputs.classifier().T
    np.testing.assert_allclose(logits, zero_shot, atol=1e-6)
    np.testing.assert_array_equal(logits.argmax(1), zero_shot.argmax(1))


def test_a_text_head_holds_the_class_texts_and_no_bias():
    inputs = some_inputs()
    start = start_of(HeadConfig(init="text"), 5, inputs.classifier(), inputs, seed=0)
    np.testing.assert_array_equal(start.weight.numpy(), inputs.classifier())
    assert not start.bias.any()


def test_a_random_head_is_torchs_linear_layers_and_depends_on_the_seed():
    inputs = some_inputs()
    one, other, again = (start_of(HeadConfig(init="random"), 400, inputs.classifier(), inputs, seed=seed) for seed in (0, 1, 0))
    assert torch.equal(one.weight, again.weight) and not torch.equal(one.weight, other.weight)
    assert 0.9 / 20 < one.weight.abs().max() <= 1 / 20 and one.weight.shape == (3, 400) and one.bias.abs().max() <= 1 / 20


@pytest.mark.parametrize(
    ("name", "value"),
    [("none", 0.0), ("pretrained", math.log(30)), ("clip", math.log(1 / 0.07)), ("ln_cls", math.log(math.log(3)))],
)
def test_the_scale_starts_as_its_name_says(name, value):
    inputs = some_inputs()
    start = start_of(HeadConfig(scale_init=name), 5, inputs.classifier(), inputs, seed=0)
    assert start.log_scale == pytest.approx(value)


def test_a_merged_head_needs_the_projection():
    inputs = some_inputs(with_projection=False)
    with pytest.raises(ConfigError, match="the projection of arrays is not known"):
        start_of(HeadConfig(init="merged"), 8, inputs.classifier(), inputs, seed=0)


def test_losses_are_cross_entropy_and_its_binary_form():
    logits = torch.tensor([[0.0, math.log(3.0)]])
    assert loss_of(logits, torch.tensor([1])).item() == pytest.approx(math.log(4 / 3))
    assert loss_of(logits, torch.tensor([[0, 1]])).item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)
