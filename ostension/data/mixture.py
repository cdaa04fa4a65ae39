"""The order of several sources with weights: every batch holds each source's share, and each source has epochs of its own.

Of a batch of B samples source i should give q_i = B w_i / sum w. It gives floor(q_i) or one more. Which sources give one more
in a step is decided by systematic sampling: the fractions of the q_i lie end to end on a line of whole length R, and the
points u, u + 1, ..., u + R - 1 each pick the source they fall on. With u = frac(s g) for step s and the golden section g, the
picks are spread so evenly that over any stretch of steps a source is within a few samples of its share. How many samples it
has given before step s is then a sum of floors of a straight line, which has a closed form in log(s) operations; so the
position in each source's stream is arithmetic too, and nothing is saved.

Without replacement a source's stream is one permutation of it after the other. A source much oversampled has had many epochs
when another has had half of one. A batch in which one epoch of a source ends and the next begins can hold a sample twice.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from fractions import Fraction

import numpy as np

from ostension.config import require
from ostension.data.sampler import equal_part, permute
from ostension.errors import DataError
from ostension.runtime import numpy_generator

_TURN = 1 << 32
_GOLDEN = 2654435769  # 2^32 / 1.618..., odd, so that a full turn visits every point once


@dataclasses.dataclass(frozen=True)
class Mixture:
    """The order of samples from several sources that lie one after the other, as in `pairs.Joined`.

    Attributes:
        sizes: samples in each source.
        weights: how much of each batch comes from each, in any unit.
        batch_size: samples in a global batch.
        seed: the order depends on it and on nothing else.
        replacement: draw with replacement.

    Raises:
        ConfigError: for weights that are not positive, or not one for each source.
        DataError: if a batch would take more samples from a source than it has.
    """

    sizes: tuple[int, ...]
    weights: tuple[float, ...]
    batch_size: int
    seed: int = 0
    replacement: bool = False

    def __post_init__(self):
        expected = f"a positive number for each of {len(self.sizes)} sources"
        good = len(self.weights) == len(self.sizes) and all(0 < weight < float("inf") for weight in self.weights)
        require(good, "batches.weights", self.weights, expected)
        require(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        for number, (size, quota) in enumerate(zip(self.sizes, self._quotas, strict=True)):
            if size < (1 if self.replacement else math.ceil(quota)):
                raise DataError(
                    f"source {number + 1} of {len(self.sizes)} has {size} pairs, and {float(quota):.4g} of them are to be in "
                    "each batch",
                    expected="at least as many pairs",
                    fix="lower its weight, or draw with replacement",
                )

    @property
    def num_samples(self) -> int:
        """N, of all sources together."""
        return sum(self.sizes)

    @property
    def steps_per_epoch(self) -> int:
        """Batches in as many samples as all sources have (at least 1); each source has epochs of its own."""
        return max(1, self.num_samples // self.batch_size)

    @property
    def expected(self) -> tuple[float, ...]:
        """How many samples of each source a batch holds on average."""
        return tuple(map(float, self._quotas))

    def counts(self, step: int) -> tuple[int, ...]:
        """How many samples of each source are in the batch of `step`."""
        return tuple(after - before for before, after in zip(self.given(step), self.given(step + 1), strict=True))

    def given(self, step: int) -> tuple[int, ...]:
        """How many samples each source has given before `step`."""
        sums = [_floor_sum(step, _GOLDEN, edge) for edge in self._edges]
        base = (quota.numerator // quota.denominator for quota in self._quotas)
        return tuple(
            whole * step + after - before for whole, (before, after) in zip(base, itertools.pairwise(sums), strict=True)
        )

    def batch(self, step: int, *, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """The samples of `rank`'s part of global batch number `step`, as int64 of shape (batch_size / world_size,).

        Raises:
            ConfigError: if the batch size is no multiple of the number of processes.
        """
        return self.part(step, *equal_part(self.batch_size, rank, world_size))

    def part(self, step: int, start: int, stop: int) -> np.ndarray:
        """The samples at positions `start` to `stop` of global batch number `step`."""
        return self._batch(step)[0][start:stop]

    def visits(self, step: int, start: int, stop: int) -> np.ndarray:
        """For each of `part` a number that differs between two visits of one sample: its source's epoch, or the draw."""
        return self._batch(step)[1][start:stop]

    def pool(self, sample: int) -> tuple[int, int]:
        """First and number of the samples among which a substitute is looked for: those of the same source."""
        first = 0
        for size in self.sizes:
            if sample < first + size:
                break
            first += size
        return first, size

    @functools.cached_property
    def _quotas(self) -> tuple[Fraction, ...]:
        weights = [Fraction(weight) for weight in self.weights]
        return tuple(self.batch_size * weight / sum(weights) for weight in weights)

    @functools.cached_property
    def _edges(self) -> tuple[int, ...]:
        """Where the fractions of the quotas end on the line, in parts of a turn."""
        fractions = (quota % 1 for quota in self._quotas)
        return tuple(round(edge * _TURN) for edge in itertools.accumulate(fractions, initial=Fraction(0)))

    def _batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """All samples of a batch and their visits, in the batch's order."""
        assert step >= 0
        given, counts = self.given(step), self.counts(step)
        samples, visits, first = [], [], 0
        for source, (size, before, count) in enumerate(zip(self.sizes, given, counts, strict=True)):
            if self.replacement:
                drawn = numpy_generator(self.seed, "draw", source, step).integers(0, size, count)
                epochs = np.arange(before, before + count)
            else:
                epochs, places = np.divmod(np.arange(before, before + count), size)
                drawn = _visited(places, epochs, size, (self.seed, "order", source))
            samples.append(first + drawn)
            visits.append(epochs)
            first += size
        # Mixed, so that the parts of the processes do not differ in kind.
        mixed = permute(np.arange(self.batch_size, dtype=np.uint64), self.batch_size, (self.seed, "mix", step)).astype(np.int64)
        return np.concatenate(samples)[mixed], np.concatenate(visits)[mixed]


def _visited(places: np.ndarray, epochs: np.ndarray, size: int, key: tuple[int | str, ...]) -> np.ndarray:
    """The samples at some places of some epochs' permutations."""
    drawn = np.empty(len(places), dtype=np.int64)
    for epoch in np.unique(epochs).tolist():
        here = epochs == epoch
        drawn[here] = permute(places[here].astype(np.uint64), size, (*key, epoch)).astype(np.int64)
    return drawn


def _floor_sum(count: int, slope: int, offset: int) -> int:
    """The sum over n < count of floor((slope n + offset) / TURN) - floor(slope n / TURN), for 0 <= slope.

    That is how many of the points frac(slope n / TURN) lie in the last `offset / TURN` of a turn, plus whole turns.
    """
    return _lattice(count, _TURN, slope, offset) - _lattice(count, _TURN, slope, 0)


def _lattice(count: int, modulus: int, slope: int, offset: int) -> int:
    """The sum over n < count of floor((slope n + offset) / modulus): points of a grid under a line, by Euclid's algorithm."""
    total = 0
    while True:
        total += count * (count - 1) // 2 * (slope // modulus) + count * (offset // modulus)
        slope, offset = slope % modulus, offset % modulus
        top = slope * count + offset
        if top < modulus:
            return total
        # The points under the line, seen from the other axis.
        count, offset = divmod(top, modulus)
        modulus, slope = slope, modulus
