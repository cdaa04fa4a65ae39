"""The gradients of one step: embed, the loss over the whole batch, backwards."""

from __future__ import annotations

from ostension.train.batches import Batch
from ostension.train.objective import Objective, StepLoss


def backward(objective: Objective, batch: Batch) -> StepLoss:
    """Leave the gradients of the batch's loss in the weights; the loss, detached, and what was measured with it."""
    found = objective.loss(objective.embed(batch), batch.groups)
    found.loss.backward()
    return StepLoss(found.loss.detach(), found.measured)
