"""What saves memory changes nothing else: runs resume with the same bits, and learn as well as without."""

from __future__ import annotations

import statistics

import pytest
import torch

from ostension.errors import ConfigError
from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.runlog import read_records
from ostension.runtime import torch_generator
from ostension.train.batches import Batch
from ostension.train.checkpoint import CheckpointConfig, CheckpointStore, load_checkpoint
from ostension.train.loop import train
from ostension.train.objective import Contrastive
from ostension.train.optim import OptimConfig
from ostension.train.schedule import ScheduleConfig
from ostension.train.train_config import TrainConfig

KINDS, PAIRS = 40, 16


class Things:
    """Pairs of forty kinds: a pattern under noise and a word each."""

    worker_kind = "threads"
    batch_size, num_samples = PAIRS, 320

    def __init__(self):
        self.patterns = torch.randn(KINDS, 3, 8, 8, generator=torch_generator("things")).repeat_interleave(4, 2)
        self.patterns = self.patterns.repeat_interleave(4, 3)

    def identity(self):
        return {"fingerprint": "things"}

    def batch(self, step):
        generator = torch_generator("things", step)
        kinds = torch.randperm(KINDS, generator=generator)[:PAIRS]
        images = self.patterns[kinds] + torch.randn(PAIRS, 3, 32, 32, generator=generator)
        tokens = torch.stack([torch.full((PAIRS,), 1022), 5 + kinds, torch.full((PAIRS,), 1023)], dim=1)
        return Batch(images=images, tokens=tokens, keys=[f"{step}-{number}" for number in range(PAIRS)])


class Interrupted(Things):
    """The power fails at a step."""

    def batch(self, step):
        if step == 7:
            raise RuntimeError("power")
        return super().batch(step)


OPTIONS = {
    "micro_batch": {"micro_batch": 5, "precision": "fp32"},
    "checkpointing": {"checkpointing": "both", "precision": "fp32"},
    "moments": {"moments": "fp16", "precision": "bf16"},
    "rounding": {"stochastic_rounding": "text", "precision": "bf16"},
    "all": {"micro_batch": 5, "checkpointing": "image", "moments": "fp16", "stochastic_rounding": "both", "average": 0.9},
}


def run(folder, source=None, *, seed=1, steps=10, lr=1e-3, **settings):
    optim = OptimConfig(lr=lr, moments=settings.pop("moments", "fp32"))
    config = TrainConfig(
        steps=steps, seed=seed, optim=optim, schedule=ScheduleConfig(warmup_steps=4), log_every=1,
        checkpoint=CheckpointConfig(every=4 if source else 1000), **settings,
    )  # fmt: skip
    model = CLIP(preset("tiny-vit"), seed=seed)
    train(Contrastive(model), source or Things(), config, folder)
    return model, [record["loss"] for record in read_records(folder, ["step"])]


@pytest.mark.parametrize("option", OPTIONS)
def test_a_run_that_was_interrupted_ends_with_the_same_bits(tmp_path, option):
    expected, _ = run(tmp_path / "whole", Things(), **OPTIONS[option])
    with pytest.raises(RuntimeError, match="power"):
        run(tmp_path / "broken", Interrupted(), **OPTIONS[option])
    resumed, _ = run(tmp_path / "broken", Things(), **OPTIONS[option])
    for name, weight in expected.named_parameters():
        assert torch.equal(resumed.get_parameter(name), weight), name
    assert not any(part.checkpointing for part in (resumed.visual.transformer, resumed.text.transformer))


def test_checkpoints_hold_what_is_kept_in_half_precision_and_models_are_full(tmp_path):
    model, _ = run(tmp_path / "run", moments="fp16", stochastic_rounding="text")
    tensors = load_checkpoint(CheckpointStore(tmp_path / "run").path(10)).tensors
    dtypes = {name: value.dtype for name, value in tensors["weights"].items()}
    assert dtypes["text.token_embedding.weight"] == torch.bfloat16
    assert dtypes["text.ln_final.weight"] == dtypes["visual.proj"] == dtypes["logit_scale"] == torch.float32
    assert tensors["optimizer"]["first.visual.proj"].dtype == torch.float16
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_other_moments_than_the_checkpoints_are_refused_in_a_line(tmp_path):
    run(tmp_path / "run", moments="fp16")
    with pytest.raises(ConfigError, match=r"train\.optim\.moments"):
        run(tmp_path / "run")


def test_rounding_needs_weights_to_round():
    with pytest.raises(ConfigError, match="stochastic_rounding is 'text', but train.precision is 'fp32'"):
        TrainConfig(steps=1, stochastic_rounding="text", precision="fp32")
    assert TrainConfig(steps=1, stochastic_rounding="text").resolved(1.0).precision == "bf16"
    with pytest.raises(ConfigError, match="micro_batch"):
        TrainConfig(steps=1, micro_batch=0)


@pytest.mark.slow
def test_loss_curves_with_half_precision_are_within_the_noise_over_seeds(tmp_path):
    """The noise is the spread over seeds of the float32 run, halfway and at the end; runs are compared seed by seed."""

    def curves(seeds, **settings):
        folder = tmp_path / "-".join(map(str, settings.values()))
        return [run(folder / str(seed), seed=seed, steps=40, lr=2e-3, **settings)[1] for seed in seeds]

    plain = curves((1, 2, 3), precision="fp32")
    found = {
        "moments": curves((1,), moments="fp16", precision="fp32"),
        "rounding": curves((1, 2), stochastic_rounding="text"),
        "both": curves((1, 2), moments="fp16", stochastic_rounding="both"),
    }
    for window in (slice(15, 25), slice(30, 40)):
        expected = [statistics.mean(losses[window]) for losses in plain]
        noise = statistics.stdev(expected)
        assert statistics.mean(expected) < 0.8 * statistics.mean(plain[0][:3])
        for name, curves_found in found.items():
            shifts = [statistics.mean(losses[window]) - level for losses, level in zip(curves_found, expected, strict=False)]
            assert abs(statistics.mean(shifts)) < noise, name
