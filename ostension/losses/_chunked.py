"""The losses in row chunks, with backward passes of their own: equations (2) and (3) of the package, in one block of memory.

**Chunks.** The chunked form never holds the B x B matrix: it walks over blocks of rows, keeps the two log-sums, and
computes each block anew on the way back, where with P the softmax of the row and Q of the column

    dL/dz_ij = (P_ij + Q_ij - 2 T_ij) / 2B,   dL/dx_i = scale * sum_j dL/dz_ij y_j,   dL/dscale = sum_i x_i . (dL/dx_i) / scale.

It is the plain form to rounding. Products take nine tenths of its time, four of them against the plain form's three; it pays
for the fourth with one exponential a cell and direction where the plain form takes two, exp(z_ij - c) with one c for all of
a block, of which rows and columns take their sums, and with blocks that stay in the cache. 512 rows are a good size.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ostension.losses._cells import Cells
from ostension.world import World


def softplus(value: Tensor) -> Tensor:
    # torch's softplus is the identity above 20, which is off by 2e-9 there.
    return -F.logsigmoid(-value)


class Columns:
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


def shift_of(row_maxima: Tensor, column_maxima: Tensor) -> float | None:
    """What may be taken off all logits of a block before the exponential; None where they are too far apart."""
    top = row_maxima.max()
    seen = torch.where(column_maxima == -math.inf, top, column_maxima)  # columns that are ignored throughout
    near = torch.minimum(row_maxima.min(), seen.min()) > top - REACH
    return float(top) if near else None


def _sums(rows: Tensor, columns: Tensor, scale: Tensor, cells: Cells, chunk_rows: int):
    """Row log-sums (b,), the columns' running sums over these rows, sum T * z, best column of every row, a shift per block."""
    running, block = Columns(len(columns), columns), _block(rows, columns, chunk_rows)
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
        shifts.append(shift_of(row_maxima, column_maxima))
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


def _gradients(rows, columns, scale, bias, cells: Cells, chunk_rows: int, cell_gradient):
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


class ChunkedContrastive(torch.autograd.Function):
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


class ChunkedSigmoid(torch.autograd.Function):
    """Equation (3) in row chunks with its own backward."""

    @staticmethod
    def forward(ctx, image, text, scale, bias, cells, chunk_rows):
        columns = cells.world.rows(text)
        total, running, block = image.new_zeros(()), Columns(len(columns), columns), _block(image, columns, chunk_rows)
        row_best = torch.empty(len(image), dtype=torch.long, device=image.device)
        for start in range(0, len(image), chunk_rows):
            offset = cells.offset + start
            logits = _product(scale * image[start : start + chunk_rows], columns, block).add_(bias)
            logits = cells.without_ignored(logits, offset)
            running.see(logits, offset)
            row_best[start : start + chunk_rows] = logits.argmax(1)
            total += softplus(logits).sum() - cells.sum_of_targets(logits, offset)
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
