"""Pairs from tar shards in the webdataset and img2dataset layout: KEY.jpg, KEY.txt and, if present, KEY.json.

Reads are `pread`s at offsets from the shard's index, so that any order costs the same and several threads and processes
can share one source. Members are read into memory and never written to disk, whatever their names say.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ostension.data.pairs import MAX_IMAGE_BYTES, MAX_TEXT_BYTES, Pair, Summary, check_index
from ostension.data.tar_index import ShardIndex, open_index
from ostension.errors import DataError, LimitError
from ostension.files import sha256_json

MAX_OPEN_SHARDS = 128  # two descriptors each: the file, and the map of its index


class TarShards:
    """The pairs of one or more tar shards, shard after shard.

    Args:
        shards: the files, in order.
        index_folder: keep the indexes there instead of beside the shards.
        max_image_bytes, max_text_bytes: larger members are refused when they are read.

    Raises:
        DataError: if a shard is missing, is no tar archive, or has changed since it was indexed; if no shard has a pair.
    """

    def __init__(
        self,
        shards: Sequence[str | os.PathLike],
        *,
        index_folder: Path | None = None,
        max_image_bytes: int = MAX_IMAGE_BYTES,
        max_text_bytes: int = MAX_TEXT_BYTES,
    ):
        self.shards = tuple(Path(shard) for shard in shards)
        self.max_image_bytes, self.max_text_bytes = max_image_bytes, max_text_bytes
        missing = [shard for shard in self.shards if not shard.exists()]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise DataError(f"no such shard{more}", source=missing[0], expected=f"{len(self.shards)} shards")
        self._index_folder = index_folder
        self._facts = [_ShardFacts.of(shard, open_index(shard, index_folder)) for shard in self.shards]
        self._ends = list(itertools.accumulate(facts.num_pairs for facts in self._facts))
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        if not len(self):
            reasons = ", ".join(f"{count} x {reason}" for reason, count in self.summary().rejects.items())
            raise DataError(
                f"no pair of an image and a text ({reasons})",
                source=self.shards[0],
                expected="members KEY.jpg and KEY.txt; the key ends at the first dot of the name",
            )

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def key(self, index: int) -> str:
        shard, key = self.shard_of(index)
        return f"{shard.name.removesuffix('.tar')}/{key}"

    def shard_of(self, index: int) -> tuple[Path, str]:
        """The shard of a pair and the key inside it."""
        shard, row = self._locate(index)
        return self.shards[shard], self._opened(shard).index.key(row)

    def read(self, index: int) -> Pair:
        """The pair at `index`.

        Raises:
            LimitError: if its image or text is larger than allowed.
            DataError: if its text or metadata cannot be read, or the shard has shrunk.
        """
        number, row = self._locate(index)
        shard = self._opened(number)
        source = f"{shard.path} ({shard.index.key(row)})"
        text = _decode_text(shard.member("text", row, self.max_text_bytes, source), source)
        metadata = {}
        if shard.index.json[row, 1] >= 0:
            metadata = _decode_metadata(shard.member("json", row, self.max_text_bytes, source), source)
        image = shard.member("image", row, self.max_image_bytes, source)
        return Pair(key=self.key(index), image=image, texts=(text,), meta=metadata)

    def fingerprint(self) -> str:
        return sha256_json(["tar", *(facts.sha256 for facts in self._facts)])

    def image_digests(self) -> np.ndarray:
        return self._column(lambda index: index.digest)

    def image_sizes(self) -> np.ndarray:
        """The size of each encoded image in bytes."""
        return self._column(lambda index: index.image[:, 1])

    def text_sizes(self) -> np.ndarray:
        """The size of each text in bytes."""
        return self._column(lambda index: index.text[:, 1])

    def shard_hashes(self) -> dict[str, Path]:
        """The shards by SHA-256."""
        return {facts.sha256: shard for facts, shard in zip(self._facts, self.shards, strict=True)}

    def summary(self) -> Summary:
        rejects: dict[str, int] = {}
        for facts in self._facts:
            for reason, count in facts.rejects.items():
                rejects[reason] = rejects.get(reason, 0) + count
        return Summary(
            num_pairs=len(self),
            num_bytes=sum(facts.num_bytes for facts in self._facts),
            rejects=rejects,
            notes=tuple(f"{shard}: {facts.torn}" for shard, facts in zip(self.shards, self._facts, strict=True) if facts.torn),
        )

    def _locate(self, index: int) -> tuple[int, int]:
        check_index(index, len(self))
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)

    def _column(self, pick: Callable[[ShardIndex], np.ndarray]) -> np.ndarray:
        return np.concatenate([np.array(pick(self._opened(shard).index)) for shard in range(len(self.shards))])

    def _opened(self, number: int) -> _OpenShard:
        shard = self._open.get(number)
        if shard is None:
            shard = self._open[number] = _OpenShard(self.shards[number], self._index_folder, self._facts[number].mtime_ns)
            if len(self._open) > MAX_OPEN_SHARDS:
                self._open.popitem(last=False)
        return shard

    # Another process opens the shards and maps the indexes itself: it is sent a few numbers a shard, none a pair.
    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}


@dataclasses.dataclass(frozen=True, slots=True)
class _ShardFacts:
    """What is known of a shard without having it open."""

    num_pairs: int
    num_bytes: int
    sha256: str
    mtime_ns: int
    rejects: dict[str, int]
    torn: str | None

    @classmethod
    def of(cls, path: Path, index: ShardIndex) -> _ShardFacts:
        return cls(len(index), index.tar_size, index.tar_sha256, path.stat().st_mtime_ns, index.rejects, index.torn)


class _OpenShard:
    """An open file and its mapped index, for as long as somebody holds them: evicting one never closes it under a reader."""

    def __init__(self, path: Path, index_folder: Path | None, mtime_ns: int):
        self.path = path
        self.index = open_index(path, index_folder, verified_mtime_ns=mtime_ns)
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def member(self, part: Literal["image", "text", "json"], row: int, limit: int, source: str) -> bytes:
        """The bytes of one member of the pair at `row`."""
        offset, size = map(int, getattr(self.index, part)[row])
        if size > limit:
            raise LimitError(f"{part} of {size} bytes", source=source, expected=f"at most {limit}")
        data = os.pread(self._file, size, offset)
        if len(data) != size:
            raise DataError(f"ends before byte {offset + size}: it changed while in use", source=self.path)
        return data

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)


def _decode_text(raw: bytes, source: str) -> str:
    try:
        text = raw.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"text is not UTF-8 at byte {error.start}", source=source) from None
    if not text:
        raise DataError("text is empty", source=source)
    return text


def _decode_metadata(raw: bytes, source: str) -> dict[str, Any]:
    try:
        metadata = json.loads(raw)
    except (ValueError, RecursionError):
        raise DataError("metadata is not JSON", source=source) from None
    if not isinstance(metadata, dict):
        raise DataError("metadata is not a JSON object", source=source)
    return metadata
