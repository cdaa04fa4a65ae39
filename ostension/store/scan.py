"""What a source holds now: of each sample its id, which bytes its picture is, and what is said of it, as two hashes.

Everything is read once, by threads, before anything is encoded. So it is known how much there is to do, and which samples
pass the tower together does not depend on how many processes there are or where an earlier run was stopped. Of several
processes each reads its part and tells the others.

Letters: N samples.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from ostension import world
from ostension.data.pairs import Pair, PairSource, image_digest
from ostension.errors import DataError, LimitError
from ostension.files import sha256_json
from ostension.store.fill import known_of

CHUNK = 64  # samples that a thread reads at a time
MAX_THREADS = 8


class Scanned(NamedTuple):
    """The samples of a source, in order.

    Attributes:
        ids: N ids.
        digests: (N,) 64 bits of the hash of each picture's bytes; 0 where it cannot be read or was not.
        described: (N,) 64 bits of a hash of labels, captions and fields; 0 where it is not known.
        problems: why a sample cannot be read, by its number.
    """

    ids: list[str]
    digests: np.ndarray
    described: np.ndarray
    problems: dict[int, str]


def scan(source: PairSource, prefix: str = "", progress: Callable[[int, int], None] | None = None) -> Scanned:
    """Read a source once.

    A source with a true `known_by_id` is not read: its samples are what their ids say (pictures at URLs).

    Args:
        prefix: put before each key, to make it the id.
        progress: told how many samples were read, of how many, in this process.

    Raises:
        DataError: for two samples with one id.
    """
    total = len(source)
    ids = [prefix + source.key(index) for index in range(total)]
    if len(set(ids)) != total:
        seen: set[str] = set()
        twice = next(name for name in ids if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        what, fix = f"two samples have the id {twice!r}", "embed the parts of the source one by one, each with a prefix"
        raise DataError(what, expected="every id once", fix=fix)
    digests, described = np.zeros(total, np.uint64), np.zeros(total, np.uint64)
    problems: dict[int, str] = {}
    if getattr(source, "known_by_id", False):
        return Scanned(ids, digests, described, problems)

    def read(start: int, last: int) -> int:
        stop = min(start + CHUNK, last)
        for index in range(start, stop):
            try:
                pair = source.read(index)
            except (DataError, LimitError) as error:
                problems[index] = error.what
                continue
            digests[index], described[index] = image_digest(pair.image), description(pair)
        return stop - start

    here = world.current()
    first, last = (total * rank // here.size for rank in (here.rank, here.rank + 1))

    def read_mine() -> None:
        done = 0
        with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1), thread_name_prefix="scan") as pool:
            for count in pool.map(read, range(first, last, CHUNK), itertools.repeat(last)):
                done += count
                if progress is not None:
                    progress(done, last - first)

    here.together(read_mine)
    return Scanned(ids, _from_all(digests), _from_all(described), _problems_of_all(problems))


def _from_all(mine: np.ndarray) -> np.ndarray:
    """Numbers of which every process has filled in its part of zeros."""
    import torch

    here = world.current()
    if here.size == 1:
        return mine
    return here.sum(torch.from_numpy(mine.view(np.int64)).to(here.device)).cpu().numpy().view(np.uint64)


def _problems_of_all(mine: dict[int, str]) -> dict[int, str]:
    told = world.current().all_facts(list(mine.items()))
    return dict(sorted((index, reason) for each in told for index, reason in each))


def description(pair: Pair) -> int:
    """64 bits of a hash of what is said of a sample."""
    return described(known_of(pair))


def described(known: dict[str, Any]) -> int:
    """The same, from what `known_of` gives."""
    tree = [known[name] for name in ("labels", "texts", "fields")]
    return int.from_bytes(hashlib.blake2b(sha256_json(tree).encode("ascii"), digest_size=8).digest(), "little")
