"""Which kept pairs make up which shard: a pure function of the counts of the parts, so that any shard can be made alone.

Letters: P parts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from ostension.config import require
from ostension.runtime import numpy_generator


@dataclasses.dataclass(frozen=True, kw_only=True)
class WriteConfig:
    """How pairs are written.

    Attributes:
        shard_size: pairs a shard.
        shuffle: shuffle the pairs.
        seed: of the order.
        window: parts that are shuffled together; as many as there are for one shuffle of all, at that many reads a shard.
        dropped: write the lineage of the dropped candidates too, to OUT/dropped.
        uids: write the list of `uid`s that DataComp takes, to OUT/uids.npy; 16 bytes of memory a pair.
    """

    shard_size: int = 10_000
    shuffle: bool = False
    seed: int = 0
    window: int = 16
    dropped: bool = False
    uids: bool = False

    def __post_init__(self):
        require(self.shard_size >= 1, "shard_size", self.shard_size, "1 or more")
        require(self.window >= 1, "window", self.window, "1 or more")
        if not self.shuffle:
            for name in ("seed", "window"):
                default = type(self).__dataclass_fields__[name].default
                require(getattr(self, name) == default, name, getattr(self, name), "nothing without shuffle")


class Order:
    """Which kept rows make up a shard: a pure function of the counts of the parts and of the settings.

    Args:
        counts: (P,) kept rows of each part.
    """

    def __init__(self, counts: np.ndarray, config: WriteConfig):
        self.counts, self.config = counts.astype(np.int64), config
        self.total = int(counts.sum())
        self.num_shards = -(-self.total // config.shard_size)
        order = np.arange(len(counts))
        if config.shuffle:
            order = numpy_generator(config.seed, "write parts").permutation(order)
        width = config.window if config.shuffle else 1
        self._groups = [np.sort(order[first : first + width]) for first in range(0, len(order), width)]
        self._ends = np.cumsum([int(self.counts[group].sum()) for group in self._groups])

    def size(self, shard: int) -> int:
        """Pairs of a shard: `shard_size`, but for the last one."""
        return min(self.config.shard_size, self.total - shard * self.config.shard_size)

    def pieces(self, shard: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """For each part that a shard has rows of: the part, which of its kept rows, and their places in the shard."""
        first = shard * self.config.shard_size
        last = first + self.size(shard)
        for number in range(int(np.searchsorted(self._ends, first, side="right")), len(self._groups)):
            end = int(self._ends[number])
            group = self._groups[number]
            inside = np.cumsum(self.counts[group])
            begin = end - int(inside[-1])
            if begin >= last:
                return
            drawn = np.arange(end - begin)
            if self.config.shuffle:
                drawn = numpy_generator(self.config.seed, "write", number).permutation(drawn)
            drawn = drawn[max(first - begin, 0) : last - begin]
            places = max(begin - first, 0) + np.arange(len(drawn))
            of = np.searchsorted(inside, drawn, side="right")
            for which in np.unique(of).tolist():
                chosen = of == which
                yield int(group[which]), drawn[chosen] - (inside[which] - self.counts[group[which]]), places[chosen]
