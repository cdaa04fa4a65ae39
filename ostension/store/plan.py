"""What is to be done with each sample of a source, so that a collection holds it: a pure function of both.

A sample is known by its id. Whose bytes are not those of its row is encoded anew; of samples with the same bytes one is
encoded, and the others get a copy of its row; where only the captions or fields are others, the row is written again beside
them. What could not be used the last time is not tried again while its bytes are the same.

The work is cut into shards, and the samples to encode of each into batches. A shard starts where the last one ended, and
what is done is left out the next time: so a run that goes on makes the same shards and batches.

Letters: N samples.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ostension.errors import DataError
from ostension.store.scan import Scanned
from ostension.store.sets import EmbeddingSet

SAME = 0  # nothing: it is there
ENCODE = 1
ROW = 2  # copy a row of the collection
SAMPLE = 3  # copy the row of another sample of this source
LIST = 4  # write down that it cannot be used
BAD = 5  # nothing: that is written down already
UNREAD = 6  # nothing: it cannot be read now, but has a row. A disk that is away must not empty a collection.
TOUCHED = (ENCODE, ROW, SAMPLE, LIST)
SHOWN = 3  # ids in a message


class Held(NamedTuple):
    """What a collection holds: rows by id, and what could not be used."""

    rows: dict[str, int]
    digests: np.ndarray
    described: np.ndarray
    sources: np.ndarray
    rejects: dict[str, tuple[str, int]]

    @staticmethod
    def nothing() -> Held:
        """The state of a collection that is not there yet."""
        empty = np.zeros(0, np.uint64)
        return Held({}, empty, empty, empty, {})

    @staticmethod
    def of(opened: EmbeddingSet) -> Held:
        """The state of a collection; a sample that has a row by now is rejected no more."""
        nothing = np.zeros(0, np.uint64)
        digests, described, numbers = (
            np.asarray(opened.column(name)) if len(opened) else nothing for name in ("digest", "described", "source")
        )
        rows = {name: row for row, name in enumerate(opened.ids)}
        rejects = {key: (reason, digest) for key, reason, digest in opened.reject_records() if key not in rows}
        return Held(rows, digests, described, numbers, rejects)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """A part of the work that is committed at once.

    Attributes:
        samples: numbers of the samples that are touched, in order.
        batches: of those, the ones to encode, as they pass the tower together.
    """

    samples: np.ndarray
    batches: tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be done.

    Attributes:
        actions: (N,) SAME, ENCODE, ROW, SAMPLE, LIST, BAD or UNREAD.
        of: (N,) the row, or the sample, that is copied; else -1.
        replaces: (N,) the row that counts no more once this is done; else -1.
        reasons: why a sample cannot be used, by its number.
        kept: samples whose rows are copied later.
    """

    actions: np.ndarray
    of: np.ndarray
    replaces: np.ndarray
    reasons: dict[int, str]
    kept: frozenset[int]

    def count(self, action: int) -> int:
        """How many samples have an action."""
        return int((self.actions == action).sum())

    def shards(self, batch_size: int, shard_batches: int, shard_rows: int) -> Iterator[Shard]:
        """The work in parts: so many batches each, or so many samples where most are copies."""
        todo = np.flatnonzero(np.isin(self.actions, TOUCHED))
        encodes = np.cumsum(self.actions[todo] == ENCODE)
        start = 0
        while start < len(todo):
            before = int(encodes[start - 1]) if start else 0
            full = int(np.searchsorted(encodes, before + batch_size * shard_batches))  # the place of the last one
            stop = min(full + 1, start + shard_rows, len(todo))
            samples = todo[start:stop]
            chosen = samples[self.actions[samples] == ENCODE]
            cuts = [*range(0, len(chosen), batch_size), len(chosen)]
            yield Shard(samples=samples, batches=tuple(chosen[low:high] for low, high in itertools.pairwise(cuts)))
            start = stop


def plan(found: Scanned, held: Held, *, source: int, known_by_id: bool = False, retry: bool = False) -> Plan:
    """What is to be done with the samples of a source.

    Args:
        source: its number in the collection.
        known_by_id: whether the bytes of its samples were not read.
        retry: try again what could not be used.

    Raises:
        DataError: if ids are those of other pictures of another source.
    """
    count = len(found.ids)
    actions, of, replaces = np.zeros(count, np.int8), np.full(count, -1, np.int64), np.full(count, -1, np.int64)
    reasons: dict[int, str] = dict(found.problems)
    rejects = {} if retry else held.rejects
    bad_digests = {digest: reason for reason, digest in rejects.values() if digest}
    by_digest = {int(digest): row for row, digest in reversed(list(enumerate(held.digests.tolist())))}
    encoded: dict[int, int] = {}
    kept: set[int] = set()
    clashes: list[str] = []
    digests, described = found.digests.tolist(), found.described.tolist()
    held_digests, held_described = held.digests.tolist(), held.described.tolist()
    for index, name in enumerate(found.ids):
        digest, row = digests[index], held.rows.get(name, -1)
        listed = held.rejects.get(name)
        if index in reasons:
            actions[index] = UNREAD if row >= 0 else BAD if listed == (reasons[index], 0) else LIST
        elif row >= 0 and (known_by_id or held_digests[row] == digest):
            if known_by_id or (held_described[row] == described[index] and held.sources[row] == source):
                continue
            actions[index], of[index], replaces[index] = ROW, row, row
        elif row >= 0 and held.sources[row] != source and held_digests[row]:  # 0: imported, nobody knows of what bytes
            clashes.append(name)
        elif name in rejects and rejects[name][1] == digest:
            actions[index], reasons[index] = BAD, rejects[name][0]
        else:
            replaces[index] = row
            if known_by_id:
                actions[index] = ENCODE
            elif digest in by_digest:
                actions[index], of[index] = ROW, by_digest[digest]
            elif digest in encoded:
                actions[index], of[index] = SAMPLE, encoded[digest]
                kept.add(encoded[digest])
            elif digest in bad_digests:
                actions[index], reasons[index] = LIST, bad_digests[digest]
            else:
                actions[index] = ENCODE
                encoded[digest] = index
    if clashes:
        names = ", ".join(map(repr, clashes[:SHOWN]))
        what = f"{len(clashes):,} ids are those of other pictures, of another source ({names})"
        raise DataError(what, expected="ids of its own", fix="give this source a prefix for its ids")
    return Plan(actions=actions, of=of, replaces=replaces, reasons=reasons, kept=frozenset(kept))
