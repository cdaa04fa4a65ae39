"""Attacks: within their bounds, exact on a linear model, without a trace in the weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ostension.errors import ConfigError
from ostension.train.attacks import Budget, apgd, cross_entropy, dlr, margin, pgd

PIXELS = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([0, 1, 2, 1, 0])


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, 3)).eval()


def linear(classes=2):
    weight = torch.randn(classes, 48, generator=torch.Generator().manual_seed(1))
    return lambda pixels: pixels.flatten(1) @ weight.T, weight


@settings(max_examples=15, deadline=None)
@given(st.floats(0, 0.3), st.integers(0, 4), st.sampled_from(["ce", "margin", "dlr"]), st.sampled_from([pgd, apgd]))
def test_changes_stay_within_epsilon_and_pixels_within_0_and_1(epsilon, steps, loss, attack):
    logits, _ = linear(3)
    budget = Budget(epsilon=epsilon, step=0.1, steps=steps)
    changed = attack(logits, PIXELS, TARGETS, budget, generator=torch.Generator().manual_seed(2), loss=loss)
    assert (changed - PIXELS).abs().max() <= epsilon + 1e-6
    assert changed.min() >= 0 and changed.max() <= 1


@pytest.mark.parametrize("attack", [pgd, apgd])
def test_a_linear_model_of_two_classes_is_attacked_as_well_as_can_be(attack):
    logits, weight = linear()
    targets = TARGETS.clamp(max=1)
    epsilon = 0.05
    away = torch.where(targets[:, None] == 0, weight[1] - weight[0], weight[0] - weight[1]).sign().view_as(PIXELS)
    best = (PIXELS + epsilon * away).clamp(0, 1)
    budget = Budget(epsilon=epsilon, step=0.02, steps=20)
    changed = attack(logits, PIXELS, targets, budget, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(cross_entropy(logits(changed), targets), cross_entropy(logits(best), targets), rtol=1e-4, atol=0)


@pytest.mark.parametrize("attack", [pgd, apgd])
@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_the_loss_rises_and_the_weights_see_nothing(net, attack, loss):
    functions = {"ce": cross_entropy, "margin": margin, "dlr": dlr}
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    targets = net(PIXELS).argmax(1)  # a picture that is misread already may leave the loss of ratios nothing to gain
    changed = attack(net, PIXELS, targets, Budget(epsilon=0.1, step=0.03, steps=10), generator=None, loss=loss)
    before, after = functions[loss](net(PIXELS), targets), functions[loss](net(changed), targets)
    assert (after > before).all() and not changed.requires_grad
    assert all(torch.equal(parameter.grad, torch.ones_like(parameter)) for parameter in net.parameters())


def test_more_room_never_gives_apgd_a_lower_loss(net):
    losses = [
        cross_entropy(net(apgd(net, PIXELS, TARGETS, Budget(epsilon=epsilon, steps=60), generator=None)), TARGETS).mean()
        for epsilon in (0.0, 0.02, 0.05, 0.1)
    ]
    assert losses == sorted(losses)


def test_no_room_or_no_steps_changes_nothing(net):
    assert torch.equal(pgd(net, PIXELS, TARGETS, Budget(epsilon=0.0, steps=3), generator=torch.Generator()), PIXELS)
    assert torch.equal(apgd(net, PIXELS, TARGETS, Budget(steps=0), generator=torch.Generator()), PIXELS)
    with pytest.raises(ConfigError, match="epsilon"):
        Budget(epsilon=2.0)


def test_dlr_does_not_see_the_scale_of_the_logits(net):
    rows = net(PIXELS)
    torch.testing.assert_close(dlr(rows, TARGETS), dlr(7 * rows, TARGETS), rtol=1e-4, atol=1e-5)
    assert ((dlr(rows, TARGETS) > 0) == (rows.argmax(1) != TARGETS)).all()
