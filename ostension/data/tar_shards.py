"""Pairs from tar shards in the webdataset and img2dataset layout: KEY.jpg, KEY.txt and, if present, KEY.json.

Reads are ranges at offsets from the shard's index, so that any order costs the same and several threads and processes can
share one source. Members are read into memory and never written to disk, whatever their names say. Shards may lie at URLs.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ostension.config import to_tree
from ostension.data.arrays import cached_arrays
from ostension.data.layout import TEXT_MEMBER, USUAL, Layout, captions_of, weights_of
from ostension.data.pairs import MAX_IMAGE_BYTES, MAX_TEXT_BYTES, Pair, Summary, check_index
from ostension.data.remote import RemoteFile, UnreachableError
from ostension.data.tar_index import NO_TEXT, ShardIndex, index_places, open_index
from ostension.errors import DataError, LimitError
from ostension.files import sha256_json

MAX_OPEN_SHARDS = 128  # two descriptors each: the file, and the map of its index
INDEXED_AT_ONCE = 4  # shards at URLs, each of which needs its size on disk for that time
MAX_GAP_BYTES = 64 << 10  # members of one sample that lie no farther apart are read at once
_LOG = logging.getLogger("ostension.data")


class TarShards:
    """The pairs of one or more tar shards, shard after shard.

    Args:
        shards: the files, in order; those at URLs from `remote.look_up`.
        layout: which texts are the captions.
        index_folder: keep the indexes there instead of beside the shards.
        max_image_bytes, max_text_bytes: larger members are refused when they are read.

    Raises:
        DataError: if a shard is missing, is no tar archive, or has changed since it was indexed; if no shard has a pair.
    """

    def __init__(
        self,
        shards: Sequence[str | os.PathLike | RemoteFile],
        *,
        layout: Layout = USUAL,
        index_folder: Path | None = None,
        max_image_bytes: int = MAX_IMAGE_BYTES,
        max_text_bytes: int = MAX_TEXT_BYTES,
    ):
        self.shards = tuple(shard if isinstance(shard, RemoteFile) else Path(shard) for shard in shards)
        self.layout, self.max_image_bytes, self.max_text_bytes = layout, max_image_bytes, max_text_bytes
        missing = [shard for shard in self.shards if isinstance(shard, Path) and not shard.exists()]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise DataError(f"no such shard{more}", source=missing[0], expected=f"{len(self.shards)} shards")
        self._texts = layout.texts or (TEXT_MEMBER,)
        self._index_folder = index_folder
        remote = [shard for shard in self.shards if isinstance(shard, RemoteFile)]
        new = sum(not any(place.is_file() for place in index_places(shard, index_folder)) for shard in remote)
        if new:
            _LOG.warning(f"{new} shards at URLs are read once, to index them")
        with ThreadPoolExecutor(INDEXED_AT_ONCE if remote else 1) as pool:
            self._facts = list(pool.map(self._open_first, self.shards))
        self._ends = list(itertools.accumulate(facts.num_pairs for facts in self._facts))
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        if not len(self):
            reasons = ", ".join(f"{count} x {reason}" for reason, count in self.summary().rejects.items())
            named = " or ".join("KEY.txt" if name == TEXT_MEMBER else f"KEY.json with {name!r}" for name in self._texts)
            raise DataError(
                f"no pair of an image and a text ({reasons})",
                source=self.shards[0],
                expected=f"members KEY.jpg and {named}; the key ends at the first dot of the name",
            )

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def key(self, index: int) -> str:
        shard, key = self.shard_of(index)
        return f"{shard.name.removesuffix('.tar')}/{key}"

    def shard_of(self, index: int) -> tuple[Path | RemoteFile, str]:
        """The shard of a pair and the key inside it."""
        shard, row = self._locate(index)
        return shard.location, shard.index.key(row)

    def read(self, index: int) -> Pair:
        """The pair at `index`.

        Raises:
            LimitError: if its image or text is larger than allowed.
            DataError: if its text or metadata cannot be read, or the shard has shrunk.
            UnreachableError: if the shard cannot be read now.
        """
        shard, row = self._locate(index)
        source = f"{shard.location} ({shard.index.key(row)})"
        found = shard.members(row, {"image": self.max_image_bytes, **self._text_limits()}, source)
        texts, weights, metadata = self._texts_of(found, source)
        return Pair(key=self.key(index), image=found["image"], texts=texts, meta=metadata, weights=weights)

    def text_counts(self) -> np.ndarray | None:
        """How many captions each pair has; None where each has one. Reads all texts once, if they can hold several."""
        if self._texts == (TEXT_MEMBER,) and not self.layout.lines:
            return None

        def count() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
            counts = np.fromiter((self._num_texts(index) for index in range(len(self))), dtype=np.int32, count=len(self))
            return {"counts": counts}, {}

        return cached_arrays("captions of a tar 1", self.fingerprint(), count)["counts"]

    def _num_texts(self, index: int) -> int:
        shard, row = self._locate(index)
        try:
            texts, _, _ = self._texts_of(shard.members(row, self._text_limits(), str(shard.location)), None)
        except (DataError, LimitError):
            return 1  # it will be refused when it is read, and count as one bad sample
        return len(texts)

    def _text_limits(self) -> dict[str, int]:
        return dict.fromkeys(("text", "json") if TEXT_MEMBER in self._texts else ("json",), self.max_text_bytes)

    def _texts_of(self, found: dict[str, bytes], source: object) -> tuple[tuple[str, ...], tuple[float, ...], dict[str, Any]]:
        metadata = _decode_metadata(found["json"], source) if "json" in found else {}
        text = _decode_text(found["text"], source) if "text" in found else None
        values = [text if name == TEXT_MEMBER else metadata.get(name) for name in self._texts]
        texts, weights = captions_of(values, self.layout, source)
        if self.layout.weights:
            weights = weights_of(metadata, self.layout, len(texts), source)
        return texts, weights, metadata

    def fingerprint(self) -> str:
        layout = [] if self.layout == USUAL else [to_tree(self.layout)]
        return sha256_json(["tar", *layout, *(facts.sha256 for facts in self._facts)])

    def image_digests(self) -> np.ndarray:
        return self._column(lambda index: index.digest)

    def image_sizes(self) -> np.ndarray:
        """The size of each encoded image in bytes."""
        return self._column(lambda index: index.image[:, 1])

    def text_sizes(self) -> np.ndarray:
        """The size of each text member in bytes, -1 where there is none."""
        return self._column(lambda index: index.text[:, 1])

    def shard_hashes(self) -> dict[str, Path | RemoteFile]:
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

    def _open_first(self, shard: Path | RemoteFile) -> _ShardFacts:
        index = open_index(shard, self._index_folder)
        num_pairs, rejects = int(self._is_pair(index).sum()), dict(index.rejects)
        if num_pairs < len(index):
            reason = NO_TEXT if TEXT_MEMBER in self._texts else "image without json"
            rejects[reason] = rejects.get(reason, 0) + len(index) - num_pairs
        return _ShardFacts(
            num_pairs=num_pairs,
            num_bytes=index.tar_size,
            sha256=index.tar_sha256,
            mtime_ns=0 if isinstance(shard, RemoteFile) else shard.stat().st_mtime_ns,
            rejects=rejects,
            torn=index.torn,
        )

    def _is_pair(self, index: ShardIndex) -> np.ndarray:
        """For each row of an index, whether it has what this layout wants."""
        parts = [index.text] if TEXT_MEMBER in self._texts else []
        parts += [index.json] if self._texts != (TEXT_MEMBER,) else []
        return np.maximum.reduce([part[:, 1] for part in parts]) >= 0

    def _locate(self, index: int) -> tuple[_OpenShard, int]:
        """The shard of a pair and its row in the shard's index."""
        check_index(index, len(self))
        number = bisect.bisect_right(self._ends, index)
        shard, row = self._opened(number), index - (self._ends[number - 1] if number else 0)
        return shard, row if shard.rows is None else int(shard.rows[row])

    def _column(self, pick: Callable[[ShardIndex], np.ndarray]) -> np.ndarray:
        shards = map(self._opened, range(len(self.shards)))
        return np.concatenate(
            [np.array(pick(shard.index))[slice(None) if shard.rows is None else shard.rows] for shard in shards]
        )

    def _opened(self, number: int) -> _OpenShard:
        shard = self._open.get(number)
        if shard is None:
            facts = self._facts[number]
            shard = _OpenShard(self.shards[number], self._index_folder, facts.mtime_ns)
            if facts.num_pairs < len(shard.index):
                shard.rows = np.flatnonzero(self._is_pair(shard.index))
            self._open[number] = shard
            if len(self._open) > MAX_OPEN_SHARDS:
                self._open.popitem(last=False)
        return shard

    # Another process opens the shards and maps the indexes itself: it is sent a few numbers a shard, none a pair.
    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _ShardFacts:
    """What is known of a shard without having it open."""

    num_pairs: int
    num_bytes: int
    sha256: str
    mtime_ns: int
    rejects: dict[str, int]
    torn: str | None


class _OpenShard:
    """An open file and its mapped index, for as long as somebody holds them: evicting one never closes it under a reader.

    Attributes:
        rows: the rows of the index that are pairs, None where all are.
    """

    rows: np.ndarray | None = None

    def __init__(self, location: Path | RemoteFile, index_folder: Path | None, mtime_ns: int):
        self.location = location
        self.index = open_index(location, index_folder, verified_mtime_ns=mtime_ns)
        if isinstance(location, Path):
            self._file = os.open(location, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def members(self, row: int, limits: dict[str, int], source: str) -> dict[str, bytes]:
        """The bytes of some members of a row, each at most its limit; those that it lacks are left out."""
        spans = {}
        for part, limit in limits.items():
            offset, size = map(int, getattr(self.index, part)[row])
            if size > limit:
                raise LimitError(f"{part} of {size} bytes", source=source, expected=f"at most {limit}")
            if size >= 0:
                spans[part] = (offset, size)
        start, end = min(offset for offset, _ in spans.values()), max(offset + size for offset, size in spans.values())
        if end - start > sum(size for _, size in spans.values()) + MAX_GAP_BYTES:
            return {part: self._read(offset, size) for part, (offset, size) in spans.items()}
        together = self._read(start, end - start)
        return {part: together[offset - start : offset - start + size] for part, (offset, size) in spans.items()}

    def _read(self, offset: int, size: int) -> bytes:
        if isinstance(self.location, RemoteFile):
            return self.location.read(offset, size)
        try:
            data = os.pread(self._file, size, offset)
        except OSError as error:
            what = f"cannot be read: {(error.strerror or 'unknown error').lower()}"
            raise UnreachableError(what, source=self.location, fix="the run can be resumed") from None
        if len(data) != size:
            raise DataError(f"ends before byte {offset + size}: it changed while in use", source=self.location)
        return data

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)


def _decode_text(raw: bytes, source: object) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"text is not UTF-8 at byte {error.start}", source=source) from None


def _decode_metadata(raw: bytes, source: object) -> dict[str, Any]:
    try:
        metadata = json.loads(raw)
    except (ValueError, RecursionError):
        raise DataError("metadata is not JSON", source=source) from None
    if not isinstance(metadata, dict):
        raise DataError("metadata is not a JSON object", source=source)
    return metadata
