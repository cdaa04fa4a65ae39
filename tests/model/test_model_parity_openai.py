"""Outputs against OpenAI's own code, with random weights (the PyPI package clip-anytorch carries it)."""

from __future__ import annotations

import dataclasses
import importlib.util

import pytest
import torch

from ostension.model.clip import CLIP
from ostension.model.config import ResNetConfig
from ostension.model.presets import preset


@pytest.fixture(scope="module")
def openai():
    """OpenAI's model.py, loaded by path: the package itself imports torchvision."""
    package = importlib.util.find_spec("clip")
    if package is None or not package.submodule_search_locations:
        pytest.skip("needs clip-anytorch (pip install --no-deps -r tests/oracles.txt)")
    spec = importlib.util.spec_from_file_location("openai_clip_model", f"{package.submodule_search_locations[0]}/model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def openai_model(openai, model):
    """OpenAI's `CLIP` with the weights of `model`."""
    vision, text = model.config.vision, model.config.text
    resnet = isinstance(vision, ResNetConfig)
    theirs = openai.CLIP(
        model.config.embed_dim, vision.image_size, vision.layers, vision.width, None if resnet else vision.patch_size,
        text.context_length, text.vocab_size, text.width, text.heads, text.layers,
    )  # fmt: skip
    theirs.load_state_dict({name.removeprefix("text."): tensor for name, tensor in model.state_dict().items()})
    return theirs.eval()


def assert_equal_outputs(openai, model, images, tokens):
    theirs = openai_model(openai, model)
    with torch.no_grad():
        pairs = {
            "image": (model.encode_image(images), theirs.encode_image(images)),
            "text": (model.encode_text(tokens), theirs.encode_text(tokens)),
            "plain text": (model.encode_text(tokens, plain=True), theirs.encode_text(tokens)),
            "logits": (model(images, tokens), theirs(images, tokens)[0]),
        }
    pairs["image with gradients"] = model.encode_image(images), pairs["image"][1]
    for name, (ours, other) in pairs.items():
        assert (ours - other).abs().max() / max(1.0, float(other.abs().max())) < 1e-5, name


@pytest.mark.parametrize("layers", [(1, 1, 1, 1), (2, 1, 3, 2)])
def test_a_resnet_agrees_with_openai(openai, tiny, tokens, layers):
    config = preset("tiny-resnet")
    config = dataclasses.replace(
        config, vision=dataclasses.replace(config.vision, layers=layers),
        text=dataclasses.replace(config.text, activation="quick_gelu", width=64, head_width=64),
    )  # fmt: skip
    assert_equal_outputs(openai, tiny(config), torch.randn(3, 3, 64, 64), tokens)


def test_a_vision_transformer_agrees_with_openai(openai, tiny, tokens):
    config = preset("tiny-vit")
    config = dataclasses.replace(
        config, vision=dataclasses.replace(config.vision, activation="quick_gelu", width=128, head_width=64),
        text=dataclasses.replace(config.text, activation="quick_gelu", width=64, head_width=64),
    )  # fmt: skip
    assert_equal_outputs(openai, tiny(config), torch.randn(3, 3, 32, 32), tokens)


@pytest.mark.slow
def test_rn50_at_its_true_size_agrees_with_openai(openai, tiny):
    tokens = torch.zeros(2, 77, dtype=torch.int64)
    tokens[0, :4] = torch.tensor([49406, 320, 2368, 49407])
    tokens[1] = torch.tensor([49406, *range(1000, 1075), 49407])
    model = CLIP(preset("RN50")).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bn3.weight"):  # zero at the start, which would hide the bottlenecks
            torch.nn.init.constant_(parameter, 0.3)
    assert_equal_outputs(openai, model, torch.randn(2, 3, 224, 224), tokens)
