"""The gradients of one step: embed, the loss over the whole batch, backwards; in pieces where the batch does not fit.

A contrastive loss needs all embeddings of a batch, but its gradient reaches the towers through the rows alone. So a batch
of any size is trained with the activations of one piece (gradient caching, Gao et al. 2021):

1. embed every piece and keep its rows, not its activations;
2. one evaluation of the loss on all rows gives their gradients, and those of the weights that the loss itself reads
   (`logit_scale`, `logit_bias`);
3. embed every piece again and send its rows' gradients back through it.

It costs one more forward pass and gives the gradient of the plain batch to rounding. That holds because the second
embedding is a replay of the first: random state and buffers are put back, so that dropout draws the same masks and batch
norm moves its statistics once; and the first runs the same kernels, with gradients switched on and its graph dropped at
once, because the faster ones for inference round differently (by 2e-3 in a bfloat16 row) and save 2 % of a step.

What differs from the plain batch is what a piece cannot know: batch norm normalises with the statistics of the piece, as
it does with those of its process when many processes train. Random masks are drawn piece by piece, from one stream.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ostension.train.batches import Batch
from ostension.train.objective import Embedded, Objective, StepLoss

Hold = Callable[[], contextlib.AbstractContextManager]


def backward(
    objective: Objective, batch: Batch, micro_batch: int | None = None, *, hold: Hold = contextlib.nullcontext
) -> StepLoss:
    """Leave the gradients of the batch's loss in the weights; the loss, detached, and what was measured with it.

    `objective.loss` is called once, with the rows of all pairs of this process: this is where it meets other processes.

    Args:
        micro_batch: pairs embedded at a time; None embeds all of them.
        hold: makes what is entered around all passes but the last one back through the towers. Only that one may send
            gradients to other processes, and every weight's gradient is complete when it is done.
    """
    if micro_batch is None or micro_batch >= len(batch):
        found = objective.loss(objective.embed(batch), batch.groups)
        found.loss.backward()
        return StepLoss(found.loss.detach(), found.measured)
    starts = range(0, len(batch), micro_batch)
    return _cached(objective, [batch.part(slice(start, start + micro_batch)) for start in starts], batch.groups, hold)


def _cached(objective: Objective, pieces: Sequence[Batch], groups: Tensor | None, hold: Hold) -> StepLoss:
    shares = [len(piece) / sum(map(len, pieces)) for piece in pieces]
    replay = _Replay(objective.module.buffers(), pieces[0].images.device)
    with hold():
        cached = _joined([_leaves(objective.embed(piece)) for piece in pieces], shares)
    found = objective.loss(cached, groups)
    leaves = {name: row for name, row in cached.rows.items() if row.requires_grad}
    own = cached.own if cached.own is not None and cached.own.requires_grad else None
    weights = [weight for weight in objective.module.parameters() if weight.requires_grad]
    inputs = [*leaves.values(), *([] if own is None else [own]), *weights]
    gradients = iter(torch.autograd.grad(found.loss, inputs, allow_unused=True))
    of_rows = {name: gradient for name, gradient in zip(leaves, gradients, strict=False) if gradient is not None}
    of_own = None if own is None else next(gradients)
    of_weights = [(weight, gradient) for weight, gradient in zip(weights, gradients, strict=True) if gradient is not None]

    replay.rewind()
    start = 0
    for index, (piece, share) in enumerate(zip(pieces, shares, strict=True)):
        last = index == len(pieces) - 1
        of_piece = {name: gradient[start : start + len(piece)] for name, gradient in of_rows.items()}
        with contextlib.nullcontext() if last else hold():
            _embed_backwards(objective, piece, of_piece, None if of_own is None else of_own * share, of_weights if last else [])
        start += len(piece)
    return StepLoss(found.loss.detach(), found.measured)


def _embed_backwards(
    objective: Objective, piece: Batch, of_rows: Mapping[str, Tensor], of_own: Tensor | None,
    of_weights: Sequence[tuple[Tensor, Tensor]],
) -> None:
    """Embed a piece and send gradients back: those of its rows and of its own loss, and what the loss gave to weights."""
    embedded = objective.embed(piece)
    ends = [(embedded.rows[name], gradient) for name, gradient in of_rows.items()] + list(of_weights)
    if of_own is not None and embedded.own is not None:
        ends.append((embedded.own, of_own))
    if ends:
        torch.autograd.backward([value for value, _ in ends], [gradient for _, gradient in ends])


def _leaves(embedded: Embedded) -> Embedded:
    """The numbers without the graph behind them; whether gradients are wanted is kept."""

    def leaf(value: Tensor) -> Tensor:
        return value.detach().requires_grad_(value.requires_grad)

    return Embedded(
        rows={name: leaf(row) for name, row in embedded.rows.items()},
        constants={name: value.detach() for name, value in embedded.constants.items()},
        own=None if embedded.own is None else leaf(embedded.own),
    )


def _joined(parts: Sequence[Embedded], shares: Sequence[float]) -> Embedded:
    """The whole batch's rows as new leaves, and the mean of `own` over its pairs."""

    def joined(of: Callable[[Embedded], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.cat([of(part)[name].detach() for part in parts]) for name in of(parts[0])}

    own = None
    if parts[0].own is not None:
        values = [part.own for part in parts if part.own is not None]
        mean = torch.stack([share * value.detach() for share, value in zip(shares, values, strict=True)]).sum()
        own = mean.requires_grad_(values[0].requires_grad)
    rows = {name: row.requires_grad_(parts[0].rows[name].requires_grad) for name, row in joined(lambda part: part.rows).items()}
    return Embedded(rows=rows, constants=joined(lambda part: part.constants), own=own)


class _Replay:
    """The random state and the buffers at one moment, to go back to."""

    def __init__(self, buffers, device: torch.device):
        self.device = device
        self.buffers = [(buffer, buffer.clone()) for buffer in buffers]
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @torch.no_grad()
    def rewind(self) -> None:
        """Put everything back as it was."""
        for buffer, before in self.buffers:
            buffer.copy_(before)
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)
