"""Small random models and their files in every layout, made on the spot."""

from __future__ import annotations

import dataclasses
import importlib.util
import warnings
from pathlib import Path

import torch
from torch import Tensor

from ostension.model.clip import CLIP
from ostension.model.config import ModelConfig
from ostension.model.presets import preset

KINDS = ("tiny-vit", "tiny-resnet", "tiny-siglip")


def random_model(kind: str, **changes) -> CLIP:
    """A tiny model whose every parameter and statistic is random, so that no two can be mixed up unseen."""
    model = CLIP(changed(preset(kind), **changes), seed=None).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                tensor.fill_(3)
            elif name == "logit_scale":
                tensor.fill_(2.0)
            elif name.endswith("running_var") or ".ln_" in name or ".bn" in name:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            else:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return model


def changed(config: ModelConfig, *, activation: str | None = None, **others) -> ModelConfig:
    if activation is not None:
        others["text"] = dataclasses.replace(config.text, activation=activation)
        if config.vision.kind == "vit":
            others["vision"] = dataclasses.replace(config.vision, activation=activation)
    return dataclasses.replace(config, **others)


def same_weights(one: CLIP, other: CLIP) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert torch.equal(mine[name], theirs[name]), name


def inputs(model: CLIP, count: int = 3) -> tuple[Tensor, Tensor]:
    """Pictures and token rows that end with the end token and zeros."""
    config = model.config
    generator = torch.Generator().manual_seed(11)
    images = torch.randn(count, 3, config.vision.image_size, config.vision.image_size, generator=generator)
    tokens = torch.randint(3, config.text.vocab_size - 2, (count, config.text.context_length), generator=generator)
    tokens[:, 0] = config.text.vocab_size - 2
    for row, ids in enumerate(tokens):
        ids[5 + row], ids[6 + row :] = config.text.vocab_size - 1, 0
    return images, tokens


def openai_module():
    """OpenAI's model code (PyPI clip-anytorch), one file of it, loaded by its path."""
    found = importlib.util.find_spec("clip")
    assert found is not None and found.submodule_search_locations, "install tests/oracles.txt"
    path = Path(next(iter(found.submodule_search_locations))) / "model.py"
    spec = importlib.util.spec_from_file_location("openai_clip_model", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def openai_model(vision: str = "vit", seed: int = 0):
    """A tiny model of OpenAI's own code with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = openai_module()
        tower = (
            {"vision_layers": 2, "vision_width": 64, "vision_patch_size": 8}
            if vision == "vit"
            else {"vision_layers": (1, 1, 2, 1), "vision_width": 16, "vision_patch_size": None}
        )
        model = module.CLIP(
            embed_dim=32,
            image_resolution=32 if vision == "vit" else 64,
            **tower,
            context_length=16,
            vocab_size=700,
            transformer_width=64,
            transformer_heads=1,
            transformer_layers=2,
        )
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if name.endswith(("running_var", "bn3.weight")):
                    tensor.uniform_(0.5, 1.5)
                elif name.endswith("running_mean"):
                    tensor.normal_(0, 0.2)
    return model.eval()


def traced(model, path: Path, *, half: bool = False, integers: bool = True) -> Path:
    """A TorchScript archive of an OpenAI model, as the released ones are: traced, some tensors in half precision."""
    size = model.visual.input_resolution
    images, tokens = torch.zeros(1, 3, size, size), torch.zeros(1, model.context_length, dtype=torch.long)
    if integers:
        values = {"input_resolution": size, "context_length": model.context_length, "vocab_size": model.vocab_size}
        for name, value in values.items():
            vars(model).pop(name, None)
            model.register_buffer(name, torch.tensor(value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is announced as deprecated; the released files were made by it
        program = torch.jit.trace(model, (images, tokens), check_trace=False)
        if half:
            for name, parameter in program.named_parameters():
                if name.endswith(("proj", "proj_weight", "proj_bias", "conv1.weight", "projection")) or "mlp.c_" in name:
                    parameter.data = parameter.data.half()
        program.save(str(path))
    return path
