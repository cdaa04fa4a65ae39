"""Contrastive losses over a batch of pairs: symmetric InfoNCE and the pairwise sigmoid, plain and in row chunks.

Both read unit embeddings and the multiplier `scale` (the model's `exp(logit_scale)`), work in float32 or better whatever
the towers' dtype, and give the loss with the accuracies in the batch. With images x_i, texts y_j and

    z_ij = scale * x_i . y_j  (+ bias),        T_ij = [i = j]                                              (1)

the contrastive loss (Radford et al. 2021, Figure 3) is the mean of two cross-entropies over B rows and B columns,

    L = 1/2B sum_i (lse_j z_ij - sum_j T_ij z_ij)  +  1/2B sum_j (lse_i z_ij - sum_i T_ij z_ij)           (2)

and the sigmoid loss (Zhai et al. 2023, equation 1 and algorithm 1) treats each of the B^2 cells as a yes or no,

    L = -1/B sum_ij log sigmoid(±z_ij) = 1/B (sum_ij softplus(z_ij) - sum_ij T_ij z_ij).                   (3)

**Duplicates.** Two pairs of one group (the same caption, another drawing of the same thing) are not each other's
negatives. "share" spreads the target over the group, T_ij = [g_i = g_j] / |g_i| (for the sigmoid: each cell of the group
is a yes); "ignore" leaves the group's other cells out of both sums; "separate" is (1).

**Noise.** A pair that is noise with probability eps_i keeps 1 - eps_i of its target and gives the rest to all others alike, in
both directions (`_noisy_cells`); only the contrastive loss knows this.

**Chunks.** The chunked form never holds the B x B matrix; `_chunked` says how. It is the plain form to rounding, and costs
four products where that takes three.

**Processes.** Of W processes (`world.current()`) each brings its b = B / W rows of both sides and gets the loss of the whole
batch. The texts travel to all (B x E numbers); the images stay, and each process computes its b rows of (1) against all B
columns, whole or in chunks. Then the columns' log-sums are put together (three times B numbers), and on the way back the
texts' gradients are summed where they belong. Nobody ever holds more than b x B logits: at B = 32,768 in 64 processes that
is 67 MB in float32, or with `chunk_rows` = 128, 17 MB, beside 4.3 GB for the whole matrix.

Gradients are W times this process's share of dL. The mean over the processes, which data parallelism takes, is then exactly
the gradient of L: for the towers, for `scale` and for `bias`, for any W. So a loss that is a mean over pairs, without any
exchange, may be added as it is.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ostension.config import require
from ostension.errors import ConfigError
from ostension.losses._cells import Cells, linked
from ostension.losses._chunked import ChunkedContrastive, ChunkedSigmoid, softplus
from ostension.losses._noisy_cells import NoisyCells
from ostension.shapes import Float, Int
from ostension.world import ALONE, current

__all__ = [
    "BatchLoss", "Duplicates", "LossConfig", "batch_loss", "contrastive_loss", "linked", "neutral_sigmoid_bias",
    "pair_losses", "sigmoid_loss",
]  # fmt: skip

Duplicates = Literal["separate", "share", "ignore"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Which loss, what duplicates count as, and whether the similarity matrix is held whole.

    Attributes:
        kind: "contrastive" is (2), "sigmoid" is (3) and needs a model with a bias.
        duplicates: what two pairs of one group are to each other; other than "separate" needs groups in the batch.
        chunk_rows: rows of the similarity matrix held at a time; None holds all B.
    """

    kind: Literal["contrastive", "sigmoid"] = "contrastive"
    duplicates: Duplicates = "separate"
    chunk_rows: int | None = None

    def __post_init__(self):
        require(self.chunk_rows is None or self.chunk_rows >= 1, "loss.chunk_rows", self.chunk_rows, "1 or more, or nothing")


class BatchLoss(NamedTuple):
    """A loss with the shares of images whose best text is theirs and of texts whose best image is theirs (detached)."""

    loss: Tensor
    image_accuracy: Tensor
    text_accuracy: Tensor


def batch_loss(
    image: Float[Tensor, "B E"],
    text: Float[Tensor, "B E"],
    scale: Float[Tensor, ""],
    *,
    config: LossConfig,
    bias: Float[Tensor, ""] | None = None,
    groups: Int[Tensor, " B"] | Int[Tensor, "B K"] | None = None,
    noise: Float[Tensor, " B"] | None = None,
) -> BatchLoss:
    """The loss that `config` names, over one batch of unit embeddings; of several processes each brings its part of the batch.

    Raises:
        ConfigError: if duplicates should be seen and the batch brings no groups, if the sigmoid loss has no bias, or if it is
            told of noise.
    """
    if config.duplicates != "separate" and groups is None:
        raise ConfigError(
            f"loss.duplicates is {config.duplicates!r}, but the batches bring no groups",
            expected="batches whose pairs carry a group number each",
            fix="use 'separate'",
        )
    if config.kind == "sigmoid":
        if bias is None:
            raise ConfigError(
                "the sigmoid loss needs a model with a logit bias",
                expected="init_logit_bias in the model's configuration",
                fix="for a batch of B pairs, -log(B - 1) is the neutral start",
            )
        if noise is not None:
            raise ConfigError("the sigmoid loss has no targets that know of noise", expected="loss.kind 'contrastive'")
        return sigmoid_loss(image, text, scale, bias, groups=groups, duplicates=config.duplicates, chunk_rows=config.chunk_rows)
    return contrastive_loss(
        image, text, scale, groups=groups, duplicates=config.duplicates, chunk_rows=config.chunk_rows, noise=noise
    )  # fmt: skip


def contrastive_loss(
    image: Float[Tensor, "B E"],
    text: Float[Tensor, "B E"],
    scale: Float[Tensor, ""],
    *,
    groups: Int[Tensor, " B"] | Int[Tensor, "B K"] | None = None,
    duplicates: Duplicates = "separate",
    chunk_rows: int | None = None,
    noise: Float[Tensor, " B"] | None = None,
) -> BatchLoss:
    """Symmetric InfoNCE, equation (2); ln B where all logits are equal, 0 for a batch of one.

    Args:
        groups: a number per pair, or K of them (see `linked`); read unless `duplicates` is "separate".
        chunk_rows: rows of the similarity matrix at a time, None for the plain form (in several processes: all b at once).
        noise: eps_i, 0 to 1, how likely each pair is noise; None is 0 for all.
    """
    image, text, scale = _at_least_float32(image), _at_least_float32(text), _at_least_float32(scale)
    world, seen = current(), None if duplicates == "separate" else groups
    cells = Cells(seen, duplicates, len(text), image.device, world, spread=True)
    if noise is not None:
        cells = NoisyCells(noise.to(image.dtype), seen, duplicates, len(text), image.device, world)
    if chunk_rows is not None or world.size > 1:
        return BatchLoss(*ChunkedContrastive.apply(image, text, scale, cells, chunk_rows or len(image)))
    logits = cells.without_ignored((scale * image) @ text.T, 0)
    log_sums = logits.logsumexp(1).sum() + logits.logsumexp(0).sum()
    loss = (log_sums - 2 * cells.sum_of_targets(logits, 0)) / (2 * len(text))
    return BatchLoss(loss, *cells.accuracies(logits.detach()))


def pair_losses(
    image: Float[Tensor, "B E"],
    text: Float[Tensor, "B E"],
    scale: Float[Tensor, ""],
    *,
    groups: Int[Tensor, " B"] | Int[Tensor, "B K"] | None = None,
    duplicates: Duplicates = "separate",
) -> Float[Tensor, " B"]:
    """Each pair's part of equation (2): the mean of its row's and its column's cross-entropy. Their mean is the loss.

    Of this process's rows alone, in the plain form.
    """
    image, text, scale = _at_least_float32(image), _at_least_float32(text), _at_least_float32(scale)
    seen = None if duplicates == "separate" else groups
    cells = Cells(seen, duplicates, len(text), image.device, ALONE, spread=True)
    logits = cells.without_ignored((scale * image) @ text.T, 0)
    if cells.members is None or cells.ignore:
        rows = columns = logits.diagonal()
    else:
        weighted = cells.group_targets(0, len(logits), logits.dtype) * logits
        rows, columns = weighted.sum(1), weighted.sum(0)
    return (logits.logsumexp(1) - rows + logits.logsumexp(0) - columns) / 2


def sigmoid_loss(
    image: Float[Tensor, "B E"],
    text: Float[Tensor, "B E"],
    scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
    *,
    groups: Int[Tensor, " B"] | Int[Tensor, "B K"] | None = None,
    duplicates: Duplicates = "separate",
    chunk_rows: int | None = None,
) -> BatchLoss:
    """The pairwise sigmoid loss, equation (3), per image.

    With `neutral_sigmoid_bias(B)` and no knowledge (x . y = 0) every gradient through the bias cancels over the batch.
    """
    image, text, scale, bias = (_at_least_float32(value) for value in (image, text, scale, bias))
    world = current()
    cells = Cells(None if duplicates == "separate" else groups, duplicates, len(text), image.device, world, spread=False)
    if chunk_rows is not None or world.size > 1:
        return BatchLoss(*ChunkedSigmoid.apply(image, text, scale, bias, cells, chunk_rows or len(image)))
    logits = cells.without_ignored((scale * image) @ text.T + bias, 0)
    loss = (softplus(logits).sum() - cells.sum_of_targets(logits, 0)) / len(image)
    return BatchLoss(loss, *cells.accuracies(logits.detach()))


def neutral_sigmoid_bias(batch_size: int) -> float:
    """The bias at which a model that knows nothing expects one yes in `batch_size` cells: -ln(B - 1).

    The paper's -10 is this for B = 22,027 and starves small batches of gradient (open_clip issue 650).
    """
    require(batch_size >= 2, "batch_size", batch_size, "2 or more: a single pair has no negatives")
    return -math.log(batch_size - 1)


def _at_least_float32(value: Tensor) -> Tensor:
    # Similarities in bfloat16 move the loss by per cents (measured: 4 % at N = 2,048), so the towers' dtype ends here.
    return value if value.dtype == torch.float64 else value.float()
