"""Patch dropout over a run, and the average of the weights."""

from __future__ import annotations

import pytest
import torch

from ostension.errors import ConfigError
from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.runtime import torch_generator
from ostension.train.batches import Batch
from ostension.train.freeze import FreezeConfig, TowerLock
from ostension.train.loop import train
from ostension.train.objective import Contrastive
from ostension.train.optim import OptimConfig
from ostension.train.patch_dropout import PatchDropoutConfig
from ostension.train.precision import Average, Masters
from ostension.train.schedule import ScheduleConfig
from ostension.train.train_config import TrainConfig


class Pairs:
    worker_kind = "threads"
    batch_size, num_samples = 4, 16

    def identity(self):
        return {"fingerprint": "pairs"}

    def batch(self, step, rank=0, world_size=1):
        generator = torch_generator("pairs", step)
        tokens = torch.randint(1, 500, (4, 5), generator=generator)
        tokens[:, -1] = 1023
        size = preset("tiny-vit").vision.image_size
        images = torch.randn(4, 3, size, size, generator=generator)
        return Batch(images=images, tokens=tokens, keys=["a", "b", "c", "d"])


def run(folder, model=None, micro_batch=None, **settings):
    model = model or CLIP(preset("tiny-vit"), seed=1)
    config = TrainConfig(
        steps=4, precision="fp32", patch_dropout=PatchDropoutConfig(**settings), micro_batch=micro_batch,
        optim=OptimConfig(lr=1e-3), schedule=ScheduleConfig(warmup_steps=0),
    )  # fmt: skip
    lengths = []
    hook = model.visual.transformer.register_forward_pre_hook(lambda module, given: lengths.append(given[0].shape[1]))
    train(Contrastive(model), Pairs(), config, folder)
    hook.remove()
    return lengths, model


def test_patches_are_left_out_until_the_last_steps_and_the_run_is_repeatable(tmp_path):
    patches = preset("tiny-vit").vision.grid ** 2
    lengths, model = run(tmp_path / "a", share=0.5, unmasked_steps=1)
    assert lengths == [1 + patches // 2] * 3 + [1 + patches]
    assert model.visual.patch_dropout == 0.0
    _, again = run(tmp_path / "b", share=0.5, unmasked_steps=1)
    _, without = run(tmp_path / "c")
    states = [one.state_dict() for one in (model, again, without)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["visual.conv1.weight"], states[2]["visual.conv1.weight"])


def test_pieces_of_a_batch_draw_their_masks_again_as_they_were(tmp_path):
    """Both passes over a piece leave out the same patches, or the gradients would be of another function."""
    model = CLIP(preset("tiny-vit"), seed=1)
    seen = []
    model.visual.transformer.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach().clone()))
    run(tmp_path / "a", model, micro_batch=2, share=0.5)
    for step in range(4):
        first, second, again_first, again_second = seen[4 * step : 4 * step + 4]
        assert torch.equal(first, again_first)
        assert torch.equal(second, again_second)


def test_settings_without_effect_are_refused():
    half = PatchDropoutConfig(share=0.5)
    with pytest.raises(ConfigError, match="one of our vision transformers"):
        half.check(CLIP(preset("tiny-resnet"), seed=0), 4)
    locked = CLIP(preset("tiny-vit"), seed=0)
    FreezeConfig(image=TowerLock(locked=True)).apply(locked)
    with pytest.raises(ConfigError, match="no effect on a locked image tower"):
        half.check(locked, 4)
    with pytest.raises(ConfigError, match=r"unmasked_steps is 4; expected less than 4"):
        PatchDropoutConfig(share=0.5, unmasked_steps=4).check(CLIP(preset("tiny-vit"), seed=0), 4)
    with pytest.raises(ConfigError, match="no effect without a share"):
        PatchDropoutConfig(unmasked_steps=3)


def test_the_average_is_its_formula_and_leaves_frozen_weights_as_they_are():
    """a <- d a + (1 - d) w with d = min(decay, (1 + t) / (10 + t))."""
    model = CLIP(preset("tiny-vit"), seed=1)
    FreezeConfig(image=TowerLock(locked=True)).apply(model)
    masters = Masters(model, torch.float32)
    average = Average(masters, 0.5)
    name, frozen = "text.ln_final.bias", model.visual.conv1.weight.clone()
    expected = masters.masters[name].detach().double().clone()
    for step in range(1, 20):
        with torch.no_grad():
            masters.masters[name].add_(float(step))
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * masters.masters[name].detach().double()
        average.update(step)
    torch.testing.assert_close(average.tensors[name].double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(average.tensors["visual.conv1.weight"], frozen)
