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

**Chunks.** The chunked form never holds the B x B matrix: it walks over blocks of rows, keeps the two log-sums, and
computes each block anew on the way back, where with P the softmax of the row and Q of the column

    dL/dz_ij = (P_ij + Q_ij - 2 T_ij) / 2B,   dL/dx_i = scale * sum_j dL/dz_ij y_j,   dL/dscale = sum_i x_i . (dL/dx_i) / scale.

It is the plain form to rounding. A block of rows starts at `offset` of the columns, so that a process which holds only
its own rows is one more block: it exchanges the column sums between `_column_sums` and the loss, nothing else.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ostension.config import require
from ostension.errors import ConfigError
from ostension.shapes import Float, Int

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
    groups: Int[Tensor, " B"] | None = None,
) -> BatchLoss:
    """The loss that `config` names, over one batch of unit embeddings.

    Raises:
        ConfigError: if duplicates should be seen and the batch brings no groups, or the sigmoid loss has no bias.
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
        return sigmoid_loss(image, text, scale, bias, groups=groups, duplicates=config.duplicates, chunk_rows=config.chunk_rows)
    return contrastive_loss(image, text, scale, groups=groups, duplicates=config.duplicates, chunk_rows=config.chunk_rows)


def contrastive_loss(
    image: Float[Tensor, "B E"],
    text: Float[Tensor, "B E"],
    scale: Float[Tensor, ""],
    *,
    groups: Int[Tensor, " B"] | None = None,
    duplicates: Duplicates = "separate",
    chunk_rows: int | None = None,
) -> BatchLoss:
    """Symmetric InfoNCE, equation (2); ln B where all logits are equal, 0 for a batch of one.

    Args:
        groups: a number per pair, read unless `duplicates` is "separate".
        chunk_rows: rows of the similarity matrix at a time, None for the plain form.
    """
    image, text, scale = _at_least_float32(image), _at_least_float32(text), _at_least_float32(scale)
    cells = _Cells(None if duplicates == "separate" else groups, duplicates, len(text), image.device, spread=True)
    if chunk_rows is not None:
        return BatchLoss(*_ChunkedContrastive.apply(image, text, scale, cells, chunk_rows))
    logits = cells.without_ignored(scale * (image @ text.T), 0)
    log_sums = logits.logsumexp(1).sum() + logits.logsumexp(0).sum()
    loss = (log_sums - 2 * cells.sum_of_targets(logits, 0)) / (2 * len(text))
    return BatchLoss(loss, *cells.accuracies(logits.detach()))


def sigmoid_loss(
    image: Float[Tensor, "B E"],
    text: Float[Tensor, "B E"],
    scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
    *,
    groups: Int[Tensor, " B"] | None = None,
    duplicates: Duplicates = "separate",
    chunk_rows: int | None = None,
) -> BatchLoss:
    """The pairwise sigmoid loss, equation (3), per image.

    With `neutral_sigmoid_bias(B)` and no knowledge (x . y = 0) every gradient through the bias cancels over the batch.
    """
    image, text, scale, bias = (_at_least_float32(value) for value in (image, text, scale, bias))
    cells = _Cells(None if duplicates == "separate" else groups, duplicates, len(text), image.device, spread=False)
    if chunk_rows is not None:
        return BatchLoss(*_ChunkedSigmoid.apply(image, text, scale, bias, cells, chunk_rows))
    logits = cells.without_ignored(scale * (image @ text.T) + bias, 0)
    loss = (_softplus(logits).sum() - cells.sum_of_targets(logits, 0)) / len(image)
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


def _softplus(value: Tensor) -> Tensor:
    # torch's softplus is the identity above 20, which is off by 2e-9 there.
    return -F.logsigmoid(-value)


class _Cells:
    """What each cell of the similarity matrix is, for blocks of rows that begin at some offset of the columns.

    With `spread` a group's targets sum to 1 in each row and column (contrastive); without, each is 1 (sigmoid).
    """

    def __init__(self, groups: Tensor | None, duplicates: str, num_columns: int, device: torch.device, *, spread: bool):
        self.members = self.sizes = None
        self.ignore, self.num_columns, self.device, self.spread = duplicates == "ignore", num_columns, device, spread
        if groups is not None:
            _, self.members, counts = torch.unique(groups, return_inverse=True, return_counts=True)
            self.sizes = counts[self.members]

    def same(self, offset: int, rows: int) -> Tensor:
        """Where row and column are of one group, (rows, B)."""
        assert self.members is not None
        return self.members[offset : offset + rows, None] == self.members

    def group_targets(self, offset: int, rows: int, dtype: torch.dtype) -> Tensor:
        """T for shared groups, (rows, B); as groups are symmetric, its columns sum to 1 as its rows do."""
        assert self.sizes is not None
        answers = self.same(offset, rows).to(dtype)
        return answers / self.sizes[offset : offset + rows, None] if self.spread else answers

    def sum_of_targets(self, logits: Tensor, offset: int) -> Tensor:
        """sum_ij T_ij z_ij over a block."""
        if self.members is None or self.ignore:
            return logits.diagonal(offset).sum()
        return (self.group_targets(offset, len(logits), logits.dtype) * logits).sum()

    def subtract_targets(self, block: Tensor, offset: int, weight: float) -> None:
        """block -= weight * T, in place."""
        if self.members is None or self.ignore:
            block.diagonal(offset).sub_(weight)
        else:
            block.sub_(self.group_targets(offset, len(block), block.dtype), alpha=weight)

    def without_ignored(self, logits: Tensor, offset: int) -> Tensor:
        """The logits with -inf in the cells that no sum may see."""
        if self.members is None or not self.ignore:
            return logits
        others = self.same(offset, len(logits))
        others.diagonal(offset).fill_(False)
        return logits.masked_fill(others, -math.inf)

    def hit_rate(self, best: Tensor, offset: int = 0) -> Tensor:
        """The share of rows whose best column is theirs, or of their group."""
        own = torch.arange(offset, offset + len(best), device=self.device)
        hits = best == own if self.members is None else self.members[best] == self.members[own]
        return hits.float().mean()

    def accuracies(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The hit rates of the rows and of the columns of the whole matrix."""
        return self.hit_rate(logits.argmax(1)), self.hit_rate(logits.argmax(0))


class _Columns:
    """Running log-sum and best row of every column, over blocks of rows."""

    def __init__(self, num_columns: int, like: Tensor):
        # Not -inf: a column that is ignored throughout a block would give inf - inf.
        self.maxima = like.new_full((num_columns,), torch.finfo(like.dtype).min)
        self.totals = like.new_zeros(num_columns)
        self.best = torch.zeros(num_columns, dtype=torch.long, device=like.device)

    def add(self, logits: Tensor, offset: int) -> None:
        """Take in the block of rows that begins at `offset`."""
        maxima, rows = logits.max(0)
        better = maxima > self.maxima
        self.best = torch.where(better, rows + offset, self.best)
        raised = torch.where(better, maxima, self.maxima)
        self.totals = self.totals * (self.maxima - raised).exp() + (logits - raised).exp_().sum(0)
        self.maxima = raised

    def log_sums(self) -> Tensor:
        """lse over all rows so far, (B,)."""
        return self.maxima + self.totals.log()


def _sums(rows: Tensor, columns: Tensor, scale: Tensor, cells: _Cells, chunk_rows: int, offset: int = 0):
    """Row log-sums (b,), the columns' running sums over these rows, sum T * z, and the best column of every row."""
    running = _Columns(len(columns), columns)
    row_sums, row_best, targets = [], [], rows.new_zeros(())
    for start in range(0, len(rows), chunk_rows):
        logits = (rows[start : start + chunk_rows] @ columns.T).mul_(scale)
        logits = cells.without_ignored(logits, offset + start)
        running.add(logits, offset + start)
        row_sums.append(logits.logsumexp(1))
        row_best.append(logits.argmax(1))
        targets += cells.sum_of_targets(logits, offset + start)
    return torch.cat(row_sums), running, targets, torch.cat(row_best)


def _gradients(rows, columns, scale, bias, cells: _Cells, chunk_rows: int, cell_gradient, offset: int = 0):
    """Gradients of rows (b, E), columns (B, E), scale and bias from `cell_gradient(z, start)`, which may overwrite z."""
    row_gradient, column_gradient = torch.empty_like(rows), torch.zeros_like(columns)
    bias_gradient = torch.zeros_like(scale)
    for start in range(0, len(rows), chunk_rows):
        chunk = rows[start : start + chunk_rows]
        logits = (chunk @ columns.T).mul_(scale)
        if bias is not None:
            logits.add_(bias)
        block = cell_gradient(cells.without_ignored(logits, offset + start), start)
        row_gradient[start : start + len(chunk)] = block @ columns
        column_gradient.addmm_(block.T, chunk)
        if bias is not None:
            bias_gradient += block.sum()
    scale_gradient = (row_gradient * rows).sum()
    return row_gradient.mul_(scale), column_gradient.mul_(scale), scale_gradient, bias_gradient


def _contrastive_cells(row_sums: Tensor, column_sums: Tensor, cells: _Cells, offset: int = 0):
    """dL/dz of equation (2) for blocks whose rows have these log-sums."""
    half = 1 / (2 * len(column_sums))

    def cell_gradient(logits: Tensor, start: int) -> Tensor:
        block = (logits - row_sums[start : start + len(logits), None]).exp_()
        block += logits.sub_(column_sums).exp_()
        cells.subtract_targets(block, offset + start, 2.0)
        return block.mul_(half)

    return cell_gradient


class _ChunkedContrastive(torch.autograd.Function):
    """Equation (2) in row chunks with its own backward: two passes, each one block of similarities at a time."""

    @staticmethod
    def forward(ctx, image, text, scale, cells, chunk_rows):
        row_sums, running, targets, row_best = _sums(image, text, scale, cells, chunk_rows)
        column_sums = running.log_sums()
        ctx.save_for_backward(image, text, scale, row_sums, column_sums)
        ctx.cells, ctx.chunk_rows = cells, chunk_rows
        accuracies = (cells.hit_rate(row_best), cells.hit_rate(running.best))
        ctx.mark_non_differentiable(*accuracies)
        return (row_sums.sum() + column_sums.sum() - 2 * targets) / (2 * len(text)), *accuracies

    @staticmethod
    def backward(ctx, gradient, *_):
        image, text, scale, row_sums, column_sums = ctx.saved_tensors
        of_cells = _contrastive_cells(row_sums, column_sums, ctx.cells)
        found = _gradients(image, text, scale, None, ctx.cells, ctx.chunk_rows, of_cells)
        return *(value * gradient for value in found[:3]), None, None


class _ChunkedSigmoid(torch.autograd.Function):
    """Equation (3) in row chunks with its own backward."""

    @staticmethod
    def forward(ctx, image, text, scale, bias, cells, chunk_rows):
        total, row_best, running = image.new_zeros(()), [], _Columns(len(text), text)
        for start in range(0, len(image), chunk_rows):
            logits = cells.without_ignored((image[start : start + chunk_rows] @ text.T).mul_(scale).add_(bias), start)
            running.add(logits, start)
            row_best.append(logits.argmax(1))
            total += _softplus(logits).sum() - cells.sum_of_targets(logits, start)
        ctx.save_for_backward(image, text, scale, bias)
        ctx.cells, ctx.chunk_rows = cells, chunk_rows
        accuracies = (cells.hit_rate(torch.cat(row_best)), cells.hit_rate(running.best))
        ctx.mark_non_differentiable(*accuracies)
        return total / len(image), *accuracies

    @staticmethod
    def backward(ctx, gradient, *_):
        image, text, scale, bias = ctx.saved_tensors

        def cell_gradient(logits: Tensor, start: int) -> Tensor:
            block = logits.sigmoid_()
            ctx.cells.subtract_targets(block, start, 1.0)
            return block.div_(len(image))

        found = _gradients(image, text, scale, bias, ctx.cells, ctx.chunk_rows, cell_gradient)
        return *(value * gradient for value in found), None, None
