"""Recomputed blocks: the same gradients and statistics, less memory."""

from __future__ import annotations

import pytest
import torch

from ostension.model.clip import CLIP
from ostension.model.presets import preset
from ostension.runtime import torch_generator
from ostension.train.batches import Batch
from ostension.train.memory import LiveBytes
from ostension.train.objective import Contrastive
from ostension.train.step import backward


def batch_of(size, pairs=8):
    images = torch.randn(pairs, 3, size, size, generator=torch_generator("checkpointing", size))
    tokens = torch.tensor([[1022, *range(5 + pair, 12 + pair), 1023] for pair in range(pairs)])
    return Batch(images=images, tokens=tokens, keys=[str(pair) for pair in range(pairs)])


def gradients(model, batch):
    model.zero_grad()
    backward(Contrastive(model), batch)
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-resnet", "tiny-siglip"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_and_statistics_are_equal_bit_for_bit(name, dtype):
    kept, recomputed = (CLIP(preset(name), seed=0).to(dtype).train() for _ in range(2))
    recomputed.set_checkpointing(image=True, text=True)
    batch = batch_of(preset(name).vision.image_size)
    expected, found = gradients(kept, batch), gradients(recomputed, batch)
    for weight, gradient in expected.items():
        assert torch.equal(found[weight], gradient), weight
    for buffer, value in kept.named_buffers():
        assert torch.equal(recomputed.get_buffer(buffer), value), buffer


def bytes_kept(pairs=16, **checkpointing):
    """What lives between the forward and the backward pass."""
    model = CLIP(preset("small-64"), seed=0).train()
    model.set_checkpointing(**checkpointing)
    batch = batch_of(64, pairs)
    with LiveBytes([*model.parameters(), batch.images]) as counter:
        embedded = Contrastive(model).embed(batch)
    assert embedded.rows["image"].requires_grad
    return counter.live


def test_each_tower_that_is_recomputed_saves_most_of_its_activations():
    plain = bytes_kept()
    image, text, both = bytes_kept(image=True), bytes_kept(text=True), bytes_kept(image=True, text=True)
    assert both < plain / 6
    assert both < image < text < plain
    assert plain - both == pytest.approx((plain - image) + (plain - text), rel=0.01)
