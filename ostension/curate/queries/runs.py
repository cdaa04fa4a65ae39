"""Sorted runs of counts on the disk, and their sums: exact counting of more than fits the memory.

A run has different keys in ascending order, with a count each, in a Parquet file. Merging reads a batch of each run, adds up
all keys that no run can still have smaller ones of, and goes on: memory is batches times runs, whatever the runs hold. More
than `FAN_IN` runs are merged in several rounds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ostension.files import atomic_path

FAN_IN = 64
ROWS = 1 << 16  # of a batch
Batch = tuple[Any, np.ndarray]  # keys in ascending order, counts


@dataclasses.dataclass(frozen=True)
class Keys:
    """How keys of one type are handled.

    Attributes:
        last: the largest of sorted keys.
        upto: how many of sorted keys are at most this.
        summed: keys and counts in any order as a batch, each key once.
    """

    last: Callable[[Any], Any]
    upto: Callable[[Any, Any], int]
    summed: Callable[[Sequence[Batch]], Batch]


def merged(streams: Sequence[Iterator[Batch]], keys: Keys) -> Iterator[Batch]:
    """The sums of sorted streams, sorted, in batches."""
    heads: list[Batch] = []
    rest: list[Iterator[Batch]] = []
    for stream in streams:
        head = _next(stream)
        if head is not None:
            heads.append(head)
            rest.append(stream)
    while heads:
        bound = min(keys.last(head[0]) for head in heads)
        taken: list[Batch] = []
        for place in reversed(range(len(heads))):
            found, counts = heads[place]
            cut = keys.upto(found, bound)
            if cut:
                taken.append((found[:cut], counts[:cut]))
            if cut < len(counts):
                heads[place] = (found[cut:], counts[cut:])
                continue
            head = _next(rest[place])
            if head is None:
                del heads[place], rest[place]
            else:
                heads[place] = head
        yield keys.summed(taken)


def _next(stream: Iterator[Batch]) -> Batch | None:
    return next((batch for batch in stream if len(batch[1])), None)


def write_run(path: Path, batches: Iterable[Batch]) -> None:
    """Write sorted batches as a run, atomically."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    writer = None
    with atomic_path(path) as temporary:
        try:
            for keys, counts in batches:
                table = pa.table({"key": keys, "count": pa.array(counts, pa.int64())})
                if writer is None:
                    plain = not pa.types.is_binary(table.schema.field("key").type)
                    writer = parquet.ParquetWriter(
                        temporary, table.schema, compression="zstd", compression_level=1, use_dictionary=False,
                        column_encoding={"key": "DELTA_BINARY_PACKED" if plain else "DELTA_BYTE_ARRAY", "count": "PLAIN"},
                    )  # fmt: skip
                writer.write_table(table, row_group_size=ROWS)
            if writer is None:
                parquet.write_table(pa.table({"key": pa.array([], pa.binary()), "count": pa.array([], pa.int64())}), temporary)
        finally:
            if writer is not None:
                writer.close()


def read_run(path: Path) -> Iterator[Batch]:
    """The batches of a run: keys as an Arrow array (numpy where they are numbers), counts as numpy."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path) as file:
        numbers = pa.types.is_integer(file.schema_arrow.field("key").type)
        for group in range(file.num_row_groups):
            if not file.metadata.row_group(group).num_rows:
                continue
            table = file.read_row_group(group, use_threads=False)
            keys = table["key"].combine_chunks()
            yield (keys.to_numpy() if numbers else keys), table["count"].to_numpy()


def merge_files(
    paths: Sequence[Path], keys: Keys, folder: Path, read: Callable[[Path], Iterator[Batch]] = read_run
) -> Iterator[Batch]:
    """The sums of any number of runs; what the rounds before the last give lies in `folder` meanwhile.

    Args:
        read: opens a run of the first round; later rounds have runs of this file's form.
    """
    level, kept = 0, list(paths)
    while len(kept) > FAN_IN:
        following = []
        for number, start in enumerate(range(0, len(kept), FAN_IN)):
            path = folder / f"merged-{level:02d}-{number:06d}.parquet"
            write_run(path, merged([read(one) for one in kept[start : start + FAN_IN]], keys))
            following.append(path)
        if level:
            for path in kept:
                path.unlink()
        level, kept, read = level + 1, following, read_run
    yield from merged([read(one) for one in kept], keys)
    if level:
        for path in kept:
            path.unlink()


def _words_upto(words: Any, bound: bytes) -> int:
    low, high = 0, len(words)
    while low < high:
        middle = (low + high) // 2
        if words[middle].as_py() <= bound:
            low = middle + 1
        else:
            high = middle
    return low


def sum_words(batches: Sequence[Batch]) -> Batch:
    """Words with counts, sorted by their bytes, each once."""
    import pyarrow as pa
    import pyarrow.compute as pc

    words = pa.concat_arrays([words for words, _ in batches])
    counts = np.concatenate([counts for _, counts in batches])
    encoded = words.dictionary_encode()
    # A sum of integers is exact in any order; bincount with weights would round beyond 2**53.
    sums = np.zeros(len(encoded.dictionary), np.int64)
    np.add.at(sums, encoded.indices.to_numpy(), counts)
    order = pc.sort_indices(encoded.dictionary)
    return encoded.dictionary.take(order), sums[order.to_numpy()]


def sum_numbers(batches: Sequence[Batch]) -> Batch:
    """Numbers with counts, sorted, each once."""
    keys = np.concatenate([keys for keys, _ in batches])
    counts = np.concatenate([counts for _, counts in batches])
    if not len(keys):
        return keys, counts
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], counts[order]
    firsts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[firsts], np.add.reduceat(counts, firsts)


WORDS = Keys(last=lambda words: words[-1].as_py(), upto=_words_upto, summed=sum_words)
NUMBERS = Keys(
    last=lambda numbers: numbers[-1], upto=lambda numbers, bound: int(np.searchsorted(numbers, bound, side="right")),
    summed=sum_numbers,
)  # fmt: skip
