"""A batch embedded in pieces: the gradients of the plain batch, the random masks and the statistics of one pass."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ostension.losses import LossConfig
from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.runtime import torch_generator
from ostension.train.batches import Batch
from ostension.train.objective import Contrastive, Embedded, StepLoss
from ostension.train.step import backward

PAIRS = 11


def batch_of(size, dtype=torch.float32):
    generator = torch_generator("micro", size)
    images = torch.randn(PAIRS, 3, size, size, generator=generator).to(dtype)
    lengths = torch.randint(3, 9, (PAIRS,), generator=generator).tolist()
    tokens = torch.zeros(PAIRS, 9, dtype=torch.long)
    for row, length in zip(tokens, lengths, strict=True):
        row[:length] = torch.randint(1, 1000, (length,), generator=generator)
        row[0], row[length - 1] = 1022, 1023
    return Batch(images=images, tokens=tokens, keys=[str(key) for key in range(PAIRS)], groups=torch.arange(PAIRS) // 2)


def tiny(name="tiny-vit", dtype=torch.float32, bias=None):
    model = CLIP(dataclasses.replace(preset(name), init_logit_bias=bias), seed=0).to(dtype).train()
    with torch.no_grad():
        model.logit_scale.fill_(3.0)
    return model


def gradients_of(objective, batch, micro_batch=None, **options):
    torch.manual_seed(5)
    objective.module.zero_grad()
    found = backward(objective, batch, micro_batch, **options)
    return found, {name: weight.grad.clone() for name, weight in objective.module.named_parameters() if weight.grad is not None}


def assert_equal_gradients(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        error = (found[name] - value).norm() / value.norm().clamp(min=1e-30)
        assert error <= tolerance, f"{name}: {float(error):.2g}"


class Dropping(Contrastive):
    """Drops parts of the pixels and of the embeddings at random, as patch dropout and dropout do."""

    def embed(self, batch):
        images = F.dropout(batch.images, 0.3)
        rows = super().embed(dataclasses.replace(batch, images=images)).rows
        return Embedded(rows={name: F.normalize(F.dropout(row, 0.2), dim=1) for name, row in rows.items()})


class Captioning(Contrastive):
    """A loss of each pair by itself beside the contrastive one, and constants that the loss reads."""

    def embed(self, batch):
        rows = super().embed(batch).rows
        return Embedded(rows=rows, constants={"sizes": batch.images.abs().mean((1, 2, 3))}, own=rows["text"].exp().mean())

    def loss(self, embedded, groups):
        found = super().loss(embedded, groups)
        weighted = (embedded.constants["sizes"] * embedded.rows["image"].sum(1)).mean()
        return StepLoss(found.loss + 2 * embedded.own + weighted, found.measured)


LOSSES = {
    "contrastive": LossConfig(), "chunked, shared": LossConfig(chunk_rows=4, duplicates="share"),
    "sigmoid": LossConfig(kind="sigmoid"), "sigmoid, chunked": LossConfig(kind="sigmoid", chunk_rows=3),
}  # fmt: skip


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("micro_batch", [1, 4, 10])
def test_in_float64_the_gradients_are_those_of_the_plain_batch(loss, micro_batch):
    objective = Contrastive(tiny(dtype=torch.float64, bias=-2.0 if "sigmoid" in loss else None), LOSSES[loss])
    batch = batch_of(32, torch.float64)
    plain, expected = gradients_of(objective, batch)
    cached, found = gradients_of(objective, batch, micro_batch)
    assert cached.loss.item() == pytest.approx(plain.loss.item(), rel=1e-12)
    assert cached.measured["image_accuracy"] == plain.measured["image_accuracy"]
    assert_equal_gradients(found, expected, 1e-10)


@pytest.mark.parametrize("loss", ["contrastive", "sigmoid"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_in_float32_they_are_equal_to_rounding(loss, checkpointing):
    model = tiny(bias=-2.0 if loss == "sigmoid" else None)
    model.set_checkpointing(image=checkpointing, text=checkpointing)
    objective = Contrastive(model, LOSSES[loss])
    _, expected = gradients_of(objective, batch_of(32))
    _, found = gradients_of(objective, batch_of(32), 4)
    assert_equal_gradients(found, expected, 3e-6)  # 1.1e-6 where products are summed eight at a time


@pytest.mark.parametrize("name", ["tiny-siglip", "tiny-vit"])
def test_losses_of_the_pairs_themselves_and_constants_count_by_the_size_of_the_piece(name):
    objective = Captioning(tiny(name, torch.float64, bias=None))
    plain, expected = gradients_of(objective, batch_of(32, torch.float64))
    cached, found = gradients_of(objective, batch_of(32, torch.float64), 4)
    assert cached.loss.item() == pytest.approx(plain.loss.item(), rel=1e-12)
    assert_equal_gradients(found, expected, 1e-10)


def one_graph(objective, batch, micro_batch):
    """The same pieces in the same order of random draws, all of their activations held."""
    torch.manual_seed(5)
    objective.module.zero_grad()
    pieces = [batch.part(slice(start, start + micro_batch)) for start in range(0, PAIRS, micro_batch)]
    parts = [objective.embed(piece).rows for piece in pieces]
    rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    objective.loss(Embedded(rows=rows), batch.groups).loss.backward()
    return {name: weight.grad.clone() for name, weight in objective.module.named_parameters()}


def test_random_masks_are_the_same_in_both_passes():
    objective, batch = Dropping(tiny(dtype=torch.float64)), batch_of(32, torch.float64)
    expected = one_graph(objective, batch, 4)
    _, found = gradients_of(objective, batch, 4)
    assert_equal_gradients(found, expected, 1e-10)
    state = torch.get_rng_state()
    one_graph(objective, batch, 4)
    assert torch.equal(torch.get_rng_state(), state)  # as many draws as one pass


def test_batch_norm_sees_pieces_and_moves_its_statistics_once():
    objective, batch = Contrastive(tiny("tiny-resnet", torch.float64)), batch_of(64, torch.float64)
    start = {name: value.clone() for name, value in objective.model.named_buffers()}
    expected = one_graph(objective, batch, 4)
    moved = {name: value.clone() for name, value in objective.model.named_buffers()}
    for name, value in objective.model.named_buffers():
        value.copy_(start[name])
    _, found = gradients_of(objective, batch, 4)
    assert_equal_gradients(found, expected, 1e-10)
    for name, value in objective.model.named_buffers():
        assert torch.equal(value, moved[name]), name
    assert int(objective.model.visual.bn1.num_batches_tracked) == 3  # one for each piece


def test_a_locked_tower_gets_no_gradient_and_the_other_its_own():
    model = tiny(dtype=torch.float64)
    model.visual.requires_grad_(False)
    objective, batch = Contrastive(model), batch_of(32, torch.float64)
    _, expected = gradients_of(objective, batch)
    _, found = gradients_of(objective, batch, 4)
    assert not any(name.startswith("visual.") for name in found)
    assert_equal_gradients(found, expected, 1e-10)


def test_only_the_last_pass_back_may_send_gradients_and_then_all_are_complete():
    events, model = [], tiny(dtype=torch.float64)

    @contextlib.contextmanager
    def hold():
        events.append("held")
        yield
        events.append("free")

    def note(weight):
        weight.register_post_accumulate_grad_hook(lambda _: events.append(id(weight)))

    for weight in model.parameters():
        note(weight)
    objective, batch = Contrastive(model), batch_of(32, torch.float64)
    gradients_of(objective, batch, 4, hold=hold)
    after = events[len(events) - events[::-1].index("free") :]
    assert sorted(after) == sorted(id(weight) for weight in model.parameters())
    assert [event for event in events if event in ("held", "free")] == ["held", "free"] * 3  # embedding, two of three pieces


def test_the_activations_of_one_piece_are_all_that_is_held():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.live = self.most = 0

        def forward(self, x):
            self.live += len(x)
            self.most = max(self.most, self.live)
            return _Held.apply(x, self)

    class _Held(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, counter):
            ctx.token = Token(counter, len(x))
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient, None

    class Token:
        def __init__(self, counter, rows):
            self.counter, self.rows = counter, rows

        def __del__(self):
            self.counter.live -= self.rows

    class Watched(Contrastive):
        def embed(self, batch):
            rows = super().embed(batch).rows
            return Embedded(rows={**rows, "image": counter(rows["image"])})

    counter = Counting()
    gradients_of(Watched(tiny()), batch_of(32), 4)
    assert counter.most == 4
    gradients_of(Watched(tiny()), batch_of(32))
    assert counter.most == PAIRS
