"""The head of a probe: how it starts, its scale, what is done to the rows before it, and how it trains.

    logits = exp(s) (W z + b),   z = rows x, standardised by batch norm without weights, and made unit rows if wanted

The start is *random*, *text* (W the rows of the class texts, b = 0), or *merged*: the projection P of the image tower is
dropped, the head stands on the wider rows before it as W P^T, and so starts as the zero-shot classifier, because
W (P^T x) = (W P^T) x for every row.

Letters: N rows, B batch, D width of the rows, C classes, E embedding.
Source: ELEVATER, section 3.4 (language-augmented initialisation); `Classifier` of the toolkit.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ostension.errors import ConfigError
from ostension.evals.inputs import Inputs
from ostension.runtime import torch_generator
from ostension.shapes import Float

CLIP_SCALE = 1 / 0.07  # CLIP's scale before training


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """A head.

    Attributes:
        init: "random", "text", or "merged" with the image tower's projection.
        normalize: make the rows unit rows after batch norm.
        scale_init: the scale's logarithm s at the start: "none" 0, "pretrained" the model's, "clip" ln(1 / 0.07), "ln_cls"
            ln ln C.
        train_scale: whether s is trained.
        batch_norm: standardise the rows by the batch in training, by running statistics afterwards.
    """

    init: Literal["random", "text", "merged"] = "text"
    normalize: bool = False
    scale_init: Literal["none", "pretrained", "clip", "ln_cls"] = "none"
    train_scale: bool = False
    batch_norm: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """Where training starts: weight (C, D), bias (C,), the scale's logarithm, all float32."""

    weight: Tensor
    bias: Tensor
    log_scale: float


def start_of(
    config: HeadConfig, width: int, classifier: Float[np.ndarray, "C E"], inputs: Inputs, *, seed: int
) -> Start:
    """The start of a head on rows of `width` numbers.

    Args:
        classifier: unit rows of the class texts; a random head takes only their number.

    Raises:
        ConfigError: for a merged head where the projection is not known.
    """
    classes = len(classifier)
    rows = torch.from_numpy(np.asarray(classifier, np.float32))
    bias = torch.zeros(classes)
    if config.init == "random":
        generator = torch_generator(seed, "elevater", "head")
        bound = width**-0.5  # torch's own rule for a linear layer, for weights and bias
        rows = torch.empty(classes, width).uniform_(-bound, bound, generator=generator)
        bias = bias.uniform_(-bound, bound, generator=generator)
    elif config.init == "merged":
        matrix, offset = projection_of(inputs)
        bias = rows @ torch.from_numpy(np.asarray(offset, np.float32))
        rows = rows @ torch.from_numpy(np.asarray(matrix, np.float32)).T
    scales = {"none": 0.0, "pretrained": math.log(inputs.scale), "clip": math.log(CLIP_SCALE)}
    log_scale = scales[config.scale_init] if config.scale_init in scales else math.log(math.log(classes))
    return Start(weight=rows.contiguous(), bias=bias, log_scale=log_scale)


def projection_of(inputs: Inputs) -> tuple[Float[np.ndarray, "D E"], Float[np.ndarray, " E"]]:
    """The image tower's projection.

    Raises:
        ConfigError: where it is not known.
    """
    found = inputs.projection()
    if found is None:
        raise ConfigError(
            f"the projection of {inputs.model_name} is not known", expected="a model whose image tower ends in a projection"
        )
    return found


class Head(nn.Module):
    """The head as a module: what trains one at a time, and what fine-tuning puts on a tower."""

    def __init__(self, config: HeadConfig, start: Start):
        super().__init__()
        self.normalize = config.normalize
        classes, width = start.weight.shape
        self.norm = nn.BatchNorm1d(width, affine=False) if config.batch_norm else nn.Identity()
        self.linear = nn.Linear(width, classes)
        self.linear.weight.data = start.weight.clone()
        self.linear.bias.data = start.bias.clone()
        scale = torch.tensor(start.log_scale, dtype=start.weight.dtype)
        self.log_scale = nn.Parameter(scale, requires_grad=config.train_scale)

    def forward(self, rows: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        rows = self.norm(rows)
        if self.normalize:
            rows = F.normalize(rows, dim=-1)
        return self.log_scale.exp() * self.linear(rows)


def loss_of(logits: Float[Tensor, "B C"], targets: Tensor) -> Float[Tensor, ""]:
    """Cross-entropy for (B,) classes; the mean of the binary one over (B, C) labels."""
    if targets.ndim == 1:
        return F.cross_entropy(logits, targets)
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))
