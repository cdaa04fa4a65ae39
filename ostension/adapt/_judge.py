"""Which epoch of a fit was best, by validation pictures; never by the test split.

Letters: N samples, C classes.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ostension.adapt._examples import Labelled
from ostension.adapt.base import Addition

BLOCK = 64  # pictures that are judged together


class Judge:
    """The best of what an addition has been, by its score on validation pictures.

    Attributes:
        score, epoch: of the best; the epoch before the first is -1.
        best: its tensors.
    """

    def __init__(self, addition: Addition, val: Labelled):
        self.addition, self.val = addition, val
        self.rows = None if addition.needs_images else val.features(addition.model)[0]
        self.score, self.epoch, self.best = -math.inf, -1, dict[str, Tensor]()

    @torch.no_grad()
    def look(self, epoch: int) -> float:
        """The score of the addition as it is; it is kept if none before was as good."""
        training, addition = self.addition.training, self.addition.eval()
        device, wide = addition.model.device, torch.promote_types(addition.model.dtype, torch.float32)
        found = []
        for start in range(0, len(self.val), BLOCK):
            block = np.arange(start, min(start + BLOCK, len(self.val)))
            if self.rows is None:
                features = addition.image(self.val.pixels(addition.model, block).to(device))
            else:
                features = self.rows[torch.from_numpy(block)].to(device, wide)
            found.append(addition.logits(features).cpu())
        score = addition.score(torch.cat(found), self.val)
        if score > self.score:
            self.score, self.epoch = score, epoch
            self.best = {name: value.clone() for name, value in addition.tensors().items()}
        addition.train(training)
        return score

    def take_best(self) -> None:
        self.addition.load_state_dict(self.best)
