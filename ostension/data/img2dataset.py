"""What img2dataset tells beside its tar shards: which downloads failed and why, and which shards are not whole.

Beside 00000.tar lie 00000.parquet, a row a download with `status` and `error_message`, and 00000_stats.json, which is written
last: a shard without it was cut off.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ostension.data.pairs import Joined, PairSource
from ostension.data.tar_shards import TarShards
from ostension.errors import DataError, require_extra

EXTRA = "data"
SUCCESS = "success"
CUT_OFF = "shard without _stats.json: it was cut off"
LETTERS, REASONS = 120, 50  # of a reason, and how many are told apart


def failures(source: PairSource) -> dict[str, int]:
    """Downloads that came to nothing by reason, and shards that were cut off; empty for tar shards of another origin.

    Raises:
        DataError: if a table beside a shard cannot be read.
    """
    counts: Counter[str] = Counter()
    for shard in _shards(source):
        table = shard.with_suffix(".parquet")
        if table.is_file() and (states := _states(table)) is not None:
            counts.update(states)
            if not shard.with_name(f"{shard.stem}_stats.json").is_file():
                counts[CUT_OFF] += 1
    kept = dict(counts.most_common(REASONS))
    rest = counts.total() - sum(kept.values())
    return {**kept, **({"failed for other reasons": rest} if rest else {})}


def _shards(source: PairSource) -> list[Path]:
    """The tar shards of a source that lie here."""
    if isinstance(source, Joined):
        return [shard for part in source.sources for shard in _shards(part)]
    return [shard for shard in source.shards if isinstance(shard, Path)] if isinstance(source, TarShards) else []


def _states(table: Path) -> Counter[str] | None:
    """What failed by status and message; None for a table of another kind."""
    arrow, parquet = require_extra("pyarrow", EXTRA), require_extra("pyarrow.parquet", EXTRA)
    counts: Counter[str] = Counter()
    try:
        with parquet.ParquetFile(table) as file:
            if not {"status", "error_message"} <= set(file.schema_arrow.names):
                return None
            for batch in file.iter_batches(columns=["status", "error_message"], use_threads=False):
                for status, message in zip(*(batch[name].to_pylist() for name in ("status", "error_message")), strict=True):
                    if status != SUCCESS:
                        counts[" ".join(f"{status}: {message}".split())[:LETTERS]] += 1
    except (arrow.ArrowException, OSError) as error:
        first = str(error).split("\n", 1)[0]
        raise DataError(f"img2dataset's table cannot be read ({first})", source=table, fix="remove it with its shard") from None
    return counts
