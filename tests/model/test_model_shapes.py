"""The known architectures: exact counts, on the meta device, so that no weights are made."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ostension.config import from_tree, to_tree
from ostension.errors import ConfigError
from ostension.model.clip import CLIP
from ostension.model.config import ModelConfig
from ostension.model.presets import preset, preset_names

# Parameters in all, of the image tower, and entries of the state dict. OpenAI's nine: instantiated from openai/CLIP; the
# others from open_clip 3.3.0, SigLIP from Hugging Face's SiglipModel.
COUNTS = {
    "RN50": (102_007_137, 38_316_896, 489),
    "RN101": (119_688_033, 56_259_936, 795),
    "RN50x4": (178_300_601, 87_137_080, 669),
    "RN50x16": (290_979_217, 167_328_912, 921),
    "RN50x64": (623_258_305, 420_380_352, 1353),
    "ViT-B-32": (151_277_313, 87_849_216, 302),
    "ViT-B-16": (149_620_737, 86_192_640, 302),
    "ViT-L-14": (427_616_513, 303_966_208, 446),
    "ViT-L-14-336": (427_944_193, 304_293_888, 446),
    "ViT-B-16-plus-240": (208_377_345, 117_213_824, 302),
    "ViT-H-14": (986_109_441, 632_076_800, 686),
    "ViT-g-14": (1_366_678_273, 1_012_645_632, 782),
    "ViT-bigG-14": (2_539_567_105, 1_844_907_264, 974),
    "ViT-B-16-SigLIP": (203_155_970, 92_884_224, 312),
    "ViT-L-16-SigLIP-256": (652_150_786, 315_956_224, 600),
    "ViT-SO400M-14-SigLIP": (877_360_306, 427_680_704, 672),
    "ViT-SO400M-14-SigLIP-384": (877_960_498, 428_225_600, 672),
}


def on_meta(name):
    with torch.device("meta"):
        return CLIP(preset(name))


@pytest.mark.parametrize("name", COUNTS)
def test_a_model_has_the_published_number_of_parameters_and_entries(name):
    model = on_meta(name)
    total, visual, entries = COUNTS[name]
    assert sum(parameter.numel() for parameter in model.parameters()) == total
    assert sum(parameter.numel() for parameter in model.visual.parameters()) == visual
    assert len(model.state_dict()) == entries


@pytest.mark.parametrize("name", ["RN50", "ViT-B-32"])
def test_the_text_side_has_the_published_number_of_parameters(name):
    model = on_meta(name)
    visual = {id(parameter) for parameter in model.visual.parameters()}
    rest = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in visual)
    assert rest == {"RN50": 63_690_241, "ViT-B-32": 63_428_097}[name]


def test_parameters_have_openais_names_with_text_before_those_of_the_text_tower():
    names = set(on_meta("ViT-B-32").state_dict())
    assert {
        "visual.conv1.weight", "visual.class_embedding", "visual.positional_embedding", "visual.ln_pre.weight", "visual.proj",
        "visual.transformer.resblocks.11.attn.in_proj_weight", "visual.transformer.resblocks.0.mlp.c_fc.bias",
        "text.token_embedding.weight", "text.positional_embedding", "text.ln_final.bias", "text.text_projection",
        "text.transformer.resblocks.3.attn.out_proj.weight", "logit_scale",
    } <= names  # fmt: skip
    names = set(on_meta("RN50").state_dict())
    assert {
        "visual.bn3.running_var", "visual.layer1.0.downsample.0.weight", "visual.layer1.0.downsample.1.running_mean",
        "visual.layer4.2.conv3.weight", "visual.attnpool.positional_embedding", "visual.attnpool.c_proj.bias",
    } <= names  # fmt: skip


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_survives_the_configuration_file(name):
    config = preset(name)
    assert from_tree(ModelConfig, to_tree(config)) == config
    assert config.name == name


def test_an_unknown_preset_lists_the_nearest():
    with pytest.raises(ConfigError, match="unknown model 'ViT-B-23'.*'ViT-B-32'"):
        preset("ViT-B-23")


def test_a_position_table_that_does_not_divide_keeps_the_whole_patches():
    config = preset("ViT-SO400M-14-SigLIP-384").vision
    assert config.image_size % config.patch_size and config.grid == 27


def test_pixels_beyond_the_last_whole_patch_are_not_seen(tiny):
    config = preset("tiny-siglip")
    config = dataclasses.replace(
        config, vision=dataclasses.replace(config.vision, image_size=35),
        preprocess=dataclasses.replace(config.preprocess, image_size=35),
    )  # fmt: skip
    model, images = tiny(config), torch.randn(2, 3, 35, 35)
    other = images.clone()
    other[:, :, 32:] = other[:, :, :, 32:] = 7.0
    assert torch.equal(model.encode_image(images), model.encode_image(other))


def test_building_a_model_draws_nothing_from_the_global_random_state():
    before = torch.get_rng_state()
    CLIP(preset("tiny-vit"))
    assert torch.equal(before, torch.get_rng_state())
