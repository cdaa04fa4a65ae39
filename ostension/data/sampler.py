"""Which samples make up batch number `step`: a pure function of (seed, step), with nothing to save and nothing to restore.

Without replacement, each epoch visits a keyed permutation of [0, N). It is computed position by position with a Feistel
network (Luby & Rackoff 1988), so no array of N numbers exists anywhere. The network permutes the next power of two; a
number outside [0, N) is sent through again until it falls inside, which keeps it a permutation (cycle walking, Black &
Rogaway 2002) and takes fewer than two passes on average.

A global batch does not depend on the number of processes: rank r takes the r-th of equal, contiguous parts.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ostension.config import require
from ostension.errors import ConfigError, DataError
from ostension.runtime import numpy_generator

ROUNDS = 8


@dataclasses.dataclass(frozen=True)
class Sampler:
    """The order of `num_samples` samples in batches of `batch_size`.

    The remainder of an epoch, `num_samples % batch_size` samples, is dropped; it is another one in each epoch. With
    replacement, each position is drawn by itself, and an epoch is a count of samples only.

    Attributes:
        num_samples: N.
        batch_size: samples in a global batch.
        seed: the order depends on it and on nothing else.
        replacement: draw with replacement.

    Raises:
        DataError: if there are fewer samples than one global batch needs.
    """

    num_samples: int
    batch_size: int
    seed: int = 0
    replacement: bool = False

    def __post_init__(self):
        require(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        require(self.num_samples >= 0, "num_samples", self.num_samples, "0 or more")
        if self.num_samples < (1 if self.replacement else self.batch_size):
            raise DataError(
                f"{self.num_samples} samples are fewer than one global batch of {self.batch_size}",
                fix="use a smaller batch size, or sampling with replacement",
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass over the samples (at least 1)."""
        return max(1, self.num_samples // self.batch_size)

    def epoch(self, step: int) -> int:
        """The epoch to which `step` belongs, from 0."""
        return step // self.steps_per_epoch

    def batch(self, step: int, *, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """The samples of `rank`'s part of global batch number `step`, as int64 of shape (batch_size / world_size,).

        Raises:
            ConfigError: if the batch size is no multiple of the number of processes.
        """
        return self.part(step, *equal_part(self.batch_size, rank, world_size))

    def part(self, step: int, start: int, stop: int) -> np.ndarray:
        """The samples at positions `start` to `stop` of global batch number `step`; costs what it gives."""
        assert step >= 0 and 0 <= start <= stop <= self.batch_size
        if self.replacement:
            return numpy_generator(self.seed, "draw", step).integers(0, self.num_samples, self.batch_size)[start:stop]
        epoch, batch = divmod(step, self.steps_per_epoch)
        first = batch * self.batch_size
        positions = np.arange(first + start, first + stop, dtype=np.uint64)
        return permute(positions, self.num_samples, (self.seed, "order", epoch)).astype(np.int64)

    def visits(self, step: int, start: int, stop: int) -> np.ndarray:
        """For each of `part` a number that differs between two visits of one sample: the epoch, or the number of the draw."""
        if self.replacement:
            return np.arange(step * self.batch_size + start, step * self.batch_size + stop)
        return np.full(stop - start, self.epoch(step))

    def pool(self, sample: int) -> tuple[int, int]:
        """First and number of the samples among which a substitute is looked for: all."""
        return 0, self.num_samples


def equal_part(batch_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """Where `rank`'s contiguous part of a global batch starts and stops.

    Raises:
        ConfigError: if the batch size is no multiple of the number of processes.
    """
    if batch_size % world_size:
        raise ConfigError(
            f"batch_size is {batch_size} with {world_size} processes",
            expected="a multiple of the number of processes, so that all batches are equal",
        )
    assert 0 <= rank < world_size
    local = batch_size // world_size
    return rank * local, (rank + 1) * local


def permute(positions: np.ndarray, size: int, key: tuple[int | str, ...]) -> np.ndarray:
    """The images of `positions` (uint64, all below `size`) under the permutation of [0, size) that `key` names."""
    bits = max(2, (size - 1).bit_length())
    keys = numpy_generator(*key).integers(0, 1 << 63, ROUNDS, dtype=np.uint64)
    values = positions.copy()
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        values[outside] = _feistel(values[outside], bits, keys)
        outside = values >= size
    return values


def _feistel(values: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    """A permutation of [0, 2^bits): halves of bits // 2 and the rest, which change places in each round."""
    low = bits - bits // 2
    left, right = values >> np.uint64(low), values & _mask(low)
    widths = (bits // 2, low)
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & _mask(widths[0]))
        widths = (widths[1], widths[0])
    assert widths == (bits // 2, low)  # an even number of rounds: each half is back in its place
    return (left << np.uint64(low)) | right


def _mix(values: np.ndarray) -> np.ndarray:
    """A 64-bit mixing function, the finaliser of SplitMix64 (Steele et al. 2014); products wrap."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _mask(bits: int) -> np.uint64:
    return np.uint64((1 << bits) - 1)
