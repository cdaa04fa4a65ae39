"""Pairs from tar shards in the webdataset and img2dataset layout: KEY.jpg, KEY.txt and, if present, KEY.json.

Reads are `pread`s at offsets from the shard's index, so that any order costs the same and several threads and processes
can share one source. Members are read into memory and never written to disk, whatever their names say.
"""

from __future__ import annotations

import bisect
import itertools
import json
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ostension.data.pairs import MAX_IMAGE_BYTES, MAX_TEXT_BYTES, Pair, Summary, check_index
from ostension.data.tar_index import ShardIndex, open_index
from ostension.errors import DataError, LimitError
from ostension.files import sha256_json

MAX_OPEN_FILES = 128


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
        self._indexes: list[ShardIndex] = [open_index(shard, index_folder) for shard in self.shards]
        self._mtimes = [shard.stat().st_mtime_ns for shard in self.shards]
        self._ends = list(itertools.accumulate(len(index) for index in self._indexes))
        self._files: OrderedDict[int, _Descriptor] = OrderedDict()
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
        shard, row = self._locate(index)
        return f"{self.shards[shard].name.removesuffix('.tar')}/{self._indexes[shard].key(row)}"

    def read(self, index: int) -> Pair:
        """The pair at `index`.

        Raises:
            LimitError: if its image or text is larger than allowed.
            DataError: if its text or metadata cannot be read, or the shard has shrunk.
        """
        shard, row = self._locate(index)
        entry, source = self._indexes[shard], f"{self.shards[shard]} ({self._indexes[shard].key(row)})"
        image_offset, image_size = map(int, entry.image[row])
        text_offset, text_size = map(int, entry.text[row])
        for what, size, limit in (("image", image_size, self.max_image_bytes), ("text", text_size, self.max_text_bytes)):
            if size > limit:
                raise LimitError(f"{what} of {size} bytes", source=source, expected=f"at most {limit}")
        text = _decode_text(self._pread(shard, text_offset, text_size), source)
        json_offset, json_size = map(int, entry.json[row])
        metadata = {}
        if json_size >= 0:
            if json_size > self.max_text_bytes:
                raise LimitError(f"metadata of {json_size} bytes", source=source, expected=f"at most {self.max_text_bytes}")
            metadata = _decode_metadata(self._pread(shard, json_offset, json_size), source)
        return Pair(key=self.key(index), image=self._pread(shard, image_offset, image_size), texts=(text,), meta=metadata)

    def fingerprint(self) -> str:
        return sha256_json(["tar", *(index.tar_sha256 for index in self._indexes)])

    def image_digests(self) -> np.ndarray:
        return np.concatenate([index.digest for index in self._indexes])

    def shard_hashes(self) -> dict[str, Path]:
        """The shards by SHA-256."""
        return {index.tar_sha256: shard for index, shard in zip(self._indexes, self.shards, strict=True)}

    def shard_of(self, index: int) -> tuple[Path, str]:
        """The shard of a pair and the key inside it."""
        shard, row = self._locate(index)
        return self.shards[shard], self._indexes[shard].key(row)

    def summary(self) -> Summary:
        rejects: dict[str, int] = {}
        shards = zip(self.shards, self._indexes, strict=True)
        for index in self._indexes:
            for reason, count in index.rejects.items():
                rejects[reason] = rejects.get(reason, 0) + count
        return Summary(
            num_pairs=len(self),
            num_bytes=sum(index.tar_size for index in self._indexes),
            rejects=rejects,
            notes=tuple(f"{shard}: {index.torn}" for shard, index in shards if index.torn),
        )

    def text_sizes(self) -> np.ndarray:
        """The size of each text in bytes."""
        return np.concatenate([index.text[:, 1] for index in self._indexes])

    def image_sizes(self) -> np.ndarray:
        """The size of each encoded image in bytes."""
        return np.concatenate([index.image[:, 1] for index in self._indexes])

    def _locate(self, index: int) -> tuple[int, int]:
        check_index(index, len(self))
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)

    def _pread(self, shard: int, offset: int, size: int) -> bytes:
        file = self._files.get(shard)
        if file is None:
            file = self._files[shard] = _Descriptor(self.shards[shard])
            if len(self._files) > MAX_OPEN_FILES:
                self._files.popitem(last=False)
        data = os.pread(file.number, size, offset)
        if len(data) != size:
            raise DataError(f"ends before byte {offset + size}: it changed while in use", source=self.shards[shard])
        return data

    # A worker process opens the shards and maps the indexes itself: nothing that grows with the data is sent to it.
    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict(), "_indexes": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._indexes = [
            open_index(shard, self._index_folder, verified_mtime_ns=mtime)
            for shard, mtime in zip(self.shards, self._mtimes, strict=True)
        ]


class _Descriptor:
    """A file descriptor that lives as long as somebody holds it: evicting one never closes it under a reader."""

    def __init__(self, path: Path):
        try:
            self.number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise DataError(f"cannot be read: {(error.strerror or '').lower()}", source=path) from None

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


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
