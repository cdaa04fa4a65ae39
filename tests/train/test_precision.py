"""Low-precision weights over float32 masters, and the running average."""

from __future__ import annotations

import pytest
import torch

from ostension.errors import CheckpointError, ConfigError
from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.train.precision import Average, Masters, global_norm


def tiny(name="tiny-vit"):
    return CLIP(preset(name), seed=0)


def test_in_float32_the_weights_are_the_masters():
    model = tiny()
    masters = Masters(model, torch.float32)
    assert all(masters.masters[name] is weight for name, weight in model.named_parameters())


def test_in_bfloat16_the_towers_are_rounded_copies_and_scalars_stay_exact():
    model, exact = tiny(), dict(tiny().named_parameters())
    masters = Masters(model, torch.bfloat16)
    assert model.visual.proj.dtype == model.text.token_embedding.weight.dtype == torch.bfloat16
    assert model.logit_scale.dtype == torch.float32
    for name, master in masters.masters.items():
        assert torch.equal(master, exact[name]), name
        assert torch.equal(model.get_parameter(name), master.to(model.get_parameter(name).dtype)), name


def test_batch_norm_stays_in_float32_and_runs():
    model = tiny("tiny-resnet")
    Masters(model, torch.bfloat16)
    assert model.visual.bn1.weight.dtype == model.visual.bn1.running_mean.dtype == torch.float32
    assert model.visual.conv1.weight.dtype == torch.bfloat16
    before = model.visual.bn1.running_mean.clone()
    model.train()(torch.randn(2, 3, 64, 64), torch.tensor([[1022, 5, 1023], [1022, 6, 1023]])).sum().backward()
    assert not torch.equal(model.visual.bn1.running_mean, before)


def test_updates_too_small_for_bfloat16_add_up_in_the_masters():
    model = tiny()
    masters = Masters(model, torch.bfloat16)
    weight, master = model.visual.proj, masters.masters["visual.proj"]
    with torch.no_grad():
        master.fill_(1.0)
        for _ in range(100):
            master.add_(1e-3)
            masters.publish()
    assert weight[0, 0].item() == pytest.approx(1.1, abs=4e-3)


def test_gradients_are_taken_from_the_weights_without_a_copy():
    model = tiny()
    masters = Masters(model, torch.bfloat16)
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    place = model.visual.proj.grad.data_ptr()
    masters.collect_gradients()
    assert masters.gradients.keys() == dict(model.named_parameters()).keys()
    assert masters.gradients["visual.proj"].data_ptr() == place
    assert all(weight.grad is None for weight in model.parameters())


def test_the_norm_of_many_low_precision_numbers_is_exact():
    values = torch.full((600_000,), 1.0, dtype=torch.bfloat16)  # in bfloat16 itself the norm would be 776
    assert float(global_norm([values, torch.tensor(800.0)])) == pytest.approx((600_000 + 800**2) ** 0.5, rel=1e-6)
    assert float(global_norm([])) == 0.0


def test_restoring_gives_the_model_its_exact_weights():
    model, exact = tiny(), dict(tiny().named_parameters())
    masters = Masters(model, torch.bfloat16)
    masters.restore_float32()
    assert all(torch.equal(weight, exact[name]) for name, weight in model.named_parameters())


def test_a_state_of_other_shapes_or_names_is_refused_by_name():
    masters = Masters(tiny(), torch.float32)
    state = {name: value.clone() for name, value in masters.state().items()}
    with pytest.raises(CheckpointError, match=r"weights: the tensor 'visual.proj' is .* shape \(2, 2\); expected"):
        masters.load({**state, "visual.proj": torch.zeros(2, 2)}, "weights")
    with pytest.raises(CheckpointError, match="'visual.proj' is missing"):
        masters.load({name: value for name, value in state.items() if name != "visual.proj"})
    with pytest.raises(CheckpointError, match="'surplus' is not part"):
        masters.load({**state, "surplus": torch.zeros(1)})


def test_the_average_starts_quickly_and_ends_at_its_decay():
    model = tiny()
    masters = Masters(model, torch.bfloat16)
    average = Average(masters, 0.9)
    expected = masters.masters["visual.proj"].clone()
    for step in range(300):
        with torch.no_grad():
            masters.masters["visual.proj"].add_(1.0)
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * masters.masters["visual.proj"]
        torch.testing.assert_close(average.tensors["visual.proj"], expected)
    # A weight that rises by 1 a step is followed at a distance of d / (1 - d) steps.
    lag = masters.masters["visual.proj"] - average.tensors["visual.proj"]
    assert lag.mean().item() == pytest.approx(9.0, abs=0.5)
    masters.restore_float32(average.tensors)
    assert torch.equal(model.visual.proj, average.tensors["visual.proj"])
    with pytest.raises(ConfigError, match="average"):
        Average(masters, 1.0)
