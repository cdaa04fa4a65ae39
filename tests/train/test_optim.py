"""AdamW over masters: what decays, what is clipped, what is restored."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from ostension.errors import CheckpointError, ConfigError
from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.train.optim import MasterAdamW, OptimConfig, undecayed_names
from ostension.train.precision import Masters


def tiny(name="tiny-vit"):
    return CLIP(preset(name), seed=0)


def optimizer_of(model, dtype=torch.float32, **settings):
    return MasterAdamW(Masters(model, dtype), OptimConfig(**settings))


def fill_gradients(model, value=1.0):
    for weight in model.parameters():
        weight.grad = torch.full_like(weight, value)


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-resnet"])
def test_the_papers_rule_decays_embeddings_and_spares_gains_and_biases(name):
    model = tiny(name)
    undecayed = undecayed_names(model, "paper")
    assert {"logit_scale", "text.ln_final.weight", "text.ln_final.bias"} <= undecayed
    norms = (".ln_", ".bn", "downsample.1")
    assert all(part.endswith(("bias", "logit_scale")) or any(norm in part for norm in norms) for part in undecayed)
    decayed = {part for part, _ in model.named_parameters()} - undecayed
    assert {"text.token_embedding.weight", "text.positional_embedding", "text.text_projection"} <= decayed
    assert ("visual.class_embedding" in decayed) == (name == "tiny-vit")
    assert not any(part.endswith("bias") for part in decayed)


def test_the_ndim_rule_spares_everything_flat_and_the_position_and_class_embeddings():
    model = tiny()
    undecayed = undecayed_names(model, "ndim")
    assert {"visual.class_embedding", "visual.positional_embedding", "text.positional_embedding", "logit_scale"} <= undecayed
    sizes = dict(model.named_parameters())
    assert {part for part in sizes if part not in undecayed} == {
        part for part, weight in sizes.items() if weight.ndim > 1 and "positional" not in part
    }


def test_one_step_is_adamw_worked_out_by_hand():
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(2.0)
        model.bias.fill_(1.0)
    optimizer = optimizer_of(model, lr=0.1, weight_decay=0.5, clip_norm=None, eps=1e-8)
    fill_gradients(model, 3.0)
    norm = float(optimizer.gradient_norm())
    assert norm == pytest.approx(3 * 2**0.5)
    optimizer.step(0.5, norm)
    # Bias-corrected moments of a first step are g and g^2, so the move is lr * sign; the weight decays by lr * 0.5 first.
    assert model.weight.item() == pytest.approx(2.0 * (1 - 0.05 * 0.5) - 0.05)
    assert model.bias.item() == pytest.approx(1.0 - 0.05)
    assert model.weight.grad is None


def test_a_gradient_past_the_limit_is_scaled_to_it():
    moved = []
    for clip, value in ((1.0, 100.0), (None, 1.0 / 2**0.5)):
        model = nn.Linear(1, 1)
        with torch.no_grad():
            model.weight.zero_(), model.bias.zero_()
        optimizer = optimizer_of(model, clip_norm=clip, weight_decay=0.0, eps=1.0)
        fill_gradients(model, value)
        optimizer.step(1.0, float(optimizer.gradient_norm()))
        moved.append(model.weight.item())
    assert moved[0] == pytest.approx(moved[1], rel=1e-6)


def test_learning_rate_factors_go_by_the_longest_prefix():
    model = tiny()
    factors = {"text.": 0.5, "text.ln_final": 0.1}
    optimizer = optimizer_of(model, lr=1e-3, weight_decay=0.0, clip_norm=None, lr_factors=factors)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    fill_gradients(model)
    optimizer.step(1.0, float(optimizer.gradient_norm()))
    moved = {name: (weight - before[name]).abs().max().item() for name, weight in model.named_parameters()}
    assert moved["visual.proj"] == pytest.approx(1e-3, rel=1e-3)
    assert moved["text.text_projection"] == pytest.approx(5e-4, rel=1e-3)
    assert moved["text.ln_final.weight"] == pytest.approx(1e-4, rel=1e-2)


def test_an_unknown_prefix_and_a_model_without_trained_weights_are_refused():
    with pytest.raises(ConfigError, match="'txt.'"):
        optimizer_of(tiny(), lr_factors={"txt.": 0.5})
    with pytest.raises(ConfigError, match="nothing to train"):
        optimizer_of(tiny().requires_grad_(False))


def test_frozen_weights_do_not_move():
    model = tiny()
    model.visual.requires_grad_(False)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = optimizer_of(model, torch.bfloat16)
    fill_gradients(model)
    optimizer.step(1.0, float(optimizer.gradient_norm()))
    state = optimizer.masters.state()
    assert torch.equal(state["visual.proj"], before["visual.proj"])
    assert not torch.equal(state["text.text_projection"], before["text.text_projection"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restored_optimizer_goes_on_with_the_same_bits(dtype):
    one, other = tiny(), tiny()
    first, second = optimizer_of(one, dtype), optimizer_of(other, dtype)
    for step in range(3):
        fill_gradients(one, 0.1 * step + 0.1)
        first.step(1.0, float(first.gradient_norm()))
    second.masters.load({name: value.clone() for name, value in first.masters.state().items()})
    second.load({name: value.clone() for name, value in first.state().items()})
    for model, optimizer in ((one, first), (other, second)):
        fill_gradients(model, 0.7)
        optimizer.step(0.5, float(optimizer.gradient_norm()))
    for name, value in first.masters.state().items():
        assert torch.equal(value, second.masters.state()[name]), name
    for name, value in first.state().items():
        assert torch.equal(value, second.state()[name]), name


def test_moments_of_another_model_are_refused():
    first, second = optimizer_of(tiny()), optimizer_of(tiny("tiny-resnet"))
    fill_gradients(first.masters.model)
    first.step(1.0, float(first.gradient_norm()))
    with pytest.raises(CheckpointError, match=r"optimizer.safetensors: the tensor '(first|second).visual"):
        second.load(first.state(), "optimizer.safetensors")


IMPOSSIBLE = {"lr": 0.0, "beta1": 1.0, "beta2": -0.1, "eps": 0.0, "weight_decay": -1.0, "clip_norm": 0.0}


@pytest.mark.parametrize("settings", [*({key: value} for key, value in IMPOSSIBLE.items()), {"lr_factors": {"text.": 0.0}}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigError, match=f"optim.{next(iter(settings))}"):
        OptimConfig(**settings)


def test_making_an_optimizer_imports_no_compiler():
    """It costs seconds at every start and every resume."""
    code = """
import sys, torch
from ostension.train.optim import MasterAdamW, OptimConfig
from ostension.train.precision import Masters
model = torch.nn.Linear(2, 2)
optimizer = MasterAdamW(Masters(model, torch.float32), OptimConfig())
model(torch.ones(1, 2)).sum().backward()
optimizer.step(1.0, float(optimizer.gradient_norm()))
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
