"""Batches of the small recipes, each made whole by every process."""

from __future__ import annotations

import abc
import dataclasses

from ostension.data.sampler import equal_part
from ostension.train.batches import Batch


class WholeBatches(abc.ABC):
    """A `BatchSource` whose parts share one stream of random numbers: each process makes the whole batch, which is small."""

    @property
    @abc.abstractmethod
    def batch_size(self) -> int:
        """Of all processes together."""

    @abc.abstractmethod
    def whole(self, step: int) -> Batch:
        """The batch of all processes."""

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """A process's part."""
        start, stop = equal_part(self.batch_size, rank, world_size)
        whole = self.whole(step)
        if world_size == 1:
            return whole
        texts_cut = whole.texts_cut if rank == 0 else 0  # counted once
        return dataclasses.replace(whole.part(slice(start, stop)), texts_cut=texts_cut)
