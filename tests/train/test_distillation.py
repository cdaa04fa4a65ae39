"""Distillation: the equation, its gradients, the teacher's place in batches, pieces and processes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from ostension.errors import ConfigError
from ostension.formats.load import save
from ostension.losses import LossConfig
from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.runtime import torch_generator
from ostension.train.batches import Batch
from ostension.train.distillation import DistillationConfig, distillation_loss
from ostension.train.step import backward

CONFIG = preset("tiny-vit")


def rows(*keys, count=7, width=5):
    return F.normalize(torch.randn(count, width, dtype=torch.float64, generator=torch_generator("rows", *keys)), dim=1)


def plain(image, text, scale, teacher_image, teacher_text, teacher_scale):
    """The equation as open_clip writes it."""

    def half(teacher, student):
        return -(teacher.softmax(dim=1) * student.log_softmax(dim=1)).sum(dim=1).mean(dim=0)

    student, teacher = scale * image @ text.T, teacher_scale * teacher_image @ teacher_text.T
    return (half(teacher, student) + half(teacher.T, student.T)) / 2


@pytest.mark.parametrize("chunk_rows", [None, 1, 3, 7, 100])
def test_loss_and_gradients_are_those_of_the_plain_form(chunk_rows):
    found = []
    for function in (plain, lambda *values: distillation_loss(*values, chunk_rows=chunk_rows)):
        image, text, scale = (value.clone().requires_grad_() for value in (rows("i"), rows("t"), torch.tensor(9.0).double()))
        loss = function(image, text, scale, rows("a", width=3), rows("b", width=3), torch.tensor(20.0).double())
        found.append((loss.detach(), *torch.autograd.grad(loss, (image, text, scale))))
    for expected, value in zip(*found, strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)


def test_a_student_that_is_its_teacher_has_no_gradient_from_it():
    image, text = rows("i").requires_grad_(), rows("t").requires_grad_()
    scale = torch.tensor(20.0).double()
    distillation_loss(image, text, scale, image.detach(), text.detach(), scale).backward()
    assert image.grad.abs().max() < 1e-12


def batch(count=6, dtype=torch.float64):
    generator = torch_generator("batch")
    tokens = torch.randint(1, 500, (count, 8), generator=generator)
    tokens[:, 0], tokens[:, -1] = CONFIG.tokenizer.vocab_size - 2, CONFIG.tokenizer.vocab_size - 1
    size = CONFIG.vision.image_size
    images = torch.randn(count, 3, size, size, generator=generator, dtype=dtype)
    return Batch(images=images, tokens=tokens, keys=[str(index) for index in range(count)])


def objective(tmp_path, teacher=None, **settings):
    if not (tmp_path / "teacher").exists():
        save(teacher or CLIP(CONFIG, seed=9), tmp_path / "teacher")
    config = DistillationConfig(teacher=tmp_path / "teacher", teacher_dtype="float64", **settings)
    return config.build(CLIP(CONFIG, seed=1).double())


@pytest.mark.parametrize("micro_batch", [None, 2, 4])
def test_a_batch_in_pieces_has_the_gradients_of_the_whole_and_the_teacher_none(tmp_path, micro_batch):
    whole, pieces = objective(tmp_path), objective(tmp_path, loss=LossConfig(chunk_rows=4))
    first, second = backward(whole, batch()), backward(pieces, batch(), micro_batch)
    torch.testing.assert_close(second.loss, first.loss, rtol=0, atol=1e-10)
    for one, two in zip(whole.module.parameters(), pieces.module.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, rtol=0, atol=1e-10)
    assert all(weight.grad is None for weight in pieces.teacher.parameters())
    assert set(first.measured) >= {"contrastive_loss", "distillation_loss", "image_accuracy"}
    total = first.measured["contrastive_loss"] + first.measured["distillation_loss"]
    torch.testing.assert_close(first.loss, total)


def test_the_weight_counts_and_the_teacher_is_part_of_the_run_s_identity(tmp_path):
    once, thrice = objective(tmp_path), objective(tmp_path, weight=3.0)
    found, more = (backward(one, batch()) for one in (once, thrice))
    torch.testing.assert_close(more.loss - found.loss, 2 * found.measured["distillation_loss"])
    assert len(once.identity()["teacher"]) == 64
    assert once.identity() != thrice.identity()


def test_pixels_and_padding_are_converted_for_the_teacher(tmp_path):
    """A teacher of another mean, spread and context sees the same picture and the same words."""
    weights = CLIP(CONFIG, seed=9).resized(context_length=20)
    config = dataclasses.replace(
        weights.config, preprocess=dataclasses.replace(CONFIG.preprocess, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.5))
    )
    teacher = CLIP(config, seed=0)
    teacher.load_state_dict(weights.state_dict())
    made = objective(tmp_path, teacher)
    made.check()
    data = batch()
    ours, theirs = (
        [torch.tensor(values).view(3, 1, 1) for values in (one.mean, one.std)] for one in (CONFIG.preprocess, config.preprocess)
    )
    pixels = (data.images * ours[1] + ours[0] - theirs[0]) / theirs[1]
    constants = made.embed(data).constants
    with torch.no_grad():
        expected = made.teacher.encode_image(pixels.double(), normalize=True)
        text = made.teacher.encode_text(data.tokens, normalize=True)
    torch.testing.assert_close(constants["teacher_image"], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(constants["teacher_text"], text, rtol=0, atol=1e-9)


def test_a_teacher_that_cannot_see_the_batch_is_refused(tmp_path):
    other = dataclasses.replace(CONFIG.tokenizer, mode="hf")
    with pytest.raises(ConfigError, match=r"tokenizer is another one: mode is 'hf'; expected the student's 'openai'"):
        objective(tmp_path, CLIP(dataclasses.replace(CONFIG, tokenizer=other), seed=0)).check()
    size = CONFIG.vision.image_size
    larger = CLIP(CONFIG, seed=0).resized(image_size=2 * size)
    (tmp_path / "b").mkdir()
    with pytest.raises(ConfigError, match=rf"the teacher takes pictures of {2 * size} pixels; expected the student's {size}"):
        objective(tmp_path / "b", larger).check()
    data = batch()
    with pytest.raises(ConfigError, match="the batches hold features of frozen towers"):
        objective(tmp_path).embed(dataclasses.replace(data, images=torch.zeros(6, 9)))
