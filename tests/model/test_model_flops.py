"""Counted products against torch's own counter, published tables and hand counts."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ostension.model.clip import CLIP
from ostension.model.config import ModelConfig, ResNetConfig, VitConfig
from ostension.model.flops import forward_gflops, image_products, text_products, total, training
from ostension.model.presets import preset
from ostension.train.freeze import FreezeConfig, TowerLock

# GFLOP of one image and one text: open_clip's profile table.
PROFILE = {
    "RN50": (12.22, 5.96), "RN101": (19.54, 5.96), "RN50x4": (42.56, 9.27), "RN50x16": (149.39, 13.30),
    "RN50x64": (529.11, 23.55), "ViT-B-32": (8.82, 5.96), "ViT-B-16": (35.13, 5.96), "ViT-L-14": (162.03, 13.30),
    "ViT-L-14-336": (381.92, 13.30),
}  # fmt: skip
# GMAC of a pair, Cherti et al. 2022.
GMAC = {"ViT-B-32": 7.40, "ViT-B-16": 20.57, "ViT-L-14": 87.73, "ViT-H-14": 190.97, "ViT-g-14": 290.74}
TINY = ["tiny-vit", "tiny-resnet", "tiny-siglip"]


@pytest.mark.parametrize("name", PROFILE)
def test_the_published_gflops_come_out_to_their_last_figure(name):
    assert forward_gflops(preset(name)) == pytest.approx(PROFILE[name], abs=0.0051)


@pytest.mark.parametrize("name", GMAC)
def test_the_scaling_studys_gmac_are_within_two_per_mille(name):
    assert sum(forward_gflops(preset(name))) / 2 == pytest.approx(GMAC[name], rel=2e-3)


def counted(function) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return flops // 2


def written_out(config: ModelConfig) -> CLIP:
    """A model whose attention is written out in products, as it is in half precision; torch's kernel is not counted."""
    return CLIP(config, seed=0).bfloat16()


@pytest.mark.parametrize("name", ["RN50", "ViT-B-16", "ViT-SO400M-14-SigLIP"])
def test_torch_counts_the_same_for_the_image_towers_as_they_run(name):
    config = preset(name)
    with torch.device("meta"):
        model = CLIP(config).eval()
        images = torch.empty(2, 3, config.vision.image_size, config.vision.image_size)
    assert counted(lambda: model.visual(images)) == 2 * total(image_products(config.vision, config.embed_dim, whole=False))


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("whole", [True, False])
def test_torch_counts_the_same_for_the_text_tower(name, whole):
    config = preset(name)
    model, length = written_out(config), config.text.context_length if whole else 9
    rows = torch.full((2, config.text.context_length), 0)
    # Different from the first token on, so that the two share nothing.
    rows[:, :length] = torch.stack([torch.arange(1, length + 1), torch.arange(101, length + 101)])
    expected = text_products(config.text, config.embed_dim, whole=whole, num_tokens=length)
    assert counted(lambda: model.text(rows, plain=whole)) == 2 * total(expected)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_torch_counts_the_same_for_training_on_a_picture(name, checkpointing):
    config = preset(name)
    model = written_out(config).train()
    model.set_checkpointing(image=checkpointing)
    images = torch.zeros(3, 3, config.vision.image_size, config.vision.image_size, dtype=torch.bfloat16)
    expected = training(image_products(config.vision, config.embed_dim, whole=False), checkpointing=checkpointing)
    assert counted(lambda: model.visual(images).sum().backward()) == 3 * expected


def test_a_block_counted_by_hand():
    config = VitConfig(image_size=16, patch_size=8, width=4, layers=1, head_width=2, activation="gelu")
    parts = {part.name: part.macs for part in image_products(config, embed_dim=6)}
    assert parts == {
        "conv1": 4 * (3 * 8 * 8) * 4,  # four patches
        "transformer.resblocks.0.attn": 4 * 5 * 4 * 4 + 2 * 5 * 5 * 4,  # five tokens: q, k, v, out; scores and reading
        "transformer.resblocks.0.mlp.c_fc": 5 * 4 * 16,
        "transformer.resblocks.0.mlp.c_proj": 5 * 4 * 16,
        "proj": 4 * 6,
    }
    alone = {part.name: part.macs for part in image_products(config, embed_dim=6, whole=False)}
    assert alone["transformer.resblocks.0.attn"] == 2 * 5 * 16 + 2 * 16 + 2 * 5 * 4  # keys and values of five, one query
    assert alone["transformer.resblocks.0.mlp.c_fc"] == 4 * 16


def test_a_residual_network_counted_by_hand():
    config = ResNetConfig(image_size=8, layers=(1, 1), width=2, head_width=2, stem_pool=False, pool="flatten")
    parts = {part.name: part.macs for part in image_products(config, embed_dim=5)}
    assert parts == {
        "conv1": 16 * 27 * 1,
        "conv2": 16 * 9 * 1,
        "conv3": 16 * 9 * 2,
        "layer1.0": 16 * (2 * 2 + 9 * 4 + 2 * 8 + 2 * 8),  # 4 x 4 places: 1x1, 3x3, 1x1, shortcut
        "layer2.0": 16 * (8 * 4 + 9 * 16) + 4 * (4 * 16 + 8 * 16),  # pooled to 2 x 2 before the last two
        "proj": 4 * 16 * 5,
    }


def test_training_costs_three_passes_less_the_gradient_of_the_pixels():
    config = preset("ViT-B-32")
    parts = image_products(config.vision, config.embed_dim)
    patches = 49 * 3072 * 768
    assert training(parts) == 3 * total(parts) - patches
    blocks = total(parts) - patches - 768 * 512 - 12 * 50 * 768 * 3072  # without each MLP's last product
    assert training(parts, checkpointing=True) == training(parts) + blocks
    assert training(parts, forwards=2) == training(parts) + total(parts)


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-siglip"])
def test_a_tower_with_its_last_block_unlocked_is_counted_nearly(name):
    config = preset(name)
    model = written_out(config).train()
    FreezeConfig(image=TowerLock(locked=True, unlocked_groups=2)).apply(model)
    images = torch.zeros(3, 3, config.vision.image_size, config.vision.image_size, dtype=torch.bfloat16)
    trained = [key for key, weight in model.visual.named_parameters() if weight.requires_grad]
    expected = training(image_products(config.vision, config.embed_dim, whole=False), trained=trained)
    found = counted(lambda: model.visual(images).sum().backward())
    # Queries, keys and values of the first trained part may need no gradient of their input; that is counted all the same.
    assert found <= 3 * expected <= 1.12 * found


def test_a_frozen_tower_costs_its_forward_pass_and_a_trained_head_one_gradient():
    config = preset("ViT-B-32")
    parts = image_products(config.vision, config.embed_dim)
    assert training(parts, trained=[], checkpointing=True) == total(parts)
    assert training(parts, trained=["proj"]) == total(parts) + 768 * 512
