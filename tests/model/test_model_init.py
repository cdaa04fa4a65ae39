"""The initialisation: the table's values, and independence from everything but the seed."""

from __future__ import annotations

import math

import pytest
import torch

from ostension.model.clip import CLIP
from ostension.model.presets import preset


@pytest.fixture(scope="module")
def vit():
    return CLIP(preset("small-64"))


@pytest.fixture(scope="module")
def resnet():
    return CLIP(preset("tiny-resnet"))


def spread(model, name):
    return float(model.state_dict()[name].std())


@pytest.mark.parametrize(
    ("name", "std"),
    [
        ("text.token_embedding.weight", 0.02),
        ("text.positional_embedding", 0.01),
        ("text.text_projection", 256**-0.5),
        ("text.transformer.resblocks.1.attn.in_proj_weight", 256**-0.5),
        ("text.transformer.resblocks.1.attn.out_proj.weight", 256**-0.5 * 8**-0.5),
        ("text.transformer.resblocks.1.mlp.c_fc.weight", 512**-0.5),
        ("text.transformer.resblocks.1.mlp.c_proj.weight", 256**-0.5 * 8**-0.5),
        ("visual.positional_embedding", 192**-0.5),
        ("visual.proj", 192**-0.5),
        ("visual.transformer.resblocks.0.attn.in_proj_weight", math.sqrt(2 / (4 * 192))),  # xavier: 2 / (fan in + fan out)
        ("visual.transformer.resblocks.0.attn.out_proj.weight", 192**-0.5 / math.sqrt(3)),
        ("visual.transformer.resblocks.0.mlp.c_fc.weight", 192**-0.5 / math.sqrt(3)),
        ("visual.transformer.resblocks.0.mlp.c_proj.bias", 768**-0.5 / math.sqrt(3)),
        ("visual.conv1.weight", 192**-0.5 / math.sqrt(3)),
    ],
)
def test_parameters_start_with_openais_spread(vit, name, std):
    assert spread(vit, name) == pytest.approx(std, rel=0.1)


def test_attention_biases_start_at_zero_and_norms_at_one(vit):
    for name, tensor in vit.state_dict().items():
        if name.endswith(("in_proj_bias", "out_proj.bias")) or (".ln_" in name and name.endswith("bias")):
            assert not tensor.any(), name
        elif ".ln_" in name:
            assert bool((tensor == 1).all()), name


def test_the_last_norm_of_each_bottleneck_starts_at_zero(resnet):
    for name, tensor in resnet.state_dict().items():
        if name.endswith("bn3.weight"):
            assert bool((tensor == (0 if ".layer" in name else 1)).all()), name
    assert spread(resnet, "visual.attnpool.q_proj.weight") == pytest.approx(256**-0.5, rel=0.05)


def test_the_logit_scale_starts_at_the_configured_value(vit):
    assert float(vit.logit_scale.detach()) == pytest.approx(math.log(1 / 0.07))
    siglip = CLIP(preset("tiny-siglip"))
    assert float(siglip.logit_scale.detach()) == pytest.approx(math.log(10))
    assert siglip.logit_bias is not None and float(siglip.logit_bias.detach()) == -10


def test_equal_seeds_give_equal_weights_and_other_seeds_others():
    first, again, other = (CLIP(preset("tiny-vit"), seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["visual.proj"], other["visual.proj"])
