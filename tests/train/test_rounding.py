"""Stochastic rounding: the expected value is kept, exact numbers stay exact, the edges of the range hold."""

from __future__ import annotations

import math

import pytest
import torch

from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.runtime import torch_generator
from ostension.train.optim import MasterAdamW, OptimConfig
from ostension.train.precision import Average, Masters
from ostension.train.rounding import stochastic_round

DRAWS = 40_000


def neighbours(value):
    """The numbers of bfloat16 on both sides, by the bits."""
    bits = torch.tensor(value).view(torch.int32)
    low = torch.bitwise_and(bits, -0x10000)
    return float(low.view(torch.float32)), float((low + 0x10000).view(torch.float32))


@pytest.mark.parametrize("value", [1.001, -1.001, 0.0123, -3.7e-12, 6.02e23, 1e-39, -3e-40, 1 / 3, 255.9])
def test_the_mean_over_many_draws_is_the_number_and_every_draw_a_neighbour(value):
    drawn = stochastic_round(torch.full((DRAWS,), value), torch_generator("rounding", value.hex())).double()
    near, far = neighbours(value)
    assert set(drawn.tolist()) <= {near, far}
    share = (float(torch.tensor(value)) - near) / (far - near)
    assert float(drawn.mean()) == pytest.approx(value, abs=5 * abs(far - near) * math.sqrt(share * (1 - share) / DRAWS))


def test_numbers_of_bfloat16_stay_as_they_are():
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    values = bits.view(torch.bfloat16)
    rounded = stochastic_round(values.float(), torch_generator("exact"))
    finite = ~values.isnan()
    assert torch.equal(rounded[finite], values[finite])
    assert rounded[~finite].isnan().all()


def test_numbers_beyond_the_largest_become_the_largest_and_nothing_becomes_infinite():
    largest = torch.finfo(torch.bfloat16).max
    values = torch.full((1000,), torch.finfo(torch.float32).max)
    generator = torch_generator("edges")
    assert torch.equal(stochastic_round(values, generator), torch.full((1000,), largest, dtype=torch.bfloat16))
    assert torch.equal(stochastic_round(-values, generator), torch.full((1000,), -largest, dtype=torch.bfloat16))
    quiet = torch.tensor([0x7F800001, -1], dtype=torch.int32).view(torch.float32)  # NaNs by their last bits alone
    assert stochastic_round(quiet, generator).isnan().all()


@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 7), (0, 4)])
def test_any_shape_is_kept(shape):
    assert stochastic_round(torch.ones(shape), torch_generator("shape")).shape == shape


def rounded_model(**settings):
    model = CLIP(preset("tiny-vit"), seed=0)
    masters = Masters(model, torch.bfloat16, [model.text])
    return model, masters, MasterAdamW(masters, OptimConfig(clip_norm=None, weight_decay=0.0, **settings), seed=3)


def fill(model, value):
    for weight in model.parameters():
        weight.grad = torch.full_like(weight, value)


def test_the_text_towers_matrices_have_no_masters_and_everything_else_has():
    model, masters, _ = rounded_model()
    for name, weight in model.named_parameters():
        alone = name.startswith("text.") and weight.ndim > 1
        assert (name in masters.rounded) == alone
        assert masters.masters[name].dtype == (torch.bfloat16 if alone else torch.float32), name
        if alone:
            assert masters.masters[name] is weight
    plain = Masters(CLIP(preset("tiny-vit"), seed=0), torch.bfloat16)
    matrices = sum(weight.numel() for name, weight in model.named_parameters() if name in masters.rounded)
    # In use: a copy of 2 bytes and a master of 4 bytes, or 2 bytes alone.
    assert sum(map(held, (plain,))) - held(masters) == 4 * matrices
    assert 4 * matrices > 0.9 * sum(4 * weight.numel() for weight in model.text.parameters())


def held(masters):
    tensors = {value.data_ptr(): value.nbytes for value in [*masters.weights.values(), *masters.masters.values()]}
    return sum(tensors.values())


def test_updates_far_below_the_last_bit_add_up_on_average():
    model, _, optimizer = rounded_model(lr=1e-5, eps=1e-8)
    weight = model.text.token_embedding.weight
    with torch.no_grad():
        weight.fill_(1.0)  # neighbours of 1 are 4e-3 to 8e-3 away: 1e-5 would be lost in every plain rounding
    for number in range(100):
        fill(model, -1.0)
        optimizer.step(1.0, float(optimizer.gradient_norm()), number)
    assert float(weight.detach().double().mean()) == pytest.approx(1.001, abs=5e-5)
    assert len(weight.unique()) > 1


def test_the_random_numbers_are_those_of_the_step_the_seed_and_the_weight():
    def after(seed=3, number=7):
        model, masters, _ = rounded_model()
        optimizer = MasterAdamW(masters, OptimConfig(lr=1e-3), seed=seed)
        fill(model, 0.5)
        optimizer.step(1.0, float(optimizer.gradient_norm()), number)
        return model.text.text_projection.detach()

    assert torch.equal(after(), after())
    assert not torch.equal(after(), after(number=8))
    assert not torch.equal(after(), after(seed=4))
    model, _, optimizer = rounded_model(lr=1e-3)
    with torch.no_grad():
        for block in model.text.transformer.resblocks:
            block.mlp.c_fc.weight.fill_(1.0)
    fill(model, 1.0)
    optimizer.step(1.0, float(optimizer.gradient_norm()))
    one, other = (block.mlp.c_fc.weight for block in model.text.transformer.resblocks[:2])
    assert not torch.equal(one, other)


def test_the_average_of_rounded_weights_is_kept_in_float32_and_given_so():
    model, masters, _ = rounded_model()
    average = Average(masters, 0.999)
    name = "text.text_projection"
    assert average.tensors[name].dtype == torch.float32
    start = average.tensors[name].clone()
    with torch.no_grad():
        masters.masters[name].add_(0.5)
    average.update(10_000)
    torch.testing.assert_close(average.tensors[name], start + 0.001 * (masters.masters[name].float() - start))
    masters.restore_float32()
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
