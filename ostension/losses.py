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

It is the plain form to rounding. Products take nine tenths of its time, four of them against the plain form's three; it pays
for the fourth with one exponential a cell and direction where the plain form takes two, exp(z_ij - c) with one c for all of
a block, of which rows and columns take their sums, and with blocks that stay in the cache. 512 rows are a good size.

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
import torch.nn.functional as F
from torch import Tensor

from ostension.config import require
from ostension.errors import ConfigError
from ostension.shapes import Float, Int
from ostension.world import World, current

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
) -> BatchLoss:
    """The loss that `config` names, over one batch of unit embeddings; of several processes each brings its part of the batch.

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
    groups: Int[Tensor, " B"] | Int[Tensor, "B K"] | None = None,
    duplicates: Duplicates = "separate",
    chunk_rows: int | None = None,
) -> BatchLoss:
    """Symmetric InfoNCE, equation (2); ln B where all logits are equal, 0 for a batch of one.

    Args:
        groups: a number per pair, or K of them (see `linked`); read unless `duplicates` is "separate".
        chunk_rows: rows of the similarity matrix at a time, None for the plain form (in several processes: all b at once).
    """
    image, text, scale = _at_least_float32(image), _at_least_float32(text), _at_least_float32(scale)
    world = current()
    cells = _Cells(None if duplicates == "separate" else groups, duplicates, len(text), image.device, world, spread=True)
    if chunk_rows is not None or world.size > 1:
        return BatchLoss(*_ChunkedContrastive.apply(image, text, scale, cells, chunk_rows or len(image)))
    logits = cells.without_ignored((scale * image) @ text.T, 0)
    log_sums = logits.logsumexp(1).sum() + logits.logsumexp(0).sum()
    loss = (log_sums - 2 * cells.sum_of_targets(logits, 0)) / (2 * len(text))
    return BatchLoss(loss, *cells.accuracies(logits.detach()))


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
    cells = _Cells(None if duplicates == "separate" else groups, duplicates, len(text), image.device, world, spread=False)
    if chunk_rows is not None or world.size > 1:
        return BatchLoss(*_ChunkedSigmoid.apply(image, text, scale, bias, cells, chunk_rows or len(image)))
    logits = cells.without_ignored((scale * image) @ text.T + bias, 0)
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


def linked(groups: Int[Tensor, "B K"]) -> Int[Tensor, " B"]:
    """One number a pair, equal for pairs that have one of their K numbers in common (in its column), or are linked by others.

    So pairs with the same image or the same caption are of one group; the number is the first row of it.
    """
    columns = [torch.unique(column, return_inverse=True)[1] for column in groups.unbind(1)]
    labels = torch.arange(len(groups), device=groups.device)
    while True:
        before = labels
        for members in columns:
            lowest = torch.full_like(labels, len(labels)).scatter_reduce(0, members, labels, "amin")
            labels = lowest[members]
        if torch.equal(before, labels):
            return labels


class _Cells:
    """What each cell of the similarity matrix is, for blocks of rows that begin at some offset of the columns.

    With `spread` a group's targets sum to 1 in each row and column (contrastive); without, each is 1 (sigmoid).

    Attributes:
        offset: the column of this process's first row.
        num_columns: B, of all processes.
    """

    def __init__(
        self, groups: Tensor | None, duplicates: str, num_rows: int, device: torch.device, world: World, *, spread: bool
    ):
        self.members = self.sizes = None
        self.ignore, self.device, self.world, self.spread = duplicates == "ignore", device, world, spread
        self.offset, self.num_columns = world.rank * num_rows, world.size * num_rows
        if groups is not None:
            everyone = world.rows(groups)
            if everyone.ndim == 2:
                everyone = linked(everyone)
            _, self.members, counts = torch.unique(everyone, return_inverse=True, return_counts=True)
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
        """The share of rows from `offset` whose best column is theirs, or of their group; and so for columns."""
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

    def see(self, logits: Tensor, offset: int) -> Tensor:
        """Take in the best rows of the block that begins at `offset`; its columns' maxima."""
        maxima = logits.amax(0)
        better = (maxima > self.maxima).nonzero()[:, 0]
        # amax is thirty times as fast as max with places, and after some blocks few columns find a better row.
        if 2 * len(better) > len(maxima):
            self.best[better] = logits.argmax(0)[better] + offset
        else:
            self.best[better] = logits[:, better].T.contiguous().argmax(1) + offset
        raised = torch.maximum(maxima, self.maxima)
        self.totals *= (self.maxima - raised).exp_()
        self.maxima.copy_(raised)
        return maxima

    def add(self, sums: Tensor, shift: Tensor | float) -> None:
        """Take in sum_i exp(z_ij - shift) of the block that was seen."""
        self.totals += sums * _bounded_exp(shift - self.maxima)

    def put_together(self, world: World) -> None:
        """Take in the rows of the other processes."""
        if world.size == 1:
            return
        maxima = world.maximum(self.maxima)
        self.totals = world.sum(self.totals * (self.maxima - maxima).exp())
        beyond = torch.iinfo(self.best.dtype).max
        self.best = world.minimum(torch.where(self.maxima == maxima, self.best, beyond))  # the first row, as in `add`
        self.maxima = maxima

    def log_sums(self) -> Tensor:
        """lse over all rows so far, (B,)."""
        return self.maxima + self.totals.log()


# Of exponentials around one shift for a whole block, what is within exp(-60) of it is exact to float32's rounding: there
# are 27 more powers of e down to its smallest numbers, and what is smaller than exp(-17) of a sum does not change it.
REACH = 60.0


def _bounded_exp(value: Tensor) -> Tensor:
    """exp, finite where it is multiplied by a sum of nothing."""
    return value.clamp(max=REACH).exp_()


def _shift(row_maxima: Tensor, column_maxima: Tensor) -> float | None:
    """What may be taken off all logits of a block before the exponential; None where they are too far apart."""
    top = row_maxima.max()
    seen = torch.where(column_maxima == -math.inf, top, column_maxima)  # columns that are ignored throughout
    near = torch.minimum(row_maxima.min(), seen.min()) > top - REACH
    return float(top) if near else None


def _sums(rows: Tensor, columns: Tensor, scale: Tensor, cells: _Cells, chunk_rows: int):
    """Row log-sums (b,), the columns' running sums over these rows, sum T * z, best column of every row, a shift per block."""
    running, block = _Columns(len(columns), columns), _block(rows, columns, chunk_rows)
    # Made before the first block: small tensors that stay, made between two blocks, would each take a hole that the next
    # block does not fit into any more (1 GB instead of 0.2 at 16,384 pairs).
    row_sums, row_best = rows.new_empty(len(rows)), torch.empty(len(rows), dtype=torch.long, device=rows.device)
    targets, shifts = rows.new_zeros(()), []
    for start in range(0, len(rows), chunk_rows):
        part, offset = slice(start, start + chunk_rows), cells.offset + start
        logits = _product(scale * rows[part], columns, block)
        logits = cells.without_ignored(logits, offset)
        targets += cells.sum_of_targets(logits, offset)
        row_maxima, row_best[part] = logits.max(1)
        column_maxima = running.see(logits, offset)
        shifts.append(_shift(row_maxima, column_maxima))
        if shifts[-1] is None:
            row_sums[part] = logits.logsumexp(1)
            running.add(logits.sub_(running.maxima).exp_().sum(0), running.maxima)
        else:
            exponentials = logits.sub_(shifts[-1]).exp_()
            row_sums[part] = exponentials.sum(1).log_() + shifts[-1]
            running.add(exponentials.sum(0), shifts[-1])
    return row_sums, running, targets, row_best, shifts


def _block(rows: Tensor, columns: Tensor, chunk_rows: int) -> Tensor:
    """Memory for one block of similarities."""
    return rows.new_empty(min(chunk_rows, len(rows)), len(columns))


def _product(rows: Tensor, columns: Tensor, block: Tensor) -> Tensor:
    """rows @ columns.T, in the block."""
    return torch.mm(rows, columns.T, out=block[: len(rows)])


def _gradients(rows, columns, scale, bias, cells: _Cells, chunk_rows: int, cell_gradient):
    """Gradients of rows (b, E), of the same rows of the columns, of scale and bias; times the number of processes.

    `cell_gradient(z, start)` gives dL/dz of the block from row `start` of this process; it may overwrite z.
    """
    row_gradient, column_gradient = torch.empty_like(rows), torch.zeros_like(columns)
    bias_gradient, block = torch.zeros_like(scale), _block(rows, columns, chunk_rows)
    for start in range(0, len(rows), chunk_rows):
        chunk = rows[start : start + chunk_rows]
        logits = _product(scale * chunk, columns, block)
        if bias is not None:
            logits.add_(bias)
        cell_gradients = cell_gradient(cells.without_ignored(logits, cells.offset + start), start)
        torch.mm(cell_gradients, columns, out=row_gradient[start : start + len(chunk)])
        column_gradient.addmm_(cell_gradients.T, chunk)
        if bias is not None:
            bias_gradient += cell_gradients.sum()
    scale_gradient = (row_gradient * rows).sum()
    column_gradient = cells.world.sum_to_rows(column_gradient)
    times = cells.world.size
    factor = scale if times == 1 else scale * times
    return row_gradient.mul_(factor), column_gradient.mul_(factor), scale_gradient * times, bias_gradient * times


class _ChunkedContrastive(torch.autograd.Function):
    """Equation (2) in row chunks with its own backward: two passes, each one block of similarities at a time."""

    @staticmethod
    def forward(ctx, image, text, scale, cells, chunk_rows):
        columns = cells.world.rows(text)
        row_sums, running, targets, row_best, shifts = _sums(image, columns, scale, cells, chunk_rows)
        running.put_together(cells.world)
        column_sums = running.log_sums()
        ctx.save_for_backward(image, columns, scale, row_sums, column_sums)
        ctx.cells, ctx.chunk_rows, ctx.shifts = cells, chunk_rows, shifts
        row_part, row_hits = cells.world.sum(
            torch.stack([row_sums.sum() - 2 * targets, cells.hit_rate(row_best, cells.offset).to(targets)])
        )
        accuracies = (row_hits.float() / cells.world.size, cells.hit_rate(running.best))
        ctx.mark_non_differentiable(*accuracies)
        return (row_part + column_sums.sum()) / (2 * len(columns)), *accuracies

    @staticmethod
    def backward(ctx, gradient, *_):
        image, columns, scale, row_sums, column_sums = ctx.saved_tensors
        cells, half = ctx.cells, 1 / (2 * len(columns))

        def cell_gradient(logits: Tensor, start: int) -> Tensor:
            log_sums, shift = row_sums[start : start + len(logits), None], ctx.shifts[start // ctx.chunk_rows]
            if shift is None:
                block = (logits - log_sums).exp_()
                block += logits.sub_(column_sums).exp_()
                block.mul_(half)
            else:
                factors = half * _bounded_exp(shift - log_sums) + half * _bounded_exp(shift - column_sums)
                block = logits.sub_(shift).exp_().mul_(factors)
            cells.subtract_targets(block, cells.offset + start, 2.0 * half)
            return block

        found = _gradients(image, columns, scale, None, cells, ctx.chunk_rows, cell_gradient)
        return *(value.mul_(gradient) for value in found[:3]), None, None


class _ChunkedSigmoid(torch.autograd.Function):
    """Equation (3) in row chunks with its own backward."""

    @staticmethod
    def forward(ctx, image, text, scale, bias, cells, chunk_rows):
        columns = cells.world.rows(text)
        total, running, block = image.new_zeros(()), _Columns(len(columns), columns), _block(image, columns, chunk_rows)
        row_best = torch.empty(len(image), dtype=torch.long, device=image.device)
        for start in range(0, len(image), chunk_rows):
            offset = cells.offset + start
            logits = _product(scale * image[start : start + chunk_rows], columns, block).add_(bias)
            logits = cells.without_ignored(logits, offset)
            running.see(logits, offset)
            row_best[start : start + chunk_rows] = logits.argmax(1)
            total += _softplus(logits).sum() - cells.sum_of_targets(logits, offset)
        running.put_together(cells.world)
        ctx.save_for_backward(image, columns, scale, bias)
        ctx.cells, ctx.chunk_rows = cells, chunk_rows
        row_hits = cells.hit_rate(row_best, cells.offset).to(total)
        total, row_hits = cells.world.sum(torch.stack([total, row_hits]))
        accuracies = (row_hits.float() / cells.world.size, cells.hit_rate(running.best))
        ctx.mark_non_differentiable(*accuracies)
        return total / len(columns), *accuracies

    @staticmethod
    def backward(ctx, gradient, *_):
        image, columns, scale, bias = ctx.saved_tensors
        cells = ctx.cells

        def cell_gradient(logits: Tensor, start: int) -> Tensor:
            block = logits.sigmoid_()
            cells.subtract_targets(block, cells.offset + start, 1.0)
            return block.div_(len(columns))

        found = _gradients(image, columns, scale, bias, cells, ctx.chunk_rows, cell_gradient)
        return *(value.mul_(gradient) for value in found), None, None
