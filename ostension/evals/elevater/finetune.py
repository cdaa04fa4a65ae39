"""Fine-tuning the image tower with a head on it, by ELEVATER's rule: the same draws, search and modes as for a probe.

Every parameter of the image tower is trained, and the head; the text tower and the model's own scale are not. Pictures are
preprocessed as for evaluation, without augmentation. A merged head stands on the tower before its projection, which is then
not trained. The model that is given stays as it is: each trial trains a copy.

A search is up to 90 trainings of a tower, one after the other. This is the plain loop, float32 and on one device; methods
with schedules, augmentation or several learning rates are `ostension adapt`'s.

Letters: N images, B batch, C classes, S pixels a side.
Source: ELEVATER, section 3.2; `full_model_finetune` of the toolkit, read.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ostension.evals.elevater.heads import Head, HeadConfig, Start, loss_of
from ostension.evals.elevater.probe import MOMENTUM, TrainConfig, Trial, batches
from ostension.evals.elevater.probing import Sets, Trainer, labels_of
from ostension.model.clip import CLIP
from ostension.shapes import Float

# The preprocessed pictures at these positions, (B, 3, S, S).
Pictures = Callable[[Sequence[int]], Tensor]
LOOK_BATCH = 64


class TowerTrainer(Trainer):
    """An image tower under a head.

    Args:
        sets: the task, and features whose targets are used; their rows are not looked at.
        train_pictures, test_pictures: give the preprocessed pictures of each.
    """

    def __init__(
        self, model: CLIP, sets: Sets, head: HeadConfig, start: Start, train_pictures: Pictures, test_pictures: Pictures
    ):
        self.model, self.sets, self.head, self.start = model, sets, head, start
        self.train_pictures, self.test_pictures = train_pictures, test_pictures

    def train(
        self,
        trials: Sequence[Trial],
        chosen: np.ndarray,
        held: np.ndarray | None,
        train: TrainConfig,
        look: Callable[[int, int, np.ndarray], None],
        *,
        every_epoch: bool,
    ) -> dict[int, int]:
        pictures, seen = self.test_pictures, np.arange(len(self.sets.test))
        if held is not None:
            pictures, seen = self.train_pictures, held
        targets = torch.from_numpy(np.asarray(labels_of(self.sets.train)[chosen], np.int64))
        ended: dict[int, int] = {}
        for place, trial in enumerate(trials):
            network = Network(self.model, self.head, self.start)
            optimizer = torch.optim.SGD(
                network.trained(), lr=trial.learning_rate, momentum=MOMENTUM, weight_decay=trial.weight_decay
            )
            for epoch in range(1, train.epochs + 1):
                network.train()
                for batch in batches(len(chosen), train, epoch):
                    optimizer.zero_grad()
                    logits = network(self.train_pictures(chosen[batch.numpy()].tolist()))
                    loss_of(logits, targets[batch].to(logits.device)).backward()
                    optimizer.step()
                if not all(bool(part.isfinite().all()) for part in network.trained()):
                    ended[place] = epoch
                    break
                if every_epoch or epoch == train.epochs:
                    look(place, epoch, network.logits(pictures, seen))
        return ended


class Network(nn.Module):
    """A copy of a model's image tower, and a head on what leaves it."""

    def __init__(self, model: CLIP, head: HeadConfig, start: Start):
        super().__init__()
        self.tap = "pooled" if head.init == "merged" else "embedding"
        self.model = copy.deepcopy(model).float().requires_grad_(False)
        self.model.visual.requires_grad_(True)
        self.head = Head(head, start).to(self.model.device)

    def trained(self) -> list[nn.Parameter]:
        """What is given to the optimiser. A projection that the head has taken in gets no gradient, so it is passed over."""
        return [part for part in (*self.model.visual.parameters(), *self.head.parameters()) if part.requires_grad]

    def forward(self, pictures: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B C"]:
        return self.head(self.model.image_features(pictures, (self.tap,))[self.tap])

    @torch.no_grad()
    def logits(self, pictures: Pictures, seen: np.ndarray) -> Float[np.ndarray, "N C"]:
        """The logits of pictures."""
        self.eval()
        parts = [
            self(pictures(seen[start : start + LOOK_BATCH].tolist())).cpu().numpy() for start in range(0, len(seen), LOOK_BATCH)
        ]
        return np.concatenate(parts)

