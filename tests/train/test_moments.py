"""Adam's moments in half precision: the scheme, the bytes, what happens to numbers that float16 cannot hold."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ostension.errors import ConfigError
from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.runtime import torch_generator
from ostension.train.memory import LiveBytes
from ostension.train.moments import LARGEST, LEAST_SCALE, SMALLEST
from ostension.train.optim import MasterAdamW, OptimConfig
from ostension.train.precision import Masters


class Flat(nn.Module):
    """One weight of any shape."""

    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))


def optimizer_of(model, moments, dtype=torch.float32, **settings):
    settings = {"lr": 1e-3, "weight_decay": 0.0, "clip_norm": None, **settings}
    return MasterAdamW(Masters(model, dtype), OptimConfig(moments=moments, **settings))


def step(optimizer, gradient):
    weight = optimizer.masters.weights["weight"]
    weight.grad = gradient.to(weight.dtype).clone()
    optimizer.step(1.0, float(optimizer.gradient_norm()))


def numbers(*shape, spread=1.0):
    generator = torch_generator("moments", *shape)
    return torch.randn(shape, generator=generator) * torch.exp(spread * torch.randn(shape, generator=generator))


def test_the_largest_number_takes_the_largest_of_float16_and_the_rest_is_to_scale():
    optimizer = optimizer_of(Flat(300, 7), "fp16")
    gradient = numbers(300, 7, spread=2.0)
    step(optimizer, gradient)
    state = optimizer.state()
    first, second = 0.1 * gradient, 0.02 * gradient**2
    expected = torch.stack([first.abs().max(), second.max()]) / 65504 + 1e-8
    torch.testing.assert_close(state["scales.weight"], expected)
    assert float(state["first.weight"].abs().max()) == LARGEST
    assert float(state["second.weight"].max()) == LARGEST
    for part, exact, scale in zip(("first", "second"), (first, second), state["scales.weight"], strict=True):
        error = (state[f"{part}.weight"].float() * scale - exact).abs()
        assert torch.all(error <= exact.abs() * 2**-11 + SMALLEST * scale * 1.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_follow_those_of_float32(dtype):
    exact, halved = Flat(64, 33), Flat(64, 33)
    optimizers = [optimizer_of(exact, "fp32", dtype), optimizer_of(halved, "fp16", dtype)]
    for number in range(20):
        gradient = numbers(64, 33) + number
        for optimizer in optimizers:
            step(optimizer, gradient)
    one, other = (optimizer.masters.masters["weight"].detach() for optimizer in optimizers)
    assert float((one - other).abs().max()) < 3e-3 * float(one.abs().max())


def test_the_state_is_half_as_large():
    sizes = {}
    for moments in ("fp32", "fp16"):
        optimizer = optimizer_of(CLIP(preset("tiny-vit"), seed=0), moments)
        sizes[moments] = sum(value.nbytes for value in optimizer.state().values())
    assert sizes["fp16"] < 0.51 * sizes["fp32"]


@pytest.mark.parametrize(("moments", "rounded"), [("fp32", False), ("fp16", False), ("fp16", True)])
def test_no_tensor_is_ever_widened_whole(moments, rounded):
    model = Flat(8192, 512)  # 16 MB in float32
    masters = Masters(model, torch.bfloat16, [model] if rounded else [])
    optimizer = MasterAdamW(masters, OptimConfig(moments=moments))
    model.weight.grad = torch.ones_like(model.weight)
    known = [model.weight, model.weight.grad, *masters.masters.values(), *optimizer.state().values()]
    with LiveBytes(known) as counter:
        optimizer.step(1.0, float(optimizer.gradient_norm()), 3)
    assert counter.peak < 8e6  # a few blocks of 1 MB


def test_a_second_moment_too_small_for_float16_gives_no_larger_step_than_float32():
    """Beside a gradient of 1, the square of 1e-6 is not in the range of float16. As 0 it would leave a step of m / eps.

    What is at the lower end of the range is rounded by up to a third, and the root of that is 1.23.
    """
    gradient = torch.tensor([1.0, 1e-3, 1e-5, 1e-6, 1e-7, 0.0])
    moved = {}
    for moments in ("fp32", "fp16"):
        model = Flat(6)
        optimizer = optimizer_of(model, moments, eps=1e-8)
        for _ in range(50):
            step(optimizer, gradient)
        moved[moments] = model.weight.detach().abs()
    assert torch.all(moved["fp16"] <= 1.23 * moved["fp32"])
    torch.testing.assert_close(moved["fp16"][:3], moved["fp32"][:3], rtol=2e-2, atol=0)
    assert moved["fp16"][3] > 0.2 * moved["fp32"][3]  # smaller, but not stuck
    assert moved["fp16"][5] == 0
    state = optimizer.state()
    naive = 0.02 * gradient[3] ** 2 / state["scales.weight"][1]
    assert naive.half() == 0  # what the floor stands in for
    assert float(state["second.weight"].min()) == SMALLEST


def test_eps_bounds_the_step_where_all_gradients_are_tiny():
    """The scale is at least 1e-8, so that second moments below 6e-16 are the floor; their roots are below eps."""
    for eps in (1e-6, 1e-8):
        moved = {}
        for moments in ("fp32", "fp16"):
            model = Flat(4)
            optimizer = optimizer_of(model, moments, eps=eps)
            step(optimizer, torch.full((4,), 1e-9))
            moved[moments] = float(model.weight.detach().abs().max())
        assert moved["fp16"] <= moved["fp32"] <= 1e-3 * 1e-9 / eps
    assert (SMALLEST * LEAST_SCALE) ** 0.5 < 1e-6


def test_clipping_and_weight_decay_are_those_of_float32():
    weights = []
    for moments in ("fp32", "fp16"):
        model = Flat(40, 3)
        with torch.no_grad():
            model.weight.copy_(numbers(40, 3))
        optimizer = optimizer_of(model, moments, clip_norm=1.0, weight_decay=0.2, eps=1.0)
        step(optimizer, 100 * numbers(40, 3))
        weights.append(model.weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-6)


def test_a_restored_state_goes_on_with_the_same_bits():
    models = [Flat(50, 4), Flat(50, 4)]
    first, second = (optimizer_of(model, "fp16", torch.bfloat16) for model in models)
    for number in range(3):
        step(first, numbers(50, 4) * (number + 1))
    second.masters.load({name: value.clone() for name, value in first.masters.state().items()})
    second.load({name: value.clone() for name, value in first.state().items()})
    for optimizer in (first, second):
        step(optimizer, numbers(4, 50).T)
    for name, value in first.state().items():
        assert torch.equal(value, second.state()[name]), name
    assert torch.equal(first.masters.masters["weight"], second.masters.masters["weight"])


def test_float64_weights_have_no_half_moments():
    with pytest.raises(ConfigError, match="float64"):
        optimizer_of(Flat(3), "fp16", torch.float64)
