"""How parameters start: one table, read from top to bottom, first match wins.

The values are OpenAI's released code (which leaves the vision transformer's blocks at PyTorch's defaults; the paper's
"slightly different" initialisation of it is not in the release). W is the width of the parameter's tower, L its layers,
F the channels of a ResNet's last map (times its positions where the head flattens it). "fan" is PyTorch's default for
linear and convolution layers, U(-1, 1) / sqrt(fan in).

Random numbers come from a seed of their own for each parameter, so that one parameter's values depend neither on the
others nor on the process's random state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ostension.model.config import ModelConfig, ResNetConfig
from ostension.runtime import torch_generator

if TYPE_CHECKING:
    from ostension.model.clip import CLIP

Rule = Callable[[Tensor, torch.Generator, int, int], Tensor]  # parameter, generator, width, layers


def _normal(std: Callable[[int, int], float]) -> Rule:
    return lambda x, generator, width, layers: x.normal_(0, std(width, layers), generator=generator)


def _constant(value: float) -> Rule:
    return lambda x, generator, width, layers: x.fill_(value)


def _xavier(x: Tensor, generator: torch.Generator, width: int, layers: int) -> Tensor:
    return torch.nn.init.xavier_uniform_(x.view(-1, x.shape[-1]), generator=generator)


def _fan(x: Tensor, generator: torch.Generator, width: int, layers: int) -> Tensor:
    fan_in = x[0].numel() if x.ndim > 1 else width  # a bias is given its layer's inputs as the width
    return x.uniform_(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in), generator=generator)


_width = _normal(lambda width, layers: width**-0.5)
_residual = _normal(lambda width, layers: width**-0.5 * (2 * layers) ** -0.5)

TOKENS = "text.token_embedding.weight"
CONFIGURED = (TOKENS, "logit_scale", "logit_bias")  # the model's configuration has their values
TABLE: tuple[tuple[str, Rule], ...] = (
    # text
    # token_embedding: N(0, config.init_token_std)
    ("text.positional_embedding", _normal(lambda width, layers: 0.01)),
    ("text.type_embedding", _normal(lambda width, layers: 0.01)),
    ("text.text_projection", _width),
    ("text.proj", _width),
    ("text.text_projection_bias", _constant(0.0)),
    ("text.*.attn.in_proj_weight", _width),
    ("text.*.attn.out_proj.weight", _residual),
    ("text.*.mlp.c_fc.weight", _normal(lambda width, layers: (2 * width) ** -0.5)),
    ("text.*.mlp.c_proj.weight", _residual),
    # image
    ("visual.attnpool.positional_embedding", _width),
    ("visual.attnpool.*.weight", _width),
    ("visual.class_embedding", _width),
    ("visual.positional_embedding", _width),
    ("visual.proj", _width),
    ("visual.attn_pool.probe", _xavier),
    ("visual.*attn.in_proj_weight", _xavier),
    ("visual.layer*.bn3.weight", _constant(0.0)),  # every bottleneck starts as its shortcut
    # both
    ("*attn.in_proj_bias", _constant(0.0)),
    ("*attn.out_proj.bias", _constant(0.0)),
    ("*.ln*.weight", _constant(1.0)),
    ("*.ln*.bias", _constant(0.0)),
    ("*.bn*.weight", _constant(1.0)),
    ("*.bn*.bias", _constant(0.0)),
    ("*.downsample.1.weight", _constant(1.0)),
    ("*.downsample.1.bias", _constant(0.0)),
    ("*.weight", _fan),
    ("*.bias", _fan),
    # the running statistics of batch norm
    ("*.running_mean", _constant(0.0)),
    ("*.running_var", _constant(1.0)),
    ("*.num_batches_tracked", _constant(0.0)),
)


@torch.no_grad()
def initialise(model: CLIP, seed: int) -> None:
    """Fill every parameter and buffer of `model` by the table."""
    config = model.config
    shapes = {name: tensor for name, tensor in model.state_dict().items() if name not in CONFIGURED and ".hf." not in name}
    for name, tensor in shapes.items():
        rule = next(rule for pattern, rule in TABLE if fnmatchcase(name, pattern))
        width, layers = _width_and_layers(name, config)
        if rule is _fan and tensor.ndim == 1:
            width = shapes[name.removesuffix("bias") + "weight"][0].numel()
        rule(tensor, torch_generator(seed, "init", name), width, layers)
    for tower in (model.visual, model.text):
        if hasattr(tower, "redraw"):
            tower.redraw(seed)
    if hasattr(model.text, "token_embedding"):
        model.text.token_embedding.weight.normal_(0, config.init_token_std, generator=torch_generator(seed, "init", TOKENS))
    model.logit_scale.fill_(config.init_logit_scale)
    if model.logit_bias is not None:
        assert config.init_logit_bias is not None
        model.logit_bias.fill_(config.init_logit_bias)


def _width_and_layers(name: str, config: ModelConfig) -> tuple[int, int]:
    if name.startswith("text."):
        return config.text.width, config.text.depth
    if isinstance(config.vision, ResNetConfig):
        positions = config.vision.grid**2 if name == "visual.proj" else 1
        return config.vision.channels * positions, config.vision.depth
    return config.vision.width, config.vision.depth
