"""The loop: what it writes, what it measures, what it leaves."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F

from ostension.errors import ConfigError
from ostension.formats.load import load
from ostension.losses import LossConfig
from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.runlog import read_records
from ostension.runtime import torch_generator
from ostension.train.batches import Batch, pad_tokens
from ostension.train.checkpoint import CheckpointConfig, CheckpointStore, load_checkpoint
from ostension.train.loop import train
from ostension.train.objective import Contrastive
from ostension.train.optim import OptimConfig
from ostension.train.prefetch import batches_ahead
from ostension.train.schedule import ScheduleConfig
from ostension.train.train_config import TrainConfig


class Kinds:
    """Pairs of six kinds, each with its colour and its word."""

    worker_kind = "threads"
    batch_size, num_samples = 12, 48

    def __init__(self, groups=False):
        self.groups = groups

    def identity(self):
        return {"fingerprint": "kinds", "groups": self.groups}

    def batch(self, step):
        generator = torch_generator("kinds", step)
        kinds = torch.arange(12) % 6
        images = 0.3 * torch.randn(12, 3, 32, 32, generator=generator)
        images += torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]])[kinds][:, :, None, None]
        tokens = torch.stack([torch.full((12,), 1022), 5 + kinds, torch.full((12,), 1023)], dim=1)
        groups = kinds if self.groups else None
        return Batch(images=images, tokens=tokens, keys=[f"kind-{kind}" for kind in kinds], groups=groups)


def config(**settings):
    settings = {"steps": 8, "precision": "fp32", "log_every": 2, "schedule": ScheduleConfig(warmup_steps=2), **settings}
    return TrainConfig(optim=OptimConfig(lr=settings.pop("lr", 1e-3)), **settings)


def run(folder, source=None, model=None, **settings):
    extra = {name: settings.pop(name) for name in ("trackers", "evaluate") if name in settings}
    model = model or CLIP(preset("tiny-vit"), seed=1)
    objective = Contrastive(model, settings.pop("loss", None))
    return train(objective, source or Kinds(), config(**settings), folder, **extra), model


def test_a_run_learns_and_leaves_a_model_that_loads(tmp_path):
    result, model = run(tmp_path / "run", steps=60, lr=3e-3)
    losses = [record["loss"] for record in read_records(tmp_path / "run", ["step"])]
    assert losses[0] > 2.0
    assert losses[-1] < 1.2  # ln 2 = 0.69 is the least: every kind is in the batch twice
    loaded = load(result.model_folder, device="cpu", dtype="float32")
    batch = Kinds().batch(99)
    assert torch.equal(loaded.encode_image(batch.images), model.encode_image(batch.images))
    assert not model.training
    made = loaded.provenance["before"]["run"]
    assert (made["step"], made["settings"]["data"]["fingerprint"]) == (60, "kinds")
    assert "command" not in made  # a model that is given away does not tell whose machine made it


def test_the_run_folder_says_all_before_step_0(tmp_path):
    class Stops(Kinds):
        def batch(self, step):
            raise RuntimeError("no data")

    with pytest.raises(RuntimeError):
        run(tmp_path / "run", Stops())
    tree = json.loads((tmp_path / "run" / "config.json").read_text())
    assert tree["model"]["name"] == "tiny-vit"
    assert tree["data"]["fingerprint"] == "kinds"
    assert tree["train"]["optim"]["lr"] == 1e-3
    assert tree["train"]["schedule"]["warmup_steps"] == 2
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert set(facts) >= {"config_hash", "versions", "git", "threads", "command", "started", "changes"}


def test_every_record_of_a_step_has_the_fields_that_people_look_for(tmp_path):
    run(tmp_path / "run")
    records = read_records(tmp_path / "run", ["step"])
    assert [record["step"] for record in records] == [2, 4, 6, 8]
    expected = {
        "loss", "image_accuracy", "text_accuracy", "logit_scale", "temperature", "grad_norm", "lr", "samples_seen", "epoch",
        "step_s", "data_s", "idle_share", "pairs_per_s", "eta_s", "peak_memory_mb", "skipped", "rejects", "texts_cut",
    }
    assert expected <= set(records[0])
    last = records[-1]
    assert (last["samples_seen"], last["epoch"], last["eta_s"]) == (96, 2.0, 0.0)
    assert last["temperature"] == pytest.approx(math.exp(-last["logit_scale"]), rel=1e-3)
    assert 0 <= last["idle_share"] <= 1


def test_one_step_of_the_loop_is_the_plainest_step_in_torch(tmp_path):
    """Ten lines of PyTorch, one step, float32: the same weights."""
    model = CLIP(preset("tiny-vit"), seed=1)
    decayed, spared = [], []
    for name, weight in model.named_parameters():
        (spared if weight.ndim == 0 or ".ln_" in name or name.endswith("bias") else decayed).append(weight)
    groups = [{"params": decayed, "weight_decay": 0.2}, {"params": spared, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), eps=1e-6)
    batch = Kinds().batch(0)
    image, text = (F.normalize(value, dim=1) for value in (model.encode_image(batch.images), model.encode_text(batch.tokens)))
    logits = model.logit_scale.exp() * image @ text.T
    loss = (F.cross_entropy(logits, torch.arange(12)) + F.cross_entropy(logits.T, torch.arange(12))) / 2
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    result, trained = run(tmp_path / "run", steps=1, log_every=1, schedule=ScheduleConfig(kind="constant", warmup_steps=0))
    assert result.last["loss"] == pytest.approx(loss.item(), rel=1e-6)
    for name, weight in trained.named_parameters():
        torch.testing.assert_close(weight, model.get_parameter(name), rtol=1e-4, atol=2e-6, msg=name)


def test_bfloat16_weights_learn_as_float32_ones_do_and_are_saved_in_full(tmp_path):
    last = {}
    for precision in ("fp32", "bf16"):
        result, model = run(tmp_path / precision, steps=30, lr=3e-3, precision=precision)
        last[precision] = result.last["loss"]
        assert model.visual.proj.dtype == torch.float32
    assert last["bf16"] == pytest.approx(last["fp32"], abs=0.2)
    saved = load_checkpoint(CheckpointStore(tmp_path / "bf16").path(30)).tensors["weights"]["visual.proj"]
    assert saved.dtype == torch.float32
    assert not torch.equal(saved, saved.bfloat16().float())


def test_the_average_is_what_an_averaging_run_gives(tmp_path):
    _, model = run(tmp_path / "run", average=0.9)
    checkpoint = load_checkpoint(CheckpointStore(tmp_path / "run").path(8))
    assert torch.equal(model.visual.proj, checkpoint.tensors["average"]["visual.proj"])
    assert not torch.equal(model.visual.proj, checkpoint.tensors["weights"]["visual.proj"])
    _, last = run(tmp_path / "plain")
    assert torch.equal(last.visual.proj, checkpoint.tensors["weights"]["visual.proj"])


def test_evaluation_is_called_in_time_without_gradients_and_the_best_stays(tmp_path):
    called = []

    def evaluate(model, step):
        called.append((step, model.training, torch.is_grad_enabled()))
        return {"top1": {2: 0.1, 4: 0.9, 6: 0.5, 8: 0.2}[step]}

    run(
        tmp_path / "run", evaluate=evaluate, evaluate_every=2, best="top1", checkpoint=CheckpointConfig(every=3, keep=1)
    )
    assert called == [(step, False, False) for step in (2, 4, 6, 8)]
    assert [record["top1"] for record in read_records(tmp_path / "run", ["evaluation"])] == [0.1, 0.9, 0.5, 0.2]
    assert list(CheckpointStore(tmp_path / "run").paths()) == [4, 8]


def test_an_evaluation_that_changes_the_random_state_changes_nothing(tmp_path):
    def disturb(model, step):
        torch.manual_seed(step)
        torch.rand(100)
        return {"x": 0.0}

    _, disturbed = run(tmp_path / "one", evaluate=disturb, evaluate_every=1)
    _, plain = run(tmp_path / "two")
    assert torch.equal(disturbed.visual.proj, plain.visual.proj)


def test_the_callers_random_state_is_left_alone(tmp_path):
    torch.manual_seed(4)
    before = torch.get_rng_state()
    run(tmp_path / "run", steps=2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_give_the_batches_in_order(tmp_path, workers):
    with batches_ahead(Kinds(), 2, 9, workers) as stream:
        found = list(stream)
    assert len(found) == 7
    assert all(torch.equal(batch.images, Kinds().batch(step).images) for step, batch in enumerate(found, 2))


def test_threads_change_no_bits(tmp_path):
    _, alone = run(tmp_path / "one")
    _, helped = run(tmp_path / "two", workers=2)
    assert torch.equal(alone.visual.proj, helped.visual.proj)


def test_groups_and_the_sigmoid_loss_reach_the_loop(tmp_path):
    shared, _ = run(tmp_path / "one", Kinds(groups=True), steps=60, lr=3e-3, loss=LossConfig(duplicates="ignore"))
    assert shared.last["loss"] < 0.5  # without duplicates as negatives there is no floor at ln 2
    with pytest.raises(ConfigError, match="bring no groups"):
        run(tmp_path / "two", loss=LossConfig(duplicates="share"))
    with pytest.raises(ConfigError, match="no bias"):
        run(tmp_path / "three", loss=LossConfig(kind="sigmoid"))
    biased = CLIP(dataclasses.replace(preset("tiny-vit"), init_logit_bias=-2.4), seed=1)
    result, _ = run(tmp_path / "four", model=biased, loss=LossConfig(kind="sigmoid", chunk_rows=5), steps=30, lr=3e-3)
    assert result.last["loss"] < read_records(tmp_path / "four", ["step"])[0]["loss"]


def test_the_multiplier_never_passes_its_cap(tmp_path):
    model = CLIP(dataclasses.replace(preset("tiny-vit"), logit_scale_cap=14.29), seed=1)
    run(tmp_path / "run", model=model, lr=3e-3, steps=20)
    assert model.logit_scale.item() <= math.log(14.29) + 1e-6
    assert max(record["logit_scale"] for record in read_records(tmp_path / "run", ["step"])) <= math.log(14.29) + 1e-6


def test_epochs_become_steps(tmp_path):
    result, _ = run(tmp_path / "run", steps=None, epochs=1.5)
    assert result.step == 6  # four batches of 12 in 48 pairs
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["steps"] == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "train.steps is 0"),
        ({"steps": None}, "expected one of the two"),
        ({"epochs": 2.0}, "expected one of the two"),
        ({"average": 1.0}, "train.average"),
        ({"workers": -1}, "train.workers"),
        ({"log_every": 0}, "train.log_every"),
        ({"best": "top1"}, "train.best"),
        ({"evaluate_every": 3}, "no evaluation is given"),
        ({"checkpoint": {"every": 0}}, "checkpoint.every"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_before_anything_is_written(tmp_path, settings, message):
    if isinstance(settings.get("checkpoint"), dict):
        with pytest.raises(ConfigError, match=message):
            CheckpointConfig(**settings["checkpoint"])
        return
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_tokens_are_cut_to_the_longest_only_where_nothing_after_the_end_matters():
    rows = [[1022, 4, 1023], [1022, 4, 5, 6, 1023]]
    causal, siglip = preset("tiny-vit").text, preset("tiny-siglip").text
    assert pad_tokens(rows, 0, causal).tolist() == [[1022, 4, 1023, 0, 0], [1022, 4, 5, 6, 1023]]
    assert pad_tokens(rows, 1, siglip).shape == (2, siglip.context_length)
