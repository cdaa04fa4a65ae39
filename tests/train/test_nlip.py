"""The objective "nlip": its parts against plain forms, noise that is fitted anew each epoch, resuming, planted noise found."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ostension.errors import CheckpointError, ConfigError
from ostension.formats.load import load
from ostension.formats.parts import load_captioner
from ostension.losses import LossConfig, contrastive_loss
from ostension.model.clip import CLIP
from ostension.model.decoder import DecoderConfig
from ostension.model.presets import preset
from ostension.model.reconstruction import PatchDecoder, ReconstructionConfig, whitened
from ostension.runlog import read_records
from ostension.runtime import numpy_generator, torch_generator
from ostension.train.batches import Batch
from ostension.train.checkpoint import CheckpointConfig
from ostension.train.loop import train
from ostension.train.nlip import Nlip, NlipConfig
from ostension.train.noise import NoiseConfig, epoch_losses
from ostension.train.objective import Contrastive
from ostension.train.objectives import objective_config
from ostension.train.optim import OptimConfig
from ostension.train.schedule import ScheduleConfig
from ostension.train.step import backward
from ostension.train.train_config import TrainConfig

KINDS, EPOCH, BATCH = 12, 8, 24
PALETTE = torch.rand(KINDS, 3, 4, 4, generator=torch_generator("palette")) * 4 - 2
DECODER = DecoderConfig(layers=1, head_width=16)
SMALL = ReconstructionConfig(width=16, layers=1, head_width=8)


class Planted:
    """Pictures of twelve kinds, 192 of them, each with the word of its kind; three in ten have another's."""

    worker_kind = "threads"

    def __init__(self, noise=0.3, size=32, epoch=EPOCH, batch=BATCH):
        self.size, self.epoch, self.batch_size, self.num_samples = size, epoch, batch, epoch * batch
        generator = numpy_generator("planted")
        self.kinds = np.arange(self.num_samples) % KINDS
        self.noise = generator.random(self.num_samples) < noise
        moved = (self.kinds + generator.integers(1, KINDS, self.num_samples)) % KINDS
        self.words = np.where(self.noise, moved, self.kinds)

    def identity(self):
        return {"fingerprint": "planted"}

    def rows(self, step):
        order = numpy_generator("order", step // self.epoch).permutation(self.num_samples)
        return order[step % self.epoch * self.batch_size :][: self.batch_size]

    def batch(self, step, rank=0, world_size=1):
        rows = self.rows(step)
        side = self.size
        noise = torch.stack([torch.randn(3, side, side, generator=torch_generator("pixels", int(row))) for row in rows])
        colours = F.interpolate(PALETTE[self.kinds[rows]], size=self.size)
        words = torch.from_numpy(self.words[rows])
        start, end = torch.full_like(words, 1022), torch.full_like(words, 1023)
        concepts = torch.from_numpy(self.kinds[rows]) + 50
        return Batch(
            images=0.3 * noise + colours, tokens=torch.stack([start, 5 + words, end], dim=1), keys=[str(row) for row in rows],
            groups=words, prompted=torch.stack([start, concepts, 5 + words, end], dim=1), firsts=torch.full_like(words, 2),
        )  # fmt: skip


def made(name="tiny-vit", **settings):
    settings = {"loss": LossConfig(duplicates="ignore"), **settings}
    return NlipConfig(**settings).build(CLIP(preset(name), seed=3))


def config(**settings):
    settings = {"steps": 4 * EPOCH, "precision": "fp32", "log_every": 1, "schedule": ScheduleConfig(warmup_steps=2), **settings}
    return TrainConfig(optim=OptimConfig(lr=settings.pop("lr", 2e-3), weight_decay=0.0), **settings)


def float64(objective, batch):
    objective.module.double().eval()
    return dataclasses.replace(batch, images=batch.images.double())


def test_the_kind_is_found_by_its_name_and_needs_targets_that_know_noise():
    assert objective_config("nlip") is NlipConfig
    with pytest.raises(ConfigError, match="where noise is known"):
        NlipConfig(loss=LossConfig(kind="sigmoid"))
    with pytest.raises(ConfigError, match="strength"):
        NoiseConfig(strength=0.0)


def test_during_the_warm_up_it_is_the_plain_loss_and_afterwards_that_of_its_targets():
    source, objective = Planted(), made()
    plain = Contrastive(objective.model, LossConfig(duplicates="ignore"))
    batch = source.batch(0)
    objective.before_step(0, source, 0)
    assert objective.noise is None
    torch.testing.assert_close(
        objective.loss(objective.embed(batch), batch.groups).loss, plain.loss(plain.embed(batch), batch.groups).loss
    )
    batch = source.batch(EPOCH + 3)
    objective.before_step(EPOCH + 3, source, 0)
    found = objective.loss(objective.embed(batch), batch.groups)
    rows = objective.embed(batch).rows
    expected = contrastive_loss(
        rows["image"], rows["text"], objective.model.scale(), groups=batch.groups, duplicates="ignore",
        noise=objective.estimates.values[3].float(),
    )  # fmt: skip
    torch.testing.assert_close(found.loss, expected.loss)
    assert objective.noise.shape == (BATCH,)


def test_an_epochs_losses_are_those_of_its_batches_and_leave_the_model_as_it_was():
    source, objective = Planted(size=64), made("tiny-resnet")
    before = {name: value.clone() for name, value in objective.module.state_dict().items()}
    objective.module.train()
    losses = epoch_losses(objective.model, objective._unit_rows, objective.config, source, EPOCH, EPOCH)
    assert objective.module.training and losses.shape == (EPOCH, BATCH) and losses.dtype == torch.float64
    assert all(torch.equal(value, before[name]) for name, value in objective.module.state_dict().items())
    objective.module.eval()
    batch = source.batch(EPOCH + 2)
    plain = Contrastive(objective.model, objective.config)
    with torch.no_grad():
        whole = plain.loss(plain.embed(batch), batch.groups).loss.double()
        torch.testing.assert_close(losses[2].mean(), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_planted_noise_is_found_after_the_warm_up(tmp_path):
    source, objective = Planted(), made(noise=NoiseConfig(warmup_epochs=5))
    train(objective, source, config(steps=6 * EPOCH, lr=1e-3), tmp_path)
    truth = np.concatenate([source.noise[source.rows(5 * EPOCH + step)] for step in range(EPOCH)])
    called = objective.estimates.values.numpy().ravel() > 0.5
    assert objective.estimates.epoch == 5
    assert (called & truth).sum() / called.sum() > 0.85 and (called & truth).sum() / truth.sum() > 0.7
    told = [record["noise"] for record in read_records(tmp_path, ["step"])]
    assert not any(told[: 5 * EPOCH]) and np.mean(told[-EPOCH:]) == pytest.approx(truth.mean(), abs=0.12)


@pytest.mark.parametrize("stop", [4, 6])
def test_a_run_that_was_stopped_ends_with_the_same_bits(tmp_path, stop):
    """In the middle of an epoch, whose noise the checkpoint holds, and between two."""
    steps, size = 7, {"epoch": 3, "batch": 8}
    whole, halves = made(), made()
    train(whole, Planted(**size), config(steps=steps, checkpoint=CheckpointConfig(every=stop)), tmp_path / "whole")

    class Stops(Planted):
        def batch(self, step, rank=0, world_size=1):
            if step == stop and not self.scoring:
                raise KeyboardInterrupt
            return super().batch(step)

        scoring = False

    source = Stops(**size)
    before_step = halves.before_step

    def scored(*arguments):
        source.scoring = True
        before_step(*arguments)
        source.scoring = False

    halves.before_step = scored
    with pytest.raises(KeyboardInterrupt):
        train(halves, source, config(steps=steps, checkpoint=CheckpointConfig(every=stop)), tmp_path / "halves")
    again = made()
    train(again, Planted(**size), config(steps=steps, checkpoint=CheckpointConfig(every=stop)), tmp_path / "halves")
    for (name, one), other in zip(whole.module.state_dict().items(), again.module.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_a_checkpoint_of_another_objective_is_refused():
    objective = made()
    with pytest.raises(CheckpointError, match="no noise of pairs"):
        objective.load_state({"other": torch.zeros(1)}, "file")
    with pytest.raises(CheckpointError, match="does not have"):
        Contrastive(objective.model).load_state({"noise": torch.zeros(1)}, "file")


def test_captions_are_said_behind_their_concepts_which_are_not_predicted_and_the_contrast_sees_neither():
    source, objective = Planted(), made(decoder=DECODER, noise=None, caption_weight=2.0)
    batch = float64(objective, source.batch(0))
    model = objective.model
    states = model.text_features(batch.prompted, ("tokens",))["tokens"]
    places = model.image_features(batch.images, ("patches",))["patches"]
    logits = objective.captioner.decoder(states, places) @ objective.captioner.decoder.head.T
    expected = F.cross_entropy(logits[:, 1:3].flatten(0, 1), batch.prompted[:, 2:4].flatten())
    embedded = objective.embed(batch)
    assert embedded.own.item() == pytest.approx(2 * expected.item(), abs=1e-10)
    other = dataclasses.replace(batch, prompted=batch.prompted.roll(1, 0))
    torch.testing.assert_close(objective.embed(other).rows["text"], embedded.rows["text"], rtol=0, atol=0)
    assert objective.embed(other).own != embedded.own
    plain = Contrastive(model, objective.config).embed(batch).rows
    for side in ("image", "text"):
        torch.testing.assert_close(plain[side], embedded.rows[side], rtol=0, atol=1e-12)
    with pytest.raises(ConfigError, match="bring no concepts"):
        objective.embed(dataclasses.replace(batch, prompted=None))


def test_hidden_patches_are_predicted_whitened_and_the_tower_sees_the_visible_ones_alone():
    model = CLIP(preset("tiny-vit"), seed=3).double()
    decoder = PatchDecoder(SMALL, model.config, seed=1).double()
    patches, size = model.config.vision.grid**2, model.config.vision.patch_size
    images = torch.randn(2, 3, 32, 32, generator=torch_generator("x"), dtype=torch.float64)
    order = torch.stack([torch.randperm(patches, generator=torch_generator(row)) for row in range(2)])
    visible, hidden = order[:, : decoder.visible], order[:, decoder.visible :]
    found = decoder.losses_of(model.visual, images, visible, hidden)
    states = model.visual.visible_states(images, visible)
    for row in range(2):
        x = decoder.mask_token.repeat(patches, 1)
        x[visible[row]] = decoder.token_proj(states[row])
        x = decoder.resblocks[0]((x + decoder.positional_embedding)[None])
        said = decoder.head(decoder.ln_final(x))[0]
        total = 0.0
        for place in hidden[row].tolist():
            down, across = divmod(place, model.config.vision.grid)
            patch = images[row, :, down * size : (down + 1) * size, across * size : (across + 1) * size].flatten()
            target = (patch - patch.mean()) / (patch.var(correction=0) + 1e-6).sqrt()
            total += ((said[place] - target) ** 2).mean().item()
        assert found[row].item() == pytest.approx(total / hidden.shape[1], abs=1e-10)
    changed = images.clone()
    hidden_pixels = model.visual.pixels(torch.ones_like(images)).new_zeros(2, patches, 1).scatter(1, hidden[..., None], 1.0)
    mask = hidden_pixels.view(2, 1, model.config.vision.grid, -1)
    changed += 5 * F.interpolate(mask, scale_factor=size)
    torch.testing.assert_close(model.visual.visible_states(changed, visible), states, rtol=0, atol=1e-12)
    assert whitened(images.flatten(2)).mean().abs() < 1e-9


def test_a_tower_that_sees_all_patches_in_order_has_the_states_of_its_tap():
    model = CLIP(preset("tiny-vit"), seed=3).double()
    images = torch.randn(2, 3, 32, 32, generator=torch_generator("x"), dtype=torch.float64)
    places = torch.arange(model.config.vision.grid**2).expand(2, -1)
    tap = model.image_features(images, ("patches",))["patches"]
    torch.testing.assert_close(model.visual.visible_states(images, places), tap, rtol=0, atol=1e-12)


def test_patches_are_hidden_from_vision_transformers_only():
    with pytest.raises(ConfigError, match="no patches to hide"):
        made("tiny-resnet", reconstruction=SMALL)
    with pytest.raises(ConfigError, match="divisor"):
        ReconstructionConfig(width=10, head_width=4)


def test_a_batch_in_pieces_has_the_gradients_of_the_whole():
    source = Planted()
    gradients = []
    for micro in (None, 7):
        objective = made(decoder=DECODER, reconstruction=dataclasses.replace(SMALL, share=0.9))
        batch = float64(objective, source.batch(EPOCH))
        # What is hidden is drawn piece by piece; hidden the same way everywhere, pieces cannot matter.
        decoder = objective.patch_decoder
        order = torch.arange(len(decoder.positional_embedding)).expand(BATCH, -1)
        decoder.losses = lambda visual, images, d=decoder, o=order: d.losses_of(
            visual, images, o[: len(images), : d.visible], o[: len(images), d.visible :]
        )
        objective.noise = torch.linspace(0, 1, BATCH, dtype=torch.float64)
        found = backward(objective, batch, micro)
        told = [found.loss, *(found.measured[name] for name in ("caption_loss", "reconstruction_loss", "noise"))]
        gradients.append([*told, *(weight.grad for weight in objective.module.parameters() if weight.grad is not None)])
    assert len(gradients[0]) == len(gradients[1]) > 20
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_all_parts_train_together_and_the_saved_folder_is_a_model_with_its_captioner(tmp_path):
    objective = made(decoder=DECODER, reconstruction=SMALL)
    result = train(objective, Planted(epoch=3, batch=8), config(steps=4), tmp_path)
    last = read_records(tmp_path, ["step"])[-1]
    total = last["contrastive_loss"] + last["caption_loss"] + last["reconstruction_loss"]
    assert last["loss"] == pytest.approx(total, rel=1e-5) and last["noise"] >= 0
    images = Planted().batch(0).images
    plain = load(result.model_folder, device="cpu", dtype="float32")
    assert torch.equal(plain.encode_image(images), objective.model.encode_image(images))
    assert not any("decoder" in name for name in plain.state_dict())
    captions = load_captioner(result.model_folder, device="cpu", dtype="float32")
    assert captions.caption(images[:3]) == objective.caption_model().caption(images[:3])
    assert isinstance(objective, Nlip) and "captioner" in objective.model._modules
