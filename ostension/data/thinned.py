"""The order of samples of which each takes part in an epoch with a probability of its own, other ones in each epoch.

The probabilities lie end to end on a line of length S, their sum; an epoch is n = floor(S) points at equal distances S / n from
a random start (systematic sampling). A sample is in an epoch if a point falls on it. That is never twice, since no probability
is longer than the distance, and on average n / S times its probability, which is as good as the probability. Which sample
stands at a position is found by halving on the running sums, so nothing is saved and nothing restored.

The samples lie on the line in a random order that stays. Neighbours on it are rarely in one epoch together; otherwise it is as
with a draw for each.

Memory: eight bytes a sample.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np

from ostension.config import require
from ostension.data.sampler import permute
from ostension.data.tar_shards import TarShards
from ostension.errors import DataError, require_extra
from ostension.runtime import numpy_generator


@dataclasses.dataclass(frozen=True, eq=False)
class Thinned:
    """The order of the samples in batches of `batch_size`.

    Attributes:
        probabilities: (N,) of being in an epoch, 0 to 1.
        batch_size: samples in a global batch.
        seed: the order depends on it and on nothing else.

    Raises:
        DataError: if an epoch would have fewer samples than a batch.
    """

    probabilities: np.ndarray
    batch_size: int
    seed: int = 0

    def __post_init__(self):
        require(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        if self.samples_per_epoch < self.batch_size:
            raise DataError(
                f"{self.samples_per_epoch} samples an epoch are fewer than one global batch of {self.batch_size}",
                fix="use a smaller batch size",
            )

    @property
    def num_samples(self) -> int:
        """N."""
        return len(self.probabilities)

    @property
    def samples_per_epoch(self) -> int:
        """n, of which the last n % batch_size are dropped, other ones in each epoch."""
        return int(self._sums[-1]) if self.num_samples else 0

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return self.samples_per_epoch // self.batch_size

    def part(self, step: int, start: int, stop: int) -> np.ndarray:
        """The samples at positions `start` to `stop` of global batch number `step`."""
        assert step >= 0 and 0 <= start <= stop <= self.batch_size
        epoch, batch = divmod(step, self.steps_per_epoch)
        first, count = batch * self.batch_size, self.samples_per_epoch
        positions = np.arange(first + start, first + stop, dtype=np.uint64)
        points = permute(positions, count, (self.seed, "order", epoch)).astype(np.float64)
        begin = numpy_generator(self.seed, "start", epoch).random()
        length = self._sums[-1]
        places = np.searchsorted(self._sums, (points + begin) * (length / count), "right")
        places = np.minimum(places, np.searchsorted(self._sums, length))  # rounding may lead to the end of the line
        return permute(places.astype(np.uint64), self.num_samples, self._line).astype(np.int64)

    def visits(self, step: int, start: int, stop: int) -> np.ndarray:
        """For each of `part` the epoch."""
        return np.full(stop - start, step // self.steps_per_epoch)

    def pool(self, sample: int) -> tuple[int, int]:
        """First and number of the samples among which a substitute is looked for: all."""
        return 0, self.num_samples

    @property
    def _line(self) -> tuple[int | str, ...]:
        return self.seed, "line"

    @functools.cached_property
    def _sums(self) -> np.ndarray:
        """(N,) where the probabilities end on the line."""
        order = permute(np.arange(self.num_samples, dtype=np.uint64), self.num_samples, self._line)
        return np.cumsum(self.probabilities[order.astype(np.int64)], dtype=np.float64)


def column_beside(source: object, column: str) -> np.ndarray:
    """(N,) float64 numbers of a column of the Parquet files beside a source's shards, by key: 00000.parquet of 00000.tar.

    Raises:
        DataError: for a source without shards on this machine's disks, a file or a column that is missing, or a pair without
            a number from 0 to 1.
    """
    if not isinstance(source, TarShards) or not all(isinstance(shard, Path) for shard in source.shards):
        raise DataError("no tar shards on disk", expected=f"tar shards with Parquet files with {column!r} beside them")
    parquet = require_extra("pyarrow.parquet", "data")
    values = np.empty(len(source))
    path, known = Path(), dict[str, float]()
    for index in range(len(source)):
        shard, key = source.shard_of(index)
        assert isinstance(shard, Path)
        if shard.with_suffix(".parquet") != path:
            path = shard.with_suffix(".parquet")
            if not path.is_file():
                raise DataError("no such file", source=path, expected=f"a Parquet file with {column!r}")
            names = parquet.read_schema(path).names
            if column not in names or "key" not in names:
                raise DataError(f"no column {column!r}", source=path, expected=f"one of {', '.join(names)}")
            table = parquet.read_table(path, columns=["key", column], use_threads=False)
            known = dict(zip(table["key"].to_pylist(), table[column].to_pylist(), strict=True))
        value = known.get(key)
        if not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise DataError(f"{column!r} is {value!r} for {key}", source=path, expected="a number from 0 to 1")
        values[index] = value
    return values
