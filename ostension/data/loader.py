"""Batches of decoded pairs, by step: the same for any number of workers.

What a batch holds is a function of the step: the sampler says which samples, and random choices in decoding depend on
(seed, visit, sample). A sample that cannot be read or decoded is replaced by another one, chosen by a function of the bad
one's number, so that batches stay equal in size on all processes; it is counted, logged and limited (see `rejects`).
Evaluation must not do that: `strict` raises instead.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from ostension.data.pairs import Pair, PairSource, image_digest
from ostension.data.rejects import Rejects
from ostension.data.sampler import equal_part, permute
from ostension.data.workers import Note, in_line, in_processes, in_threads
from ostension.errors import DataError, LimitError
from ostension.runtime import numpy_generator

CHUNK = 32  # samples in one task of a worker: small enough to share a batch out, large enough to hide the way there
MAX_IN_A_ROW = 100


class Decode(Protocol):
    """Turns a pair into an array and a text; all randomness comes from `generator`.

    Raises a `DataError` or `LimitError` for a sample that cannot be used. For worker processes it must be picklable.
    """

    def __call__(self, pair: Pair, generator: np.random.Generator) -> tuple[np.ndarray, str]: ...


class Order(Protocol):
    """Which samples lie at which positions of which step: `Sampler`, `Mixture`, or `InOrder` for evaluation."""

    @property
    def num_samples(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    def part(self, step: int, start: int, stop: int) -> np.ndarray: ...

    def visits(self, step: int, start: int, stop: int) -> np.ndarray: ...

    def pool(self, sample: int) -> tuple[int, int]: ...


@dataclasses.dataclass(frozen=True)
class InOrder:
    """Every sample once, in order; the last batch may be smaller."""

    num_samples: int
    batch_size: int

    @property
    def num_steps(self) -> int:
        """Batches, the last one included."""
        return -(-self.num_samples // self.batch_size)

    def part(self, step: int, start: int, stop: int) -> np.ndarray:
        """The samples at positions `start` to `stop` of batch `step`; fewer at the end."""
        first = step * self.batch_size
        return np.arange(min(first + start, self.num_samples), min(first + stop, self.num_samples))

    def visits(self, step: int, start: int, stop: int) -> np.ndarray:
        return np.zeros(len(self.part(step, start, stop)), dtype=np.int64)

    def pool(self, sample: int) -> tuple[int, int]:
        return 0, self.num_samples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """Decoded pairs.

    Attributes:
        ids: (B,) which samples, after replacement.
        keys: their keys.
        images: (B, ...) what `decode` gave, stacked.
        texts: B texts.
        rejects: samples that were replaced: key and reason.
        digests: (B,) a 64-bit hash of each encoded image, if asked for.
    """

    ids: np.ndarray
    keys: tuple[str, ...]
    images: np.ndarray
    texts: tuple[str, ...]
    rejects: tuple[tuple[str, str], ...] = ()
    digests: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)


class Loader:
    """Loads the batches of `order` from `source` through `decode`.

    Args:
        workers: how many work ahead; 0 loads each batch when it is asked for.
        kind: workers are "processes", or "threads" for decoding that releases the interpreter lock.
        strict: raise on the first bad sample instead of replacing it.
        rejects: where bad samples are counted; by default they are counted and limited, but not written to a file.
        seed: of decoding and of substitutes.
        digests: also give a hash of each encoded image.
    """

    def __init__(
        self,
        source: PairSource,
        order: Order,
        decode: Decode,
        *,
        seed: int = 0,
        digests: bool = False,
        workers: int = 0,
        kind: Literal["processes", "threads"] = "processes",
        strict: bool = False,
        rejects: Rejects | None = None,
    ):
        assert order.num_samples == len(source), (order.num_samples, len(source))
        self.order, self.workers, self.kind = order, workers, kind
        self.rejects = rejects or Rejects()
        self._work = _Work(source=source, order=order, decode=decode, seed=seed, strict=strict, digests=digests)

    def load(self, step: int, *, rank: int = 0, world_size: int = 1) -> Loaded:
        """One batch, loaded here and now; its rejects are returned but not counted."""
        return self._work((step, *equal_part(self.order.batch_size, rank, world_size)), lambda _: None)

    def batches(self, start: int, stop: int, *, rank: int = 0, world_size: int = 1) -> Iterator[Loaded]:
        """The batches of the steps from `start` up to `stop`, one by one; `rank`'s equal part of each.

        Raises:
            DataError: for a bad sample if `strict`; for too many of them; if a worker dies.
        """
        first, last = equal_part(self.order.batch_size, rank, world_size)
        cuts = [*range(first, last, CHUNK), last]
        chunks = list(itertools.pairwise(cuts))
        tasks = ((step, *chunk) for step in range(start, stop) for chunk in chunks)
        if not self.workers:
            answers = in_line(self._work, tasks)
        elif self.kind == "threads":
            answers = in_threads(self._work, tasks, self.workers)
        else:
            answers = in_processes(self._work, tasks, self.workers)
        try:
            for step in range(start, stop):
                batch = _join([next(answers) for _ in chunks])
                self.rejects.add(step, len(batch) + len(batch.rejects), batch.rejects)
                yield batch
        finally:
            answers.close()  # type: ignore[attr-defined]  # all three are generators: ends the workers


class _Row(NamedTuple):
    """A sample that could be used."""

    sample: int
    key: str
    image: np.ndarray
    text: str
    digest: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Work:
    """What a worker does: load the samples at some positions of one step."""

    source: PairSource
    order: Order
    decode: Decode
    seed: int
    strict: bool
    digests: bool

    def __call__(self, task: tuple[int, int, int], note: Note) -> Loaded:
        step, start, stop = task
        samples, visits = self.order.part(step, start, stop).tolist(), self.order.visits(step, start, stop).tolist()
        rejects: list[tuple[str, str]] = []
        rows = [self._usable(*pair, step, rejects, note) for pair in zip(samples, visits, strict=True)]
        return Loaded(
            ids=np.array([row.sample for row in rows], dtype=np.int64),
            keys=tuple(row.key for row in rows),
            images=np.stack([row.image for row in rows]) if rows else np.empty((0,)),
            texts=tuple(row.text for row in rows),
            rejects=tuple(rejects),
            digests=np.array([row.digest for row in rows], dtype=np.uint64) if self.digests else None,
        )

    def _usable(self, sample: int, visit: int, step: int, rejects: list[tuple[str, str]], note: Note) -> _Row:
        """The sample, decoded; or the first of its substitutes that can be."""
        for candidate in itertools.islice(self._candidates(sample, visit, step), MAX_IN_A_ROW):
            key = self.source.key(candidate)
            note(f"sample {key} (number {candidate})")
            try:
                pair = self.source.read(candidate)
                image, text = self._decode(pair, visit, candidate)
            except (DataError, LimitError) as error:
                if self.strict:
                    raise
                rejects.append((key, error.what))
                continue
            return _Row(candidate, key, image, text, image_digest(pair.image) if self.digests else 0)
        count, (key, reason) = min(MAX_IN_A_ROW, self.order.pool(sample)[1]), rejects[-1]
        raise DataError(
            f"{count} samples in a row could not be used, the last {key} ({reason})", fix="see: ostension data inspect"
        )

    def _decode(self, pair: Pair, visit: int, sample: int) -> tuple[np.ndarray, str]:
        try:
            return self.decode(pair, numpy_generator(self.seed, "decode", visit, sample))
        except (DataError, LimitError) as error:
            # A decoder knows bytes; say which sample they are.
            raise type(error)(error.what, source=pair.key, expected=error.expected, fix=error.fix) from None

    def _candidates(self, sample: int, visit: int, step: int) -> Iterator[int]:
        """The sample, then others of its source in an order of its own: first those that the global batch does not have."""
        yield sample
        taken = frozenset(self.order.part(step, 0, self.order.batch_size).tolist())
        offset, size = self.order.pool(sample)
        spare = []
        for first in range(0, size, 256):
            positions = np.arange(first, min(first + 256, size), dtype=np.uint64)
            for place in permute(positions, size, (self.seed, "substitute", visit, sample)).tolist():
                candidate = offset + place
                if candidate not in taken:
                    yield candidate
                elif candidate != sample:
                    spare.append(candidate)
        yield from spare


def _join(parts: Sequence[Loaded]) -> Loaded:
    if len(parts) == 1:
        return parts[0]
    filled = [part for part in parts if len(part)] or parts[:1]

    def together(name: str) -> tuple[Any, ...]:
        return functools.reduce(lambda left, right: left + right, (getattr(part, name) for part in parts))

    return Loaded(
        ids=np.concatenate([part.ids for part in parts]),
        keys=together("keys"),
        images=np.concatenate([part.images for part in filled]),
        texts=together("texts"),
        rejects=together("rejects"),
        digests=None if parts[0].digests is None else np.concatenate([part.digests for part in parts]),
    )
